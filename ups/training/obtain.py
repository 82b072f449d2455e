"""`obtain`: the trained stage that a config asks for, found in the store or trained, its prerequisites first."""

import inspect
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from ups.callbacks.callback import Callback
from ups.config import LOOP_KEYS, build, keyed
from ups.console import console
from ups.data.batches import batch_at, generator_of
from ups.data.trajectories import Dataset, Splits
from ups.errors import UserError
from ups.files import locked, read_json
from ups.machine import processes
from ups.provenance import provenance
from ups.stages.stage import Stage, called_networks
from ups.training.distributed import by_first, first_ahead
from ups.training.identity import Identity, read_identity
from ups.training.levers import building, evaluating, stepping
from ups.training.loop import LoopSettings, Training, train
from ups.training.optimizer import OptimizerSettings
from ups.training.plan import Planned
from ups.training.runtime import Runtime, choose_threads, compile_each, max_threads
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


def obtain(plan: list[Planned], data_of, callbacks: list[Callback], runtime: Runtime) -> Obtained:
    """Walk the plan. `data_of()` gives the splits and is called only if something has to be trained."""
    required = None
    for place, planned in enumerate(plan, 1):
        entry, key = planned.entry, key_of(place, plan)
        with claimed(entry) as ours:
            if ours:
                planned.action = train_stage(entry, required, data_of(), callbacks, runtime, key)
            else:
                planned.action = "found"
                for callback in callbacks:
                    callback.on_found(entry)
        required = load(entry, required, runtime)
    return required


@contextmanager
def claimed(entry: Entry) -> Iterator[bool]:
    """Whether it is this run that trains the entry; then its lock is held inside. One process decides for all."""
    with ExitStack() as lock:

        def claim() -> bool:
            if entry.is_trained:
                entry.remove_states()  # of a run that was killed when it had all but done so
                return False
            lock.enter_context(locked(entry.path))
            return not entry.is_trained  # by the run this one waited for

        yield by_first(claim)


def load(entry: Entry, required: Obtained | None, runtime: Runtime) -> Obtained:
    """A trained stage with its best weights, frozen."""
    stage = build_stage(entry.identity, required and required.stage, runtime)
    result = entry.load_weights(stage.network, required and required.sha256)
    stage.network.requires_grad_(False).eval()
    return Obtained(entry, stage, result)


def load_checkpoint(checkpoint: Path, runtime: Runtime, key: str = "checkpoint") -> Obtained:
    """A trained stage and all it requires, from its folder `store/STAGE-DIGEST`, which the config's `key` names."""
    folder = Path(os.path.abspath(checkpoint))  # its name counts, also that of a link
    if not (folder / IDENTITY).exists():
        raise UserError(f"{key}={checkpoint}: no trained stage is there (it has no {IDENTITY})")
    identity = read_identity(folder / IDENTITY)
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


def build_stage(identity: Identity, required: Stage | None, runtime: Runtime, key: str | None = None) -> Stage:
    """Untrained, with initial weights that are a function of the seed. `key` is its place in the config of a training.

    Raises a `UserError` for an argument that the stage or its network refuses, and where memory does not suffice.
    """
    content = identity.content
    node = {name: value for name, value in content["stage"].items() if name not in (*LOOP_KEYS, "requires")}
    arguments = {"requires": required}
    if "network" in node:
        arguments["network"] = build(OmegaConf.create(node.pop("network")), f"{key or 'stage'}.network", partial=True)
    make = build(OmegaConf.create(node), key or "stage", partial=True)
    if "model" in inspect.signature(make).parameters:
        arguments["model"] = build(OmegaConf.create(content["model"]), "model", partial=True)
    torch.manual_seed(content["seed"])
    with building(identity, key, runtime.device):
        stage = make(**arguments)
        stage.network.to(runtime.device)
    return stage


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


def build_chain(identity: Identity, runtime: Runtime) -> list[Stage]:
    """Untrained; the first prerequisite comes first."""
    chain = identity.chain()
    stages: list[Stage] = []
    for place, each in enumerate(chain, 1):
        stages.append(build_stage(each, stages[-1] if stages else None, runtime, key_of(place, chain)))
    return stages


def key_of(place: int, chain: Sequence) -> str:
    """Where the stage at `place`, counted from 1, stands in the config."""
    return "stage" + ".requires" * (len(chain) - place)


def try_out(identity: Identity, dataset: Dataset, runtime: Runtime) -> None:
    """Build the chain and take one step of each stage: a `UserError` for what the networks and the data's shape do not
    allow, before anything is fetched or generated.
    """
    chain = identity.chain()
    stages, example = build_chain(identity, runtime), dataset.example()
    if example is None:
        return
    u, nu = example.u[:, 0].to(runtime.device), example.nu.to(runtime.device)
    for place, (each, stage) in enumerate(zip(chain, stages, strict=True), 1):
        key = key_of(place, chain)
        check_frames(key, each.stage, stage, example.u.shape[1])
        own = each.content["stage"].get("network")  # what it requires has just taken its step
        network_key, node = ("model", each.content["model"]) if own is None else (f"{key}.network", own)
        with torch.no_grad(), building(each, key, runtime.device):
            try:
                stage.step(u, nu, example.time_step, generator_of(runtime.device, 0))
            except UserError as error:
                raise UserError(keyed(str(error), network_key, node)) from error
    example.window(dataset.initial_frame, dataset.rollout_steps, ("dataset.initial_frame", "dataset.rollout_steps"))


