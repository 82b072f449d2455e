"""The optimizer's settings, its learning rate as a function of the step, and the exponential average of the weights."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ups.stages.stage import Stage


@dataclass(frozen=True)
class OptimizerSettings:
    """The node `stage.optimizer`."""

    lr: float
    warmup: float
    betas: list[float]
    basis_interval: int | None
    weight_decay: float
    clip: float
    ema_decay: float


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then half a cosine, which would be zero a step after the last."""
    warmup = max(1, round(settings.warmup * steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Average:
    """Exponential average of the weights; the decay rises to its value, so early steps are forgotten."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for own, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(buffer)

    @contextmanager
    def used_by(self, stage: Stage) -> Iterator[None]:
        """The stage predicts with the averaged weights inside."""
        trained, stage.network = stage.network, self.network
        try:
            yield
        finally:
            stage.network = trained
