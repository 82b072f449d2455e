"""From offers to a machine that runs, or to nothing: whatever happens on the way, no instance is left behind."""

import re
import time
from pathlib import Path

from omegaconf import DictConfig

from ups.console import console
from ups.errors import UserError, first_line, shortened
from ups.launch.job import END_MARK, Job
from ups.launch.ledger import Ledger, Rental, State, new_label
from ups.launch.offers import Offer, no_offer, query, rank, reason
from ups.launch.vast_api import NotRented, Unclear, Vast
from ups.signals import stopped_once, undisturbed

LOOKS = 5  # for an instance that may have been created, or may be gone: one read can miss it
SAME_REFUSALS, MAX_REFUSALS = 2, 10
UNSEEN = "no instance has the label; should one appear, vast.action=reap ends it"
DEAD = ("exited", "offline", "unknown")  # states that never become "running"
NO_IMAGE = re.compile("manifest unknown|manifest for .* not found|pull access denied|repository does not exist")


class MachineFailed(Exception):
    """It was rented and does not come up."""


def offers_for(vast: Vast, settings: DictConfig, money: float, shunned: set[int], taken: set[int]) -> list[Offer]:
    """The best first, at least one."""
    wanted = query(settings.offer, settings.max_hours, settings.disk, settings.interruptible)
    rows = vast.search(wanted, settings.interruptible, settings.disk)
    offers = rank([row for row in rows if row["id"] not in taken], settings, money, shunned)
    if not offers:
        raise no_offer(rows, settings, money, shunned, taken)
    return offers


@stopped_once()
def rent(
    vast: Vast, job: Job, settings: DictConfig, ledger: Ledger, money: float, folder: Path, offers: list[Offer]
) -> Rental:
    """A running instance. `money`: dollars for the run, from which failed tries are paid; `offers`: for the first try.

    Raises `UserError` when no machine came up; everything rented on the way was destroyed, or a line says what was not.
    """
    tried: list[Rental] = []
    while True:
        console.print(reason(offers, settings))
        rental = new_rental(offers[0], job, folder)
        tried.append(rental)
        ledger.save(rental)
        handed_over = False
        try:
            create(vast, job, settings, ledger, rental, offers[0].bid)
            wait_until_running(vast, settings, rental)
            rental.state = State.RUNNING
            ledger.save(rental)
            handed_over = True
            return rental
        except NotRented as error:
            ledger.end(rental, State.NOT_RENTED, str(error))
            console.print(f"offer {rental.offer_id} was not given: {error}")
        except MachineFailed as error:
            rental.machine_failed = str(error)
            console.print(f"machine {rental.machine_id} {error}: it is destroyed and not taken again for a week")
        finally:  # also of what the lines above raise: a signal, a full disk, a closed terminal
            if rental.is_open and not handed_over:
                with undisturbed("what was rented is being destroyed"):
                    clean_up(vast, ledger, rental)
        refuse_more_tries(tried, settings)
        left = money - sum(rental.cost for rental in tried)
        offers = offers_for(vast, settings, left, ledger.failed_machines(), {rental.offer_id for rental in tried})


def refuse_more_tries(tried: list[Rental], settings: DictConfig) -> None:
    """Raise when there were enough, or when it is not the offers' fault."""
    if tried[-1].is_open:
        raise UserError(still_billed(tried[-1]))
    failed = [rental for rental in tried if rental.machine_failed]
    refusals = [rental.notes[-1] for rental in tried if rental.state == State.NOT_RENTED]
    if len(failed) >= settings.max_tries:
        reasons = "; ".join(f"{rental.machine_id} {rental.machine_failed}" for rental in failed)
        raise UserError(
            f"no machine came up in vast.max_tries={settings.max_tries}, and none of them is left rented: {reasons}"
        )
    if refusals and refusals.count(refusals[-1]) >= SAME_REFUSALS and "no_such_ask" not in refusals[-1]:
        raise UserError(f"Vast gives none of its offers: {refusals[-1]}")
    if len(refusals) >= MAX_REFUSALS:
        raise UserError(f"{len(refusals)} offers were gone when asked for, and none of them is left rented: try again")


