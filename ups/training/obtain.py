"""`obtain`: the trained stage that a config asks for, found in the store or trained, its prerequisites first."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from ups.callbacks.callback import Callback
from ups.config import build
from ups.data.batches import batch_at
from ups.data.trajectories import Splits
from ups.errors import UserError
from ups.files import locked, read_json
from ups.machine import processes
from ups.stages.stage import Stage, called_networks
from ups.training.distributed import by_first, first_ahead
from ups.training.identity import Identity
from ups.training.levers import building, evaluating, stepping
from ups.training.loop import LoopSettings, Training, train
from ups.training.optimizer import OptimizerSettings
from ups.training.plan import Planned
from ups.training.runtime import Runtime, choose_threads, compile_each
from ups.training.state import read_state
from ups.training.store import IDENTITY, STATE, Entry

# Of a stage's node; the rest is the stage's.
LOOP_KEYS = ("name", "steps", "batch_size", "symmetries", "evaluations", "optimizer")


@dataclass(frozen=True)
class Obtained:
    entry: Entry
    stage: Stage
    result: dict


def obtain(plan: list[Planned], data_of, callbacks: list[Callback], runtime: Runtime) -> Obtained:
    """Walk the plan. `data_of()` gives the splits and is called only if something has to be trained."""
    obtained = None
    for place, planned in enumerate(plan, 1):
        required = obtained.stage if obtained else None
        entry, key = planned.entry, "stage" + ".requires" * (len(plan) - place)
        with claimed(entry) as ours:
            if ours:
                planned.action = train_stage(entry, required, data_of(), callbacks, runtime, key)
            else:
                planned.action = "found"
                for callback in callbacks:
                    callback.on_found(entry)
        obtained = load(entry, required, runtime)
    return obtained


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


def load(entry: Entry, required: Stage | None, runtime: Runtime) -> Obtained:
    """A trained stage with its best weights, frozen."""
    stage = build_stage(entry.identity, required, runtime)
    entry.load_weights(stage.network)
    stage.network.requires_grad_(False).eval()
    return Obtained(entry, stage, entry.result())


def load_chain(identity: Identity, store: Path, runtime: Runtime) -> Obtained:
    """A trained stage and all it requires, from one store; a `UserError` if one is missing."""
    obtained = None
    for each in identity.chain():
        entry = Entry(store, each)
        if not entry.is_trained:
            raise UserError(f"{entry.path} is missing, and {identity.folder} requires it: train or copy it")
        obtained = load(entry, obtained.stage if obtained else None, runtime)
    return obtained


def build_stage(identity: Identity, required: Stage | None, runtime: Runtime, key: str = "stage") -> Stage:
    """Untrained, with initial weights that are a function of the seed. `key` is its place in the config."""
    content = identity.content
    node = {key: value for key, value in content["stage"].items() if key not in LOOP_KEYS and key != "requires"}
    arguments = {"requires": required}
    if "network" in node:
        arguments["network"] = build(OmegaConf.create(node.pop("network")), f"{key}.network", partial=True)
    elif required is None:
        arguments["model"] = build(OmegaConf.create(content["model"]), "model", partial=True)
    torch.manual_seed(content["seed"])
    with building(identity, key, runtime.device):
        stage = build(OmegaConf.create(node), key, **arguments)
        stage.network.to(runtime.device)
    return stage


def check_foreign(entry: Entry, runtime: Runtime) -> None:
    """Raise if an entry from elsewhere is not what its name says, or would not load."""
    content = read_json(entry.path / IDENTITY)
    if Identity(content, None).digest != entry.identity.digest:
        raise ValueError(f"its {IDENTITY} is of another stage")
    network = build_chain(entry.identity, runtime).network
    if entry.is_trained:
        entry.result()
        entry.rows()
        return entry.load_weights(network)
    state = read_state(entry.path / STATE)
    if state.facts["digest"] != entry.identity.digest:
        raise ValueError(f"its {STATE} is of another stage")
    network.load_state_dict(state.tensors["network"])
    return network.load_state_dict(state.tensors["average"])


def build_chain(identity: Identity, runtime: Runtime, key: str = "stage") -> Stage:
    """Untrained, its prerequisites too."""
    required = build_chain(identity.requires, runtime, f"{key}.requires") if identity.requires else None
    return build_stage(identity, required, runtime, key)


def train_stage(
    entry: Entry, required: Stage | None, data: Splits, callbacks: list[Callback], runtime: Runtime, key: str
) -> str:
    """Train or resume one stage, which stands at `key` in the config; -> "trained" or "resumed"."""
    content = entry.identity.content
    node = content["stage"]
    settings = LoopSettings(
        **{key: node[key] for key in LOOP_KEYS if key != "optimizer"},
        optimizer=OptimizerSettings(**node["optimizer"]),
        seed=content["seed"],
        key=key,
    )
    stage = build_stage(entry.identity, required, runtime, key)
    check_data(settings, stage, data)
    training = Training(stage, settings, data, entry)
    with first_ahead():  # it sets aside a state that cannot be read
        state = entry.load_state()
    if state:
        training.load_state(state)
    if state and state.facts["processes"] == processes():
        if runtime.threads is None:
            torch.set_num_threads(state.facts["threads"])
    else:
        with stepping(entry.identity, key, runtime.device):
            choose_threads(runtime, lambda: trial_step(training))
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
        "skipped": training.skipped,
        "seconds": {"training": round(training.seconds, 1), "this_start": round(time.monotonic() - started, 1)},
    }))  # fmt: skip
    for callback in callbacks:
        callback.on_trained(training)
    return "resumed" if state else "trained"


def parameter_count(network: nn.Module) -> int:
    """Real numbers: a complex one is two."""
    return sum(each.numel() * (1 + each.is_complex()) for each in network.parameters())


def trial_step(training: Training) -> None:
    """A forward and a backward pass of one process that leave no trace, for timing."""
    settings, stage = training.settings, training.stage
    size = settings.batch_size // processes()
    batch = batch_at(training.data.train, size, stage.frames_per_sample - 1, settings.seed, 0, settings.symmetries)
    stage.loss(batch)[0].backward()
    training.optimizer.zero_grad(set_to_none=True)


def check_data(settings: LoopSettings, stage: Stage, data: Splits) -> None:
    frames = data.train.u.shape[1]
    if stage.frames_per_sample > frames:
        raise UserError(
            f"{settings.key}.unroll={stage.frames_per_sample - 1} ({settings.name}): the training data has {frames} "
            f"frames; choose at most {frames - 1}"
        )
    samples = len(data.train) * (frames - stage.frames_per_sample + 1)
    if settings.batch_size > samples:
        raise UserError(
            f"{settings.key}.batch_size={settings.batch_size} ({settings.name}): the training data has only {samples} "
            f"samples ({len(data.train)} trajectories); choose at most that, or raise dataset.train"
        )