def train_stage(
    entry: Entry, required: Obtained | None, data: Splits, callbacks: list[Callback], runtime: Runtime, key: str
) -> str:
    """Train or resume one stage, which stands at `key` in the config; -> "trained" or "resumed"."""
    settings = settings_of(entry.identity, key)
    stage = build_stage(entry.identity, required and required.stage, runtime, key)
    sha256 = required and required.sha256
    check_data(settings, stage, data)
    with building(entry.identity, key, runtime.device):  # its average and the optimizer's memory are many more
        training = Training(stage, settings, data, entry, required=sha256, made_by=runtime.facts)
    with first_ahead():  # it sets aside a state that cannot be read
        state = entry.load_state(sha256)
    if state:
        training.load_state(state)
        warn_of_changes(entry, state, runtime)
    if state and by_first(lambda: is_repeatable(state, runtime)):  # one answer: what follows is done by all
        if runtime.threads is None:
            torch.set_num_threads(state.facts["threads"])
    else:
        with stepping(entry.identity, key, runtime.device):
            choose_threads(runtime, lambda: trial_step(training, runtime))
    if runtime.compile:
        compile_each(called_networks(stage.network))

    started = time.monotonic()
    train(training, callbacks, runtime)
    with evaluating(entry.identity, key, runtime.device, "test"):
        scores = by_first(lambda: stage.evaluate(data.test))
    by_first(lambda: entry.finish(training.best_weights, training.rows, {
        "score": training.best["rollout_nrmse"],
        "metrics": {"validation": training.best, "test": scores},
        "parameters": parameter_count(stage.network),
        "made_by": provenance(runtime.device, runtime.precision),
        "requires": sha256,
        "skipped": training.skipped,
        "seconds": {"training": round(training.seconds, 1), "this_start": round(time.monotonic() - started, 1)},
    }))  # fmt: skip
    for callback in callbacks:
        callback.on_trained(training)
    return "resumed" if state else "trained"


def settings_of(identity: Identity, key: str) -> LoopSettings:
    node = identity.content["stage"]
    return LoopSettings(
        **{name: node[name] for name in LOOP_KEYS if name != "optimizer"},
        optimizer=OptimizerSettings(**node["optimizer"]),
        seed=identity.content["seed"],
        key=key,
    )


def is_repeatable(state: State, runtime: Runtime) -> bool:
    """Whether this machine can take the state's further steps as the one that saved it would have."""
    device = state.facts.get("device", runtime.device.type)  # older states do not tell
    alike = (device, state.facts["processes"]) == (runtime.device.type, processes())
    return alike and state.facts["threads"] <= max_threads()


def check_tells_its_machine(state: State) -> None:
    """Raise a `KeyError` if `is_repeatable` could not answer for the state."""
    if lacking := {"processes", "threads"} - state.facts.keys():
        raise KeyError(min(lacking))


def warn_of_changes(entry: Entry, state: State, runtime: Runtime) -> None:
    """Where a state goes on otherwise than it was begun; of what older ones do not tell, nothing is said."""
    before, now = state.facts, runtime.facts
    changes = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changes:
        console.print(
            f"warning: {entry.path} goes on with {', '.join(changes)}: its weights will not be those of an "
            "uninterrupted training"
        )


def parameter_count(network: nn.Module) -> int:
    """Real numbers: a complex one is two."""
    return sum(each.numel() * (1 + each.is_complex()) for each in network.parameters())


def trial_step(training: Training, runtime: Runtime) -> None:
    """A forward and a backward pass of one process that leave no trace, for timing."""
    settings, stage = training.settings, training.stage
    size = settings.batch_size // processes()
    batch = batch_at(training.data.train, size, stage.frames_per_sample - 1, settings.seed, 0, settings.symmetries)
    with runtime.autocast():
        loss, _ = stage.loss(batch)
    loss.backward()
    training.stage.network.zero_grad()


def check_frames(key: str, name: str, stage: Stage, frames: int) -> None:
    if stage.frames_per_sample > frames:
        raise UserError(
            f"{key}.unroll={stage.frames_per_sample - 1} ({name}): the training data has {frames} frames; choose at "
            f"most {frames - 1}"
        )


def check_data(settings: LoopSettings, stage: Stage, data: Splits) -> None:
    frames = data.train.u.shape[1]
    check_frames(settings.key, settings.name, stage, frames)
    samples = len(data.train) * (frames - stage.frames_per_sample + 1)
    if settings.batch_size > samples:
        raise UserError(
            f"{settings.key}.batch_size={settings.batch_size} ({settings.name}): the training data has only {samples} "
            f"samples ({len(data.train)} trajectories); choose at most that, or raise dataset.train"
        )
