"""The folder of trained stages, each in `STAGE-DIGEST/`:

    identity.json          what was hashed
    weights.safetensors    the best averaged weights
    metrics.csv            every point of the training, over all its starts
    result.json            the scores, and the weights' SHA-256; written last, so a folder that has it is complete
    state.safetensors, state.previous.safetensors   what an unfinished training resumes from

Everything is written to a temporary name, synced and renamed.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from ups.console import console
from ups.errors import UserError
from ups.files import locked, read_csv, write_csv, write_json
from ups.tensors import read_tensors, write_tensors
from ups.training.identity import Identity, differences
from ups.training.state import Damaged, State, read_state, write_state

IDENTITY, WEIGHTS, METRICS, RESULT = "identity.json", "weights.safetensors", "metrics.csv", "result.json"
STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
TRAINED = (IDENTITY, WEIGHTS, METRICS, RESULT)
UNFINISHED = (IDENTITY, STATE)


class Entry:
    """One stage's place in the store, trained or not."""

    def __init__(self, root: Path, identity: Identity):
        self.root, self.identity = root, identity
        self.path = root / identity.folder

    @property
    def is_trained(self) -> bool:
        return (self.path / RESULT).exists()

    @property
    def is_started(self) -> bool:
        return not self.is_trained and any(self._states())

    @property
    def artifact(self) -> str:
        """Its name where entries are kept elsewhere."""
        return self.identity.folder if self.is_trained else unfinished(self.identity)

    def files(self) -> dict[str, Path]:
        """What it takes to use it, or to go on with it, elsewhere: the names there, the files here."""
        if self.is_trained:
            return {name: self.path / name for name in TRAINED}
        return {IDENTITY: self.path / IDENTITY, STATE: self._states()[0]}

    def adopt(self, other: "Entry") -> None:
        """Take the files of an entry of another store on this disk; the result comes last, as in a training."""
        with locked(self.path):
            if self.is_trained or (self.is_started and not other.is_trained):
                return  # by a run that was faster
            self.path.mkdir(exist_ok=True)
            for name in (IDENTITY, WEIGHTS, METRICS, STATE, RESULT):
                if (other.path / name).exists():
                    os.replace(other.path / name, self.path / name)
            if self.is_trained:
                self._remove_states()

    def result(self) -> dict:
        return json.loads((self.path / RESULT).read_text())

    def rows(self) -> list[dict[str, float]]:
        """The points of its training."""
        return read_csv(self.path / METRICS)

    def save_state(self, state: State) -> None:
        """Keeps the state before, for the case that this one turns out torn."""
        self.begin()
        write_state(self.path / STATE, state, keep_as=self.path / PREVIOUS)

    def load_state(self) -> State | None:
        """The newest sound state; one that is damaged is set aside, with a line that says so."""
        files = self._states()
        for file in files:
            try:
                state = read_state(file)
                if state.facts.get("digest") != self.identity.digest:
                    raise Damaged("it is of another stage")
                return state
            except Damaged as error:
                aside = file.with_name(f"{file.name}.damaged")
                os.replace(file, aside)
                console.print(f"warning: {file} is damaged ({error}): set aside as {aside.name}")
        if files:
            console.print(f"warning: no sound state is left in {self.path}: the training starts from step 0")
        return None

    def saved_step(self) -> int | None:
        """Of the state that a new start would go on from."""
        for file in self._states():
            with suppress(Damaged):
                return read_state(file).facts["step"]
        return None

    def finish(self, weights: dict[str, Tensor], rows: list[dict[str, float]], result: dict) -> None:
        self.begin()
        file = self.path / WEIGHTS
        write_tensors(file, weights)
        write_csv(self.path / METRICS, list(dict.fromkeys(name for row in rows for name in row)), rows)
        write_json(self.path / RESULT, result | {"sha256": _sha256(file)})
        self._remove_states()

    def load_weights(self, network: nn.Module) -> None:
        """Of a trained entry."""
        file = self.path / WEIGHTS
        try:
            if _sha256(file) != self.result().get("sha256"):
                raise UserError(f"{file} is damaged, its checksum does not fit: remove {self.path} and train it again")
            network.load_state_dict(read_tensors(file)[0])
        except FileNotFoundError:
            raise UserError(f"{file} is missing: remove {self.path} and train it again") from None
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{file} does not fit its identity.json ({str(error).splitlines()[0]})") from error

    def begin(self) -> None:
        if not (self.path / IDENTITY).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / IDENTITY, self.identity.content)

    def why_new(self) -> str:
        """What sets it apart from the nearest trained entry of the same stage."""
        found = [
            differences(self.identity.content, json.loads(file.read_text()))
            for file in self.root.glob(f"{self.identity.stage}-*/{IDENTITY}")
            if (file.parent / RESULT).exists()
        ]
        if not found:
            return f"no {self.identity.stage} in {self.root}"
        nearest = min(found, key=len)
        more = f" and {len(nearest) - 2} more" if len(nearest) > 2 else ""
        return "; ".join(nearest[:2]) + more

    def _states(self) -> list[Path]:
        """The newest first."""
        return [file for file in (self.path / STATE, self.path / PREVIOUS) if file.exists()]

    def _remove_states(self) -> None:
        for file in self._states():
            file.unlink()


def unfinished(identity: Identity) -> str:
    """The name of an unfinished entry's artifact."""
    return f"{identity.folder}-unfinished"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