def new_rental(offer: Offer, job: Job, folder: Path) -> Rental:
    now = time.time()
    deadline = now + offer.hours * 3600
    label = new_label(deadline)
    return Rental(
        label=label, offer_id=offer.id, machine_id=offer.machine_id, gpu=offer.gpu, price_per_hour=offer.price,
        cost_limit=round(offer.cost, 4), traffic=offer.traffic, asked=now, deadline=deadline, commit=job.source.commit,
        branch=job.source.branch, overrides=list(job.overrides), run_folder=str(folder), wandb_url=job.run_page(label),
    )  # fmt: skip


def create(vast: Vast, job: Job, settings: DictConfig, ledger: Ledger, rental: Rental, bid: float | None) -> None:
    """Gives the rental its instance's id. Raises `NotRented`."""
    try:
        rental.instance_id = vast.create(
            rental.offer_id, image=settings.image, disk=settings.disk, label=rental.label, onstart_cmd=job.script,
            env=job.environment(rental.label, rental.deadline), price=bid,
        )  # fmt: skip
    except Unclear as error:
        console.print(f"unclear answer to the request for offer {rental.offer_id} ({error}): looking for its label")
        rental.instance_id = find(vast, rental.label)
        if rental.instance_id is None:
            raise NotRented(f"unclear answer ({error}), and {UNSEEN}") from error
    rental.state = State.LOADING
    ledger.save(rental)


def find(vast: Vast, label: str) -> int | None:
    """The id of the instance with that label; one that was just created may be seen late."""
    for look in range(LOOKS):
        if look:
            time.sleep(vast.pause * 2 ** (look - 1))
        for row in vast.instances(label):
            return row["id"]
    return None


def wait_until_running(vast: Vast, settings: DictConfig, rental: Rental) -> None:
    """Raises `MachineFailed`, or `UserError` if Vast did not take the script whole."""
    minutes = min(settings.loading_minutes, max(rental.deadline - time.time(), 0) / 60)
    limit = time.monotonic() + minutes * 60
    unseen = 0
    while True:
        row = vast.show(rental.instance_id)
        unseen = 0 if row else unseen + 1
        if unseen == LOOKS:
            raise MachineFailed("is gone")
        row = row or {}
        if row.get("onstart") and not row["onstart"].rstrip().endswith(END_MARK.strip()):
            raise UserError("Vast cut the machine's script off: put the overrides into a preset in conf/experiment/")
        status = row.get("actual_status")
        if status == "running":
            return
        message = shortened(row.get("status_msg") or "", 200)
        if NO_IMAGE.search(message):
            raise UserError(f"vast.image={settings.image} cannot be had: {message}")
        said = f" ({message})" if message else ""
        if status in DEAD:
            raise MachineFailed(f"is {status}{said}")
        if time.monotonic() > limit:
            raise MachineFailed(f"was still {status or 'being created'}{said} after {minutes:.3g} minutes")
        time.sleep(settings.poll_seconds)


def clean_up(vast: Vast, ledger: Ledger, rental: Rental) -> None:
    """Destroy what was rented, also what no answer has told of, and read back. Says what it came to; never raises."""
    ended = "of this try nothing is left rented"
    try:
        if rental.instance_id is None:
            rental.instance_id = find(vast, rental.label)
        if rental.instance_id is None:
            ledger.end(rental, State.NOT_RENTED, "stopped before there was an instance")
            ended = UNSEEN
        elif vast.destroy(rental.instance_id):
            ledger.end(rental, State.DESTROYED)
        else:
            ledger.save(rental)
    except Exception as error:  # whatever it is, the bill comes first
        console.print(f"{type(error).__name__}: {first_line(error)}")
    console.print(still_billed(rental) if rental.is_open else ended)


def still_billed(rental: Rental) -> str:
    if rental.instance_id is None:
        look = "`python launch_vast.py vast.action=status` looks for it, vast.action=destroy then ends it"
        return f"PERHAPS STILL BILLED: the label is {rental.label}; {look}"
    return f"STILL BILLED: instance {rental.instance_id} is still there; {destroy_command(rental.instance_id)} ends it"


def destroy_command(instance_id: int) -> str:
    return f"`python launch_vast.py vast.action=destroy vast.instance={instance_id}`"
