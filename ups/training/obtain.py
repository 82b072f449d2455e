"""`obtain`: the trained stage that a config asks for, found in the store or trained, its prerequisites first."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from ups.callbacks.callback import Callback
from ups.console import console
from ups.data.batches import batch_at
from ups.data.trajectories import Splits
from ups.files import locked
from ups.machine import processes
from ups.models.step import called_networks
from ups.provenance import shortened_commit
from ups.training.build import build_stage, check_data, key_of, settings_of
from ups.training.distributed import by_first, first_ahead
from ups.training.levers import building, evaluating, stepping
from ups.training.load import Obtained, load
from ups.training.loop import Training, train
from ups.training.plan import Planned
from ups.training.runtime import Runtime, choose_threads, compile_each, max_threads
from ups.training.state import State
from ups.training.store import Entry


def obtain(
    plan: list[Planned], data_of: Callable[[], Splits], callbacks: list[Callback], runtime: Runtime
) -> Obtained:
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
                entry.begin()
                return False
            lock.enter_context(locked(entry.path))
            return not entry.is_trained  # by the run this one waited for

        yield by_first(claim)


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
        "made_by": training.provenance,
        "requires": sha256,
        "skipped": training.skipped,
        "seconds": {"training": round(training.seconds, 1), "this_start": round(time.monotonic() - started, 1)},
    }))  # fmt: skip
    for callback in callbacks:
        callback.on_trained(training)
    return "resumed" if state else "trained"


def is_repeatable(state: State, runtime: Runtime) -> bool:
    """Whether this machine can take the state's further steps as the one that saved it would have."""
    device = state.facts.get("device", runtime.device.type)  # older states do not tell
    alike = (device, state.facts["processes"]) == (runtime.device.type, processes())
    return alike and state.facts["threads"] <= max_threads()


def warn_of_changes(entry: Entry, state: State, runtime: Runtime) -> None:
    """Where a state goes on otherwise than it was begun; of what older ones do not tell, nothing is said."""
    before, now = state.facts, runtime.facts
    told = lambda name, value: shortened_commit(value) if value and name == "git_commit" else value
    changes = [
        f"{name} {told(name, before[name])} -> {told(name, now[name])}"
        for name in now if before.get(name, now[name]) != now[name]
    ]  # fmt: skip
    if changes:
        console.print(
            f"warning: {entry.path} goes on with {', '.join(changes)}: its weights may not be those of an "
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


