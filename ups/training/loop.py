"""The one training loop. It knows no stage by name and no logger: callbacks watch, the stage computes."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ups.callbacks.callback import Callback
from ups.data.batches import batch_at
from ups.data.trajectories import Splits
from ups.errors import UserError
from ups.machine import processes
from ups.signals import StopSignal, interruption
from ups.stages.stage import Stage
from ups.training.distributed import agreed, by_first, mean_over_processes, own_part
from ups.training.levers import evaluating, stepping
from ups.training.nonfinite import refuse_or_skip
from ups.training.optimizer import Average, OptimizerSettings, learning_rate
from ups.training.runtime import Runtime
from ups.training.soap import SOAP
from ups.training.state import State
from ups.training.store import Entry


@dataclass(frozen=True)
class LoopSettings:
    """What a stage's node of the config says to the loop."""

    name: str
    steps: int
    batch_size: int
    validations: int
    optimizer: OptimizerSettings
    seed: int
    symmetries: Sequence[str] = ()  # of ups/data/symmetries.py, which the batches get
    key: str = "stage"  # where the node stands in the config

    def validates_at(self, step: int) -> bool:
        """`validations` times, evenly spaced, the last at the end."""
        return step * self.validations // self.steps > (step - 1) * self.validations // self.steps


@dataclass
class Training:
    """A training under way: what callbacks look at and what a checkpoint holds."""

    stage: Stage
    settings: LoopSettings
    data: Splits
    entry: Entry
    step: int = 0
    evaluated: int = 0  # the step of the last validation
    skipped: int = 0  # steps that were not finite
    best: dict[str, float] = field(default_factory=dict)  # the scores of the best weights, with their step
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)  # of the last step: loss, lr, grad_norm and the loss's terms
    rows: list[dict[str, float]] = field(default_factory=list)  # the points of the charts so far
    seconds: float = 0.0  # in steps, over all starts
    required: str | None = None  # the SHA-256 of the prerequisite's weights, as the stage has them
    made_by: dict[str, str | bool | None] = field(default_factory=dict)  # `Runtime.facts`
    optimizer: SOAP = field(init=False)
    average: Average = field(init=False)  # of the weights: what is validated and kept

    def __post_init__(self):
        self.optimizer = SOAP(self.stage.network, self.settings.optimizer, self.stage.relative_lr)
        self.average = Average(self.stage.network, self.settings.optimizer.ema_decay)

    @property
    def needs_evaluation(self) -> bool:
        return self.step > self.evaluated and self.settings.validates_at(self.step)

    @property
    def is_complete(self) -> bool:
        return self.step == self.settings.steps and not self.needs_evaluation

    @property
    def provenance(self) -> dict[str, str | bool | int | None]:
        """What the weights depend on beside the config; they are equal only up to rounding on another machine."""
        # Another number of threads sums in another order, and so do more or fewer processes.
        return self.made_by | {"threads": torch.get_num_threads(), "processes": processes()}

    def state(self) -> State:
        facts = {
            "digest": self.entry.identity.digest,
            "requires": self.required,
            "step": self.step,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "best": self.best,
            "values": {name: float(value) for name, value in self.values.items()},
            "rows": self.rows,
            "seconds": self.seconds,
        } | self.provenance
        return State(facts, {
            "network": self.stage.network.state_dict(),
            "average": self.average.network.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
        })  # fmt: skip

    def load_state(self, state: State) -> None:
        tensors = {"best": {}} | state.tensors  # a group without tensors leaves no trace
        self.stage.network.load_state_dict(tensors["network"])
        self.average.network.load_state_dict(tensors["average"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best_weights = tensors["best"]
        for name in ("step", "evaluated", "skipped", "best", "values", "rows", "seconds"):
            setattr(self, name, state.facts[name])


def train(training: Training, callbacks: Iterable[Callback], runtime: Runtime) -> None:
    """From the training's step to its last; the stage's network is then its average, with the weights that validated
    best.
    """
    settings, stage, data = training.settings, training.stage, training.data
    place = (training.entry.identity, settings.key, runtime.device)
    step_memory, evaluation_memory = stepping(*place), evaluating(*place, "validation")
    callbacks = list(callbacks)

    def call(hook: str, *arguments) -> None:
        for callback in callbacks:
            getattr(callback, hook)(training, *arguments)

    try:
        call("on_start")
        with StopSignal() as stop:
            while not training.is_complete:
                if not training.needs_evaluation:  # as it does after a stop in the middle of one
                    started = time.perf_counter()
                    with step_memory:
                        training_step(training, runtime)
                    training.seconds += time.perf_counter() - started
                    call("on_step")

                if training.needs_evaluation:
                    evaluate = lambda: stop.unless_received(lambda: stage.evaluate(data.validation))
                    with training.average.used_by(stage), evaluation_memory:
                        scores = by_first(evaluate)
                    if scores is not None:
                        training.evaluated = training.step
                        keep_if_best(training, scores)
                        call("on_evaluate", scores)
                stopped_by = agreed(stop.received)
                call("on_checkpoint", stopped_by is not None)
                end_if_stopped(training, stopped_by)
            end_if_stopped(training, agreed(stop.received))  # one that came while the last state was saved
        load_best(training)
        with evaluation_memory:  # for the figures
            call("on_end")
    except BaseException as error:
        call("on_exception", error)
        raise


def end_if_stopped(training: Training, number: int | None) -> None:
    """Raise if a signal has come; the state of this step is saved."""
    if number is not None:
        name, steps, place = training.settings.name, training.settings.steps, training.entry.path
        stopped = f"stopped {name} at step {training.step} of {steps}"
        if training.entry.is_started:
            raise interruption(number, f"{stopped}, saved in {place}; the same command goes on from there")
        raise interruption(number, f"{stopped}; it is not saved, as no callback saves the state")


def training_step(training: Training, runtime: Runtime) -> None:
    """One step of the optimizer. Batch and noise are functions of (seed, step): see `batch_at`.

    Of several processes each computes its part of the batch, and all take the step of the whole.
    """
    settings, stage, network = training.settings, training.stage, training.stage.network
    whole = lambda: batch_at(
        training.data.train, settings.batch_size, stage.frames_per_sample - 1, settings.seed, training.step,
        settings.symmetries,
    )  # fmt: skip
    batch = own_part(whole())
    network.zero_grad()
    with runtime.autocast():
        loss, terms = stage.loss(batch)
    loss.backward()
    loss, terms = loss.detach(), {name: term.detach() for name, term in terms.items()}
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    mean_over_processes([*(parameter.grad for parameter in parameters), loss, *terms.values()])
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.optimizer.clip)
    lr = learning_rate(settings.optimizer, training.step, settings.steps)
    if math.isfinite(float(grad_norm) + float(loss)):
        training.optimizer.step(lr)
        training.average.update(network, training.step)
    else:
        refuse_or_skip(training, whole(), loss, grad_norm, runtime)
    training.step += 1
    training.values = {"loss": loss, "lr": lr, "grad_norm": grad_norm} | terms


def keep_if_best(training: Training, scores: dict[str, float]) -> None:
    """By the validation's rollouts, never by the training loss. One that diverged is never the best."""
    chosen = training.stage.selects_by
    if scores[chosen] < training.best.get(chosen, math.inf):
        training.best = scores | {"step": training.step}
        training.best_weights = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in training.average.network.state_dict().items()
        }  # fmt: skip


def load_best(training: Training) -> None:
    """Into the averaged network, which the stage then has: all its scores are of a network that is not compiled."""
    if not training.best:
        other = f", or set {training.stage.steadied_by}" if training.stage.steadied_by else ""
        raise UserError(
            f"{training.settings.name}: every validation rollout diverged; raise {training.settings.key}.steps{other}"
        )
    training.average.network.load_state_dict(training.best_weights)
    training.stage.network = training.average.network
