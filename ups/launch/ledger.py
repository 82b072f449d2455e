"""What this machine has rented: a folder with one JSON file for each rental, written before Vast is asked."""

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

from ups.console import console
from ups.errors import first_line
from ups.files import write_json

PREFIX = "ups-until-"
SHUNNED_DAYS = 7


class State(str, Enum):
    ASKED, LOADING, RUNNING, DESTROYED, NOT_RENTED = "asked", "loading", "running", "destroyed", "not rented"


@dataclass
class Rental:
    """Times in seconds since 1970, prices in dollars an hour, limit and traffic in dollars. instance_id is None until
    Vast has given one."""

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
    traffic: float = 0.0
    instance_id: int | None = None
    state: State = State.ASKED
    ended: float | None = None
    machine_failed: str | None = None  # why the machine is not taken again for a while
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.state = State(self.state)

    @property
    def cost(self) -> float:
        """Dollars so far, by the clock and with all of its traffic: a little more than the bill, which begins when the
        machine has loaded."""
        if self.state == State.NOT_RENTED:
            return 0.0
        return self.hours * self.price_per_hour + self.traffic

    @property
    def hours(self) -> float:
        """Until now, or its end; of one that nobody watched that is not known, but it was before the deadline."""
        end = time.time() if self.is_open else min(self.ended, self.deadline)
        return max(end - self.asked, 0.0) / 3600

    @property
    def is_open(self) -> bool:
        return self.state not in (State.DESTROYED, State.NOT_RENTED)


class Ledger:
    def __init__(self, folder: Path):
        self.folder = folder
        self.strange: set[Path] = set()

    def save(self, rental: Rental) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{rental.label}.json", asdict(rental))

    def rentals(self) -> list[Rental]:
        """The oldest first. A file that is none costs a warning: the bills of the others go on."""
        read = []
        for file in self._files():
            try:
                read.append(Rental(**json.loads(file.read_text())))
            except (TypeError, ValueError) as error:
                if file not in self.strange:
                    console.print(f"warning: {file} is no rental of this version ({first_line(error)}): move it away")
                self.strange.add(file)
        return sorted(read, key=lambda rental: rental.asked)

    def labels(self) -> set[str]:
        """Of all that was ever asked for, also where the file cannot be read."""
        return {file.stem for file in self._files()}

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"{PREFIX}*.json"))

    def failed_machines(self) -> set[int]:
        """Of the last days; what failed before may have been repaired."""
        since = time.time() - SHUNNED_DAYS * 86400
        return {rental.machine_id for rental in self.rentals() if rental.machine_failed and rental.asked > since}

    def end(self, rental: Rental, state: State, note: str | None = None) -> None:
        """Now, unless it was destroyed before: to destroy it once more changes nothing, and so no cost."""
        if rental.state != State.DESTROYED:
            rental.state, rental.ended = state, time.time()
        if note:
            rental.notes.append(note)
        self.save(rental)


def new_label(deadline: float) -> str:
    """Unique, and readable to `reap` from any clone: it says when the rental ends."""
    return f"{PREFIX}{datetime.fromtimestamp(deadline, timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def deadline_of(label: str) -> float | None:
    try:
        stamp = datetime.strptime(label.removeprefix(PREFIX)[:16], "%Y%m%dT%H%M%SZ")
    except ValueError:
        return None
    return stamp.replace(tzinfo=timezone.utc).timestamp()
