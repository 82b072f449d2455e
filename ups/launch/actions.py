"""Looking after what was rented: what it cost, what it says, and its end."""

import time
from datetime import datetime

from omegaconf import DictConfig
from rich.table import Table

from ups.console import screen
from ups.errors import Interrupted, UserError
from ups.launch.ledger import PREFIX, Ledger, Rental, State, deadline_of
from ups.launch.provision import still_billed
from ups.launch.vast_api import Vast

LOG_LINES = 200
SECONDS_OVER = 300  # after the deadline, within which a machine should have ended itself

def status(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    rows = {row["id"]: row for row in refreshed(vast, ledger)}
    picture = Table(title="Rented from here", title_justify="left")
    for column in ("instance", "GPU", "state", "hours", "$ so far", "$ at most", "deadline", "commit", "overrides"):
        picture.add_column(column)
    for rental in ledger.rentals():
        if rental.state == State.NOT_RENTED:
            continue
        seen = rows.get(rental.instance_id, {}).get("actual_status") if rental.is_open else None
        hours = ((rental.ended or time.time()) - rental.asked) / 3600
        picture.add_row(
            str(rental.instance_id or rental.label), rental.gpu, seen or rental.state.value, f"{hours:.2f}",
            f"{rental.cost:.3f}", f"{rental.cost_limit:.2f}", f"{datetime.fromtimestamp(rental.deadline):%m-%d %H:%M}",
            rental.commit[:9], " ".join(rental.overrides),
        )  # fmt: skip
    screen.print(picture)
    known = {rental.instance_id for rental in ledger.rentals()}
    for row in rows.values():
        if row["id"] not in known:
            screen.print(f"instance {row['id']} ({row['label']}) is not in {ledger.folder}: see vast.action=reap")


def refreshed(vast: Vast, ledger: Ledger) -> list[dict]:
    """This project's instances; rentals that are no longer among them are marked as ended."""
    rows = vast.instances(PREFIX)
    there = {row["id"] for row in rows} | {row["label"] for row in rows}
    for rental in ledger.rentals():
        if rental.is_open and rental.instance_id not in there and rental.label not in there:
            ledger.end(rental, State.DESTROYED, "gone when looked for; the time of its end is not known")
    return rows


def logs(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    rental = chosen(settings, ledger)
    if settings.follow:
        return follow(vast, ledger, rental, settings.poll_seconds)
    return screen.print(vast.logs(rental.instance_id, LOG_LINES), markup=False)


def follow(vast: Vast, ledger: Ledger, rental: Rental, seconds: float) -> None:
    """New lines of the log until the instance is gone. Ctrl-C leaves it running."""
    lines: list[str] = []
    try:
        while vast.show(rental.instance_id) is not None:
            seen, lines = lines, vast.logs(rental.instance_id, 1000).splitlines()
            for line in lines[overlap(seen, lines) :]:
                screen.print(line, markup=False)
            if time.time() > rental.deadline + SECONDS_OVER:
                raise UserError(f"past its deadline, its results perhaps on its disk. {still_billed(rental)}")
            time.sleep(seconds)
    except Interrupted as interruption:
        goes_on = f"instance {rental.instance_id} goes on without an onlooker"
        raise Interrupted(interruption.signum, goes_on) from None
    ledger.end(rental, State.DESTROYED)
    screen.print(f"instance {rental.instance_id} is gone, ${rental.cost:.3f} by the clock")


def overlap(seen: list[str], lines: list[str]) -> int:
    """How many of `lines`, a later tail of the same log, were seen: the longest end of `seen` that begins it."""
    for start in range(max(len(seen) - len(lines), 0), len(seen)):
        if seen[start:] == lines[: len(seen) - start]:
            return len(seen) - start
    return 0


def destroy(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    rental = chosen(settings, ledger)
    if not vast.destroy(rental.instance_id):
        raise UserError(still_billed(rental))
    ledger.end(rental, State.DESTROYED)
    screen.print(f"instance {rental.instance_id} is gone, ${rental.cost:.3f} by the clock")


def reap(settings: DictConfig, vast: Vast, ledger: Ledger) -> None:
    """Destroys, after a question, this project's instances that are past their deadline or unknown to the ledger."""
    rows = refreshed(vast, ledger)
    known = {rental.label: rental for rental in ledger.rentals()}
    overdue = [row for row in rows if row["label"] not in known or (deadline_of(row["label"]) or 0) < time.time()]
    for row in overdue:
        why = "past its deadline" if row["label"] in known else f"not in {ledger.folder}"
        price = f"${row['dph_total']:.3f}/h"
        screen.print(f"instance {row['id']}  {row['label']}  {row.get('actual_status')}  {price}  {why}")
    if not overdue:
        return screen.print(f"nothing to reap; {len(rows)} instances are within their deadlines")
    if not settings.yes and not confirmed(f"destroy these {len(overdue)}? [y/N] "):
        raise UserError("nothing was destroyed: answer y, or set vast.yes=true")
    left = [row["id"] for row in overdue if not vast.destroy(row["id"])]
    for row in overdue:
        if row["label"] in known and row["id"] not in left:
            ledger.end(known[row["label"]], State.DESTROYED)
    if left:
        raise UserError(f"STILL BILLED: {left} could not be destroyed; try again, or at cloud.vast.ai/instances")
    return screen.print(f"{len(overdue)} destroyed")


def confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def chosen(settings: DictConfig, ledger: Ledger) -> Rental:
    """The rental of `vast.instance`, or the only open one."""
    rentals = [rental for rental in ledger.rentals() if rental.instance_id is not None]
    if settings.instance is not None:
        rentals = [rental for rental in rentals if rental.instance_id == settings.instance]
    else:
        rentals = [rental for rental in rentals if rental.is_open]
    if len(rentals) != 1:
        open_ones = ", ".join(str(rental.instance_id) for rental in rentals) or "none"
        raise UserError(f"vast.instance={settings.instance}: {open_ones} in {ledger.folder}; give vast.instance=ID")
    return rentals[0]
