"""The folder of trained stages, each in `STAGE-DIGEST/`:

    identity.json          what was hashed
    weights.safetensors    the best averaged weights
    result.json            the scores; written last, so a folder that has it is complete
    state.pt, state.previous.pt   what an unfinished training resumes from

Everything is written to a temporary name, synced and renamed.
"""

import os
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ups.console import console
from ups.errors import UserError
from ups.files import locked, read_json, write, write_json
from ups.training.identity import Identity, differences

IDENTITY, WEIGHTS, RESULT, STATE = "identity.json", "weights.safetensors", "result.json", "state.pt"
TRAINED = (IDENTITY, WEIGHTS, RESULT)
UNFINISHED = (IDENTITY, WEIGHTS, STATE)  # the weights from the first validation on


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
        files = {IDENTITY: self.path / IDENTITY, STATE: self._states()[0]}
        return files | ({WEIGHTS: self.path / WEIGHTS} if (self.path / WEIGHTS).exists() else {})

    def adopt(self, other: "Entry") -> None:
        """Take the files of an entry of another store on this disk; the result comes last, as in a training."""
        with locked(self.path):
            if self.is_trained or (self.is_started and not other.is_trained):
                return  # by a run that was faster
            self.path.mkdir(exist_ok=True)
            for name in (IDENTITY, WEIGHTS, STATE, RESULT):
                if (other.path / name).exists():
                    os.replace(other.path / name, self.path / name)
            if self.is_trained:
                self._remove_states()

    def result(self) -> dict:
        """The scores; a `UserError` if there are none that can be read."""
        result = read_json(self.path / RESULT)
        try:
            test = result["metrics"]["test"]
            scores = (result["score"], test["rollout_nrmse"], test["one_step_nrmse"])
        except (KeyError, TypeError):
            scores = (None,)
        if not all(isinstance(score, float) for score in scores):
            raise UserError(f"{self.path / RESULT} has no scores: remove {self.path} and train it again")
        return result

    def save_state(self, state: dict) -> None:
        """Keeps the state before, for the case that this one turns out torn."""
        self._begin()
        current, previous = self.path / STATE, self.path / "state.previous.pt"
        if current.exists():
            os.replace(current, previous)
        write(current, lambda file: torch.save(state, file))

    def load_state(self) -> dict | None:
        """The newest readable state; one that is not is set aside, with a line that says so."""
        for file in self._states():
            try:
                return read_state(file)
            except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
                aside = file.with_suffix(".damaged")
                os.replace(file, aside)
                console.print(f"warning: {file} cannot be read ({type(error).__name__}); set aside as {aside.name}")
        return None

    def save_best(self, network: nn.Module) -> None:
        self._begin()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        write(self.path / WEIGHTS, lambda file: save_file(tensors, file))

    def load_best(self, network: nn.Module) -> None:
        file = self.path / WEIGHTS
        try:
            network.load_state_dict(load_file(file))
        except FileNotFoundError:
            raise UserError(f"{file} is missing: remove {self.path} and train it again") from None
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{file} does not fit its identity.json ({str(error).splitlines()[0]})") from error

    def finish(self, result: dict) -> None:
        write_json(self.path / RESULT, result)
        self._remove_states()

    def why_new(self) -> str:
        """What sets it apart from the nearest trained entry of the same stage."""
        found = []
        for file in self.root.glob(f"{self.identity.stage}-*/{IDENTITY}"):
            if (file.parent / RESULT).exists():
                try:
                    found.append(differences(self.identity.content, read_json(file)))
                except UserError as error:  # a neighbour's damage is no reason not to train
                    console.print(f"warning: {error}")
        if not found:
            return f"no {self.identity.stage} in {self.root}"
        nearest = min(found, key=len)
        more = f" and {len(nearest) - 2} more" if len(nearest) > 2 else ""
        return "; ".join(nearest[:2]) + more

    def _states(self) -> list[Path]:
        files = (self.path / STATE, self.path / "state.previous.pt")
        return [file for file in files if file.exists()]

    def _remove_states(self) -> None:
        for file in self._states():
            file.unlink()

    def _begin(self) -> None:
        if not (self.path / IDENTITY).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / IDENTITY, self.identity.content)


def read_state(file: Path) -> dict:
    return torch.load(file, map_location="cpu", weights_only=True)


def unfinished(identity: Identity) -> str:
    """The name of an unfinished entry's artifact."""
    return f"{identity.folder}-unfinished"
