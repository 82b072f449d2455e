"""What this machine has rented: a folder with one JSON file for each rental, written before Vast is asked."""

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from ups.errors import UserError, first_line
from ups.files import write_json

PREFIX = "ups-until-"
SHUNNED_DAYS = 7


class State(str, Enum):
    ASKED, LOADING, RUNNING, DESTROYED, NOT_RENTED = "asked", "loading", "running", "destroyed", "not rented"


@dataclass
class Rental:
    """Times in seconds since 1970, prices in dollars an hour. instance_id is None until Vast has given one."""

    label: str
    offer_id: int
    machine_id: int
    gpu: str
    price_per_hour: float
    cost_limit: float
    asked: float
    deadline: float
    commit: str
    branch: str
    overrides: list[str]
    run_folder: str
    wandb_url: str | None
    instance_id: int | None = None
    state: State = State.ASKED
    ended: float | None = None
    machine_failed: str | None = None  # why the machine is not taken again for a while
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.state = State(self.state)

    @property
    def cost(self) -> float:
        """Dollars so far, by the clock: a little more than the bill, which begins when the machine has loaded."""
        if self.state == State.NOT_RENTED:
            return 0.0
        return self.hours * self.price_per_hour

    @property
    def hours(self) -> float:
        """Until its end, now, or the deadline, whichever is first; the end of one that nobody watched is not known."""
        return max(min(self.ended or time.time(), self.deadline) - self.asked, 0.0) / 3600

    @property
    def is_open(self) -> bool:
        return self.state not in (State.DESTROYED, State.NOT_RENTED)


class Ledger:
    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, rental: Rental) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{rental.label}.json", asdict(rental))

    def rentals(self) -> list[Rental]:
        """The oldest first."""
        return sorted(map(read, self.folder.glob(f"{PREFIX}*.json")), key=lambda rental: rental.asked)

    def failed_machines(self) -> set[int]:
        """Of the last days; what failed before may have been repaired."""
        since = time.time() - SHUNNED_DAYS * 86400
        return {rental.machine_id for rental in self.rentals() if rental.machine_failed and rental.asked > since}

    def end(self, rental: Rental, state: State, note: str | None = None) -> None:
        rental.state, rental.ended = state, time.time()
        if note:
            rental.notes.append(note)
        self.save(rental)


def read(file: Path) -> Rental:
    try:
        return Rental(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is no rental of this version ({first_line(error)}): move it away") from error


def new_label(deadline: float) -> str:
    """Unique, and readable to `reap` from any clone: it says when the rental ends."""
    return f"{PREFIX}{datetime.fromtimestamp(deadline, timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def deadline_of(label: str) -> float | None:
    try:
        stamp = datetime.strptime(label.removeprefix(PREFIX)[:16], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return None
    return stamp.replace(tzinfo=timezone.utc).timestamp()
