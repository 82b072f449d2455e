"""Trained stages from their folders, and whether a folder from elsewhere can be trusted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ups.errors import UserError
from ups.files import read_json
from ups.stages.stage import Stage
from ups.training.build import build_chain, build_stage, settings_of
from ups.training.identity import Identity, read_identity
from ups.training.loop import Training
from ups.training.runtime import Runtime
from ups.training.state import State, read_state
from ups.training.store import IDENTITY, RESULT, STATE, Entry, on_other_weights


@dataclass(frozen=True)
class Obtained:
    entry: Entry
    stage: Stage
    result: dict

    @property
    def sha256(self) -> str:
        """Of its weights."""
        return self.result["sha256"]


def load(entry: Entry, required: Obtained | None, runtime: Runtime) -> Obtained:
    """A trained stage with its best weights, frozen."""
    stage = build_stage(entry.identity, required and required.stage, runtime)
    result = entry.load_weights(stage.network, required and required.sha256)
    stage.network.requires_grad_(False).eval()
    return Obtained(entry, stage, result)


def load_checkpoint(
    checkpoint: Path, runtime: Runtime, key: str = "checkpoint", searchpath: Sequence[Path] = ()
) -> Obtained:
    """A trained stage and all it requires, from its folder `store/STAGE-DIGEST`, which the config's `key` names.

    `searchpath`: folders with stage/, model/ and dataset/ of one's own, whose classes it may be built of.
    """
    folder = Path(os.path.abspath(checkpoint))  # its name counts, also that of a link
    if not (folder / IDENTITY).exists():
        raise UserError(f"{key}={checkpoint}: no trained stage is there (it has no {IDENTITY})")
    identity = read_identity(folder / IDENTITY, searchpath)
    if not Entry(folder.parent, identity).is_trained:
        raise UserError(f"{key}={checkpoint}: its training is not finished; the same train.py command goes on with it")
    return load_chain(identity, folder.parent, runtime)


def load_chain(identity: Identity, store: Path, runtime: Runtime) -> Obtained:
    """A trained stage and all it requires, from one store; a `UserError` if one is missing."""
    obtained = None
    for each in identity.chain():
        entry = Entry(store, each)
        if not entry.is_trained:
            lacks = "is not finished" if entry.is_started else "is missing"
            raise UserError(f"{entry.path} {lacks}, and {identity.folder} requires it: train or copy it")
        obtained = load(entry, obtained, runtime)
    return obtained


def check_foreign(entry: Entry, required: str | None, runtime: Runtime) -> None:
    """Raise if an entry from elsewhere is not what its name says, would not load, or was trained on other weights.

    `required`: the SHA-256 of those that its prerequisite has here.
    """
    content = read_json(entry.path / IDENTITY)
    if Identity(content, None).digest != entry.identity.digest:
        raise ValueError(f"its {IDENTITY} is of another stage")
    stage = build_chain(entry.identity, runtime)[-1]
    if entry.is_trained:
        check_required(entry.result(), required)
        entry.rows()
        entry.load_weights(stage.network)
        return
    states = {name: read_state(file) for name, file in entry.files().items() if name != IDENTITY}
    if not states:
        raise ValueError(f"it has neither a {RESULT} nor a {STATE}")
    for name, state in states.items():
        if state.facts["digest"] != entry.identity.digest:
            raise ValueError(f"its {name} is of another stage")
        check_required(state.facts, required)
        check_tells_its_machine(state)
        Training(stage, settings_of(entry.identity, "stage"), None, entry).load_state(state)


def check_required(trained: dict, required: str | None) -> None:
    if on_other_weights(trained.get("requires"), required):
        raise ValueError("it was trained on other weights of its prerequisite than are here")


def check_tells_its_machine(state: State) -> None:
    """Raise a `KeyError` if `is_repeatable` could not answer for the state."""
    if lacking := {"processes", "threads"} - state.facts.keys():
        raise KeyError(min(lacking))
