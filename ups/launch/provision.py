"""From offers to a machine that runs, or to nothing: whatever happens on the way, no instance is left behind."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from ups.console import console
from ups.errors import Interrupted, UserError
from ups.launch.job import END_MARK, Job
from ups.launch.ledger import Ledger, Rental, State, new_label
from ups.launch.offers import Offer, no_offer, query, rank, reason
from ups.launch.vast_api import NotRented, Unclear, Vast

LOOKS = 3  # at the list, for an instance that an unclear answer may have created
DEAD = ("exited", "offline", "unknown")  # states that never become "running"


class MachineFailed(Exception):
    """It was rented and does not come up."""


def offers_for(vast: Vast, settings: DictConfig, money: float, shunned: set[int], taken: set[int]) -> list[Offer]:
    """The best first, at least one."""
    wanted = query(settings.offer, settings.min_duration, settings.disk)
    rows = vast.search(wanted, settings.interruptible, settings.disk)
    rows = [row for row in rows if row["id"] not in taken]
    offers = rank(rows, settings, money, shunned)
    if not offers:
        raise no_offer(len(rows), settings, money, len(shunned))
    return offers


def rent(
    vast: Vast, job: Job, settings: DictConfig, ledger: Ledger, money: float, folder: Path, offers: list[Offer]
) -> Rental:
    """A running instance. `money`: dollars the run may cost; failed tries are paid of it. `offers`: for the first try.

    Raises `UserError` when no machine came up; everything rented on the way was destroyed, or a line says what was not.
    """
    taken: set[int] = set()
    tried: list[Rental] = []
    for attempt in range(settings.max_tries):
        if attempt:
            left = money - sum(rental.cost for rental in tried)
            offers = offers_for(vast, settings, left, ledger.failed_machines(), taken)
        console.print(reason(offers, settings))
        offer = offers[0]
        taken.add(offer.id)
        rental = new_rental(offer, job, folder)
        tried.append(rental)
        ledger.save(rental)
        try:
            create(vast, job, settings, ledger, rental, offer.bid)
            wait_until_running(vast, settings, rental.instance_id)
            rental.state = State.RUNNING
            ledger.save(rental)
            return rental
        except NotRented as error:
            ledger.end(rental, State.NOT_RENTED, str(error))
            console.print(f"offer {offer.id} was not given ({error}): the next one")
        except MachineFailed as error:
            rental.machine_failed = str(error)
            console.print(f"machine {rental.machine_id} {error}: it is destroyed and not taken again")
            if not end(vast, ledger, rental):
                raise UserError(still_billed(rental)) from error
        except BaseException as error:
            with undisturbed():
                clean_up(vast, ledger, rental)
            if isinstance(error, Interrupted):
                state = "nothing is left rented" if not rental.is_open else still_billed(rental)
                raise Interrupted(error.signum, f"stopped while renting; {state}") from error
            raise
    raise UserError(
        f"no machine came up in vast.max_tries={settings.max_tries}, and nothing is left rented: "
        + "; ".join(f"{rental.machine_id} {rental.machine_failed or rental.notes[-1]}" for rental in tried)
    )


def new_rental(offer: Offer, job: Job, folder: Path) -> Rental:
    now = time.time()
    deadline = now + offer.hours * 3600
    label = new_label(deadline)
    return Rental(
        label=label, offer_id=offer.id, machine_id=offer.machine_id, gpu=offer.gpu, price_per_hour=offer.price,
        cost_limit=round(offer.cost, 4), asked=now, deadline=deadline, commit=job.source.commit,
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
            raise NotRented(f"unclear answer ({error}), and no instance has the label") from error
    rental.state = State.LOADING
    ledger.save(rental)


def find(vast: Vast, label: str) -> int | None:
    """The id of the instance with that label; one that was just created may be seen late."""
    for look in range(LOOKS):
        if look:
            time.sleep(vast.pause)
        for row in vast.instances(label):
            return row["id"]
    return None


def wait_until_running(vast: Vast, settings: DictConfig, instance_id: int) -> None:
    """Raises `MachineFailed`."""
    limit = time.monotonic() + settings.loading_minutes * 60
    while True:
        row = vast.show(instance_id)
        if row is None:
            raise MachineFailed("is gone")
        if row.get("onstart") and not row["onstart"].endswith(END_MARK):
            raise MachineFailed("got the script cut off")
        status = row.get("actual_status")
        if status == "running":
            return
        if status in DEAD:
            raise MachineFailed(f"is {status}")
        if time.monotonic() > limit:
            raise MachineFailed(f"was still {status or 'being created'} after {settings.loading_minutes:g} minutes")
        time.sleep(settings.poll_seconds)


def end(vast: Vast, ledger: Ledger, rental: Rental) -> bool:
    """Destroy and read back."""
    gone = vast.destroy(rental.instance_id)
    if gone:
        ledger.end(rental, State.DESTROYED)
    else:
        ledger.save(rental)
    return gone


def clean_up(vast: Vast, ledger: Ledger, rental: Rental) -> None:
    """After an error or a signal at any moment: destroy what was rented, also what no answer has told of."""
    try:
        if rental.instance_id is None:
            rental.instance_id = find(vast, rental.label)
        if rental.instance_id is None:
            ledger.end(rental, State.NOT_RENTED, "stopped before there was an instance")
        elif not end(vast, ledger, rental):
            console.print(still_billed(rental))
    except UserError as error:
        console.print(f"PERHAPS STILL BILLED: {rental.label} ({error}); look: python launch_vast.py vast.action=reap")


def still_billed(rental: Rental) -> str:
    return (
        f"STILL BILLED: instance {rental.instance_id} is still there; end it: "
        f"python launch_vast.py vast.action=destroy vast.instance={rental.instance_id}"
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C again does not break the clean-up, which is what ends the bill."""
    before = {number: signal.signal(number, _wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(number, frame) -> None:
    console.print("what was rented is being destroyed first")
