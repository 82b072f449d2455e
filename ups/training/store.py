"""The folder of trained stages, each in `STAGE-DIGEST/`:

    identity.json          what was hashed
    weights.safetensors    the best averaged weights
    metrics.csv            every point of the training, over all its starts
    figures/               of its validation rollouts
    result.json            the scores, by what they were made, and the SHA-256 of the weights and of the prerequisite's;
                           written last, so a folder that has it is complete
    state.safetensors, state.previous.safetensors   what an unfinished training resumes from
    nonfinite-STEP.safetensors      the state and the batch of a step whose loss or gradient was not finite
    state*.safetensors.damaged      a state that could not be read, set aside

Everything is written to a temporary name, synced and renamed.
"""

import csv
import os
import re
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from ups.console import console
from ups.errors import UserError, first_line
from ups.files import locked, nulled, read_csv, read_json, set_aside, with_nan, write_csv, write_json
from ups.tensors import Damaged, read_tensors, write_tensors
from ups.training.identity import Identity, differences, from_content
from ups.training.state import State, read_state, write_state

IDENTITY, WEIGHTS, METRICS, RESULT = "identity.json", "weights.safetensors", "metrics.csv", "result.json"
FIGURES = "figures"
STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
TRAINED = (IDENTITY, WEIGHTS, METRICS, RESULT)
NONFINITE = re.compile(r"nonfinite-\d+\.safetensors")


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
    def figures(self) -> Path:
        """A folder; an entry that is from elsewhere may have none."""
        return self.path / FIGURES

    @property
    def artifact(self) -> str:
        """Its name where entries are kept elsewhere."""
        return self.identity.folder if self.is_trained else unfinished(self.identity)

    def files(self) -> dict[str, Path]:
        """What it takes to use it, to go on with it or to look into it elsewhere: the names there, the files here."""
        if self.is_trained:
            return {name: self.path / name for name in TRAINED}
        files = {file.name: file for file in self.path.glob("*") if NONFINITE.fullmatch(file.name)}
        if states := self._states():
            files[STATE] = states[0]
        return files and {IDENTITY: self.path / IDENTITY} | files

    def adopt(self, other: "Entry") -> None:
        """Take the files of an entry of another store on this disk; the result comes last, as in a training."""
        with locked(self.path):
            if self.is_trained or (self.is_started and not other.is_trained):
                return  # by a run that was faster
            self.path.mkdir(exist_ok=True)
            for name, file in other.files().items():
                os.replace(file, self.path / name)
            if self.is_trained:
                self.remove_states()

    def result(self) -> dict:
        """The scores, and by what they were made; a `UserError` if that cannot be read."""
        result = read_json(self.path / RESULT)
        try:
            result |= {key: with_nan(result[key]) for key in ("score", "metrics")}  # of what diverged
            test, _ = result["metrics"]["test"], result["made_by"]["git_commit"]
            scores = (result["score"], test["rollout_nrmse"], test["one_step_nrmse"])
        except (KeyError, TypeError):
            scores = (None,)
        if not all(isinstance(score, float) for score in scores):
            raise UserError(f"{self.path / RESULT} is no result of a training: remove {self.path} and train it again")
        return result

    def rows(self) -> list[dict[str, float]]:
        """The points of its training."""
        file = self.path / METRICS
        try:
            rows = read_csv(file)
            if len(rows) != (count := self.result().get("points", len(rows))):
                raise ValueError(f"{len(rows)} rows of {count}")
            return rows
        except FileNotFoundError:
            raise UserError(f"{file} is missing: copy the folder again, or remove it and train again") from None
        except (ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{file} is damaged ({first_line(error)}): remove its folder and train again") from error

    def save_state(self, state: State) -> None:
        """Keeps the state before, for the case that this one turns out torn."""
        self.begin()
        write_state(self.path / STATE, state, keep_as=self.path / PREVIOUS)

    def load_state(self, required: str | None = None) -> State | None:
        """The newest sound state; one that is damaged is set aside, with a line that says so.

        `required`: the SHA-256 of its prerequisite's weights, as they are in memory.
        """
        files = self._states()
        for file in files:
            try:
                state = read_state(file)
                if state.facts.get("digest") != self.identity.digest:
                    raise Damaged("it is of another stage")
                if on_other_weights(state.facts.get("requires"), required):
                    raise Damaged("its prerequisite has other weights by now")
                return state
            except Damaged as error:
                set_aside(file, str(error))
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
        """`result`: with the SHA-256 of the prerequisite's weights as "requires"."""
        self.begin()
        digest = write_tensors(self.path / WEIGHTS, weights)
        write_csv(self.path / METRICS, list(dict.fromkeys(name for row in rows for name in row)), rows)
        write_json(self.path / RESULT, nulled(result) | {"points": len(rows), "sha256": digest})
        self.remove_states()

    def load_weights(self, network: nn.Module, required: str | None = None) -> dict:
        """Of a trained entry, whose result is returned. `required`: as of `load_state`."""
        file, again = self.path / WEIGHTS, f"remove {self.path} and train it again"
        result = self.result()
        if on_other_weights(result.get("requires"), required):
            raise UserError(f"{self.path} was trained on other weights of {self.identity.requires.folder}: {again}")
        try:
            tensors, metadata = read_tensors(file)
            if metadata["sha256"] != result.get("sha256"):
                raise Damaged(f"it is not the one that {RESULT} was written for")
            network.load_state_dict(tensors)
        except FileNotFoundError:
            raise UserError(f"{file} is missing: {again}") from None
        except Damaged as error:
            raise UserError(f"{file} is damaged ({error}): {again}") from error
        except RuntimeError as error:
            raise UserError(f"{file} does not fit its identity.json ({first_line(error)}): {again}") from error
        return result

    def required_sha256(self) -> str | None:
        """The SHA-256 of the weights that its prerequisite has in this store."""
        required = self.identity.requires and Entry(self.root, self.identity.requires)
        return required.result().get("sha256") if required and required.is_trained else None

    def begin(self) -> None:
        """Its folder with its identity, which is written anew where it is damaged."""
        try:
            intact = from_content(read_json(self.path / IDENTITY)).digest == self.identity.digest
        except (UserError, KeyError, TypeError):
            intact = False
        if not intact:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / IDENTITY, self.identity.content)

    def why_new(self) -> str:
        """What sets it apart from the nearest trained entry of the same stage."""
        found = []
        for file in self.root.glob(f"{self.identity.name}-*/{IDENTITY}"):
            if (file.parent / RESULT).exists():
                try:
                    found.append(differences(self.identity.content, read_json(file)))
                except UserError as error:  # a neighbour's damage is no reason not to train
                    console.print(f"warning: {error}")
        if not found:
            return f"no {self.identity.name} in {self.root}"
        nearest = min(found, key=len)
        more = f" and {len(nearest) - 2} more" if len(nearest) > 2 else ""
        return "; ".join(nearest[:2]) + more

    def _states(self) -> list[Path]:
        """The newest first."""
        return [file for file in (self.path / STATE, self.path / PREVIOUS) if file.exists()]

    def remove_states(self) -> None:
        """Of a trained entry; from a read-only store nothing has to go."""
        for file in self._states():
            with suppress(OSError):
                file.unlink()


def on_other_weights(recorded: str | None, required: str | None) -> bool:
    """Whether something was trained on other weights than are there; what did not record them is trusted."""
    return None not in (recorded, required) and recorded != required


def is_file_of_an_entry(name: str) -> bool:
    """Whether `Entry.files` may have the name: of what somebody else keeps as an entry, nothing else is taken."""
    return name in (*TRAINED, STATE) or bool(NONFINITE.fullmatch(name))


def unfinished(identity: Identity) -> str:
    """The name of an unfinished entry's artifact."""
    return f"{identity.folder}-unfinished"

