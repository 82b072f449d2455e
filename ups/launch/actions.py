"""Looking after what was rented: what it cost, what it says, and its end."""

import re
import time
from datetime import datetime

from omegaconf import DictConfig
from rich.table import Table

from ups.console import screen
from ups.errors import Interrupted, UserError
from ups.launch.job import GRACE
from ups.launch.ledger import PREFIX, Ledger, Rental, State, deadline_of
from ups.launch.provision import destroy_command, still_billed
from ups.launch.vast_api import Vast

LOG_LINES = 200
LOG_SECONDS = 3  # between two looks at a log; a machine that has ended waits ten for its last lines to be seen
SECONDS_OVER = 300  # after the deadline, within which a machine should have ended itself
ENDING = re.compile(r"ups [\d:]+ Training (complete|failed \(\d+\))")  # of onstart.sh, before it destroys the machine


class TrainingFailed(UserError):
    """The machine is gone and its training not known to be complete."""


def status(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    rows = {row["id"]: row for row in refreshed(vast, ledger)}
    summary = table_of_rentals(
        "Rented from here",
        "instance", "GPU", "state", "hours", "$ so far", "$ at most", "deadline", "commit", "overrides",
    )  # fmt: skip
    for rental in ledger.rentals():
        if rental.state == State.NOT_RENTED:
            continue
        seen = rows.get(rental.instance_id, {}).get("actual_status") if rental.is_open else None
        summary.add_row(
            str(rental.instance_id or rental.label), rental.gpu, seen or rental.state.value, f"{rental.hours:.2f}",
            f"{rental.cost:.3f}", f"{rental.cost_limit:.2f}", f"{datetime.fromtimestamp(rental.deadline):%m-%d %H:%M}",
            rental.commit[:9], " ".join(rental.overrides),
        )  # fmt: skip
    screen.print(summary)
    known = {rental.instance_id for rental in ledger.rentals()}
    for row in rows.values():
        if row["id"] not in known:
            screen.print(f"instance {row['id']} ({row['label']}) is not in {ledger.folder}: see vast.action=reap")
        elif (deadline_of(row["label"]) or 0) < time.time() and not may_be_saving(row):
            screen.print(f"instance {row['id']} is past its deadline: see vast.action=reap")


def table_of_rentals(title: str, *columns: str) -> Table:
    """On a narrow screen nothing in it is cut, and an instance's id, which other commands want, is in one piece."""
    summary = Table(title=title, title_justify="left")
    for column in columns:
        summary.add_column(column, min_width=10 if column == "instance" else None, overflow="fold")
    return summary


def refreshed(vast: Vast, ledger: Ledger) -> list[dict]:
    """This project's instances, with which the ledger is brought into agreement."""
    rows = vast.instances(PREFIX)
    there = {row["label"]: row["id"] for row in rows}
    for rental in ledger.rentals():
        if rental.label in there and rental.state == State.DESTROYED:  # looked for with another account's key
            rental.instance_id, rental.state, rental.ended = there[rental.label], State.RUNNING, None
            ledger.save(rental)
        elif rental.label in there and rental.is_open and rental.instance_id is None:  # the launcher ended too early
            rental.instance_id, rental.state = there[rental.label], State.LOADING
            ledger.save(rental)
        elif rental.is_open and rental.label not in there:
            ledger.end(rental, State.DESTROYED, "gone when looked for; it ended then or before")
    return rows


def may_be_saving(row: dict) -> bool:
    """Whether it was started a moment ago: one that is over its deadline then saves, and destroys itself.

    Vast may not say it (`uptime_mins` is null in its documents' example).
    """
    minutes = row.get("uptime_mins")
    return minutes is not None and minutes * 60 < GRACE


def logs(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    row = chosen(settings, vast, ledger)
    if not settings.follow:
        if vast.show(row["id"]) is None:
            raise UserError(f"vast.instance={row['id']} is gone, and its log with it: see its W&B page")
        return screen.print(vast.logs(row["id"], LOG_LINES))
    rental = next((rental for rental in ledger.rentals() if rental.label == row["label"]), None)
    if rental is None:
        raise UserError(f"vast.instance={row['id']} is not in {ledger.folder}, so leave out vast.follow")
    return follow(vast, ledger, rental, settings.poll_seconds)


def follow(vast: Vast, ledger: Ledger, rental: Rental, seconds: float) -> None:
    """New lines of the log until the instance is gone. Ctrl-C leaves it running. `seconds`: between two looks, at most
    LOG_SECONDS, or the machine may be gone before its last lines were seen.

    Raises `TrainingFailed` unless the log says that the training is complete.
    """
    lines: list[str] = []
    ending = ""
    try:
        while (row := vast.show(rental.instance_id)) is not None:
            latest = vast.logs(rental.instance_id, 1000).splitlines()
            for line in latest[overlap(lines, latest) :]:
                screen.print(line)
                ending = match[1] if (match := ENDING.match(line)) else ending
            lines = latest or lines
            if time.time() > rental.deadline + SECONDS_OVER and not may_be_saving(row):
                raise UserError(f"past its deadline. {how_to_save(rental.instance_id)}")
            time.sleep(min(seconds, LOG_SECONDS))
    except Interrupted as interruption:
        goes_on = f"instance {rental.instance_id} goes on without an onlooker"
        raise Interrupted(interruption.signum, goes_on) from None
    except UserError as error:
        raise UserError(f"{error}. {still_billed(rental)}") from error
    ledger.end(rental, State.DESTROYED)
    gone = f"instance {rental.instance_id} is gone, ${rental.cost:.3f} by the clock"
    if ending == "complete":
        return screen.print(gone)
    known = f"its training {ending}, see the log above" if ending else "its log was not seen to the end of the training"
    raise TrainingFailed(f"{gone}; {known}" + (f", or {rental.wandb_url}" if rental.wandb_url else ""))


def overlap(seen: list[str], lines: list[str]) -> int:
    """How many of `lines`, a later tail of the same log, were seen: the longest end of `seen` that begins it."""
    for start in range(max(len(seen) - len(lines), 0), len(seen)):
        if seen[start:] == lines[: len(seen) - start]:
            return len(seen) - start
    return 0


def destroy(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    destroy_all(vast, ledger, [chosen(settings, vast, ledger)])


def reap(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    """Destroys, after a question, this project's instances that are past their deadline or unknown to the ledger.

    So is one that was seen too late: another was rented in its place.
    """
    rows = refreshed(vast, ledger)
    known = ledger.labels() - {rental.label for rental in ledger.rentals() if rental.state == State.NOT_RENTED}
    overdue = []
    for row in rows:
        hours = ((deadline_of(row["label"]) or 0) - time.time()) / 3600
        if hours > 0 and row["label"] in known:
            continue
        why = f"not in {ledger.folder}, {hours:.1f} h to its deadline" if hours > 0 else "past its deadline"
        state, price = row.get("actual_status"), f"${row['dph_total']:.3f}/h"
        screen.print(f"instance {row['id']}  {row['label']}  {state}  {price}  {why}")
        if row.get("intended_status") == "stopped":
            screen.print(f"  left: {how_to_save(row['id'])}; {destroy_command(row['id'])} ends it")
        elif hours <= 0 and may_be_saving(row):
            screen.print(f"  left: it was started {row['uptime_mins']:.0f} minutes ago and may be saving its results")
        else:
            overdue.append(row)
    if not overdue:
        return screen.print(f"nothing to reap among {len(rows)} instances")
    which = f"{', '.join(str(row['id']) for row in overdue)}? What was just started to save its results would lose them"
    if not settings.yes and not confirmed(f"destroy {which} [y/N] "):
        raise UserError("nothing was destroyed: answer y, or set vast.yes=true")
    return destroy_all(vast, ledger, overdue)


def destroy_all(vast: Vast, ledger: Ledger, rows: list[dict]) -> None:
    """And read back. Raises `UserError` for those that are still there."""
    known = {rental.label: rental for rental in ledger.rentals()}
    left = []
    for row in rows:
        if not vast.destroy(row["id"]):
            left.append(row["id"])
            continue
        rental = known.get(row["label"])
        if rental:
            ledger.end(rental, State.DESTROYED)
        screen.print(f"instance {row['id']} is gone" + (f", ${rental.cost:.3f} by the clock" if rental else ""))
    if left:
        raise UserError(
            f"STILL BILLED: {', '.join(map(str, left))} still there; try again, or at cloud.vast.ai/instances"
        )


def confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def chosen(settings: DictConfig, vast: Vast, ledger: Ledger) -> dict:
    """`id` and `label` of vast.instance, whether or not the ledger has it; else of the only open one there."""
    number = settings.instance
    known = [rental for rental in ledger.rentals() if rental.instance_id is not None]
    fitting = [rental for rental in known if (rental.is_open if number is None else rental.instance_id == number)]
    if len(fitting) == 1:
        return {"id": fitting[0].instance_id, "label": fitting[0].label}
    if number is None:
        open_ones = ", ".join(str(rental.instance_id) for rental in fitting) or "none"
        raise UserError(f"vast.instance=None: {open_ones} in {ledger.folder}; give vast.instance=ID")
    row = vast.show(number)
    if row is None or not (row.get("label") or "").startswith(PREFIX):
        there = "is not there" if row is None else f"has the label {row.get('label')}"
        raise UserError(f"vast.instance={number} {there}: only {PREFIX}* are this project's")
    return row


def how_to_save(instance_id: int) -> str:
    start = f"`vastai start instance {instance_id}`"
    return f"If it is stopped, its disk may hold the only copy of its results: {start} saves them"
