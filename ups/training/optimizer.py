"""AdamW, its learning rate as a function of the step, and the average of the weights."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerSettings:
    """The node `stage.optimizer`."""

    lr: float
    warmup: float
    betas: list[float]
    weight_decay: float
    clip: float
    average: float


def adamw(network: nn.Module, settings: OptimizerSettings, relative_lr: Mapping[str, float]) -> torch.optim.AdamW:
    """`relative_lr`: see Stage. Each group of parameters has its own as "relative_lr"."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(relative_lr.get(name.partition(".")[0], 1.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "relative_lr": relative} for relative, parameters in groups.items()],
        settings.lr, tuple(settings.betas), weight_decay=settings.weight_decay, foreach=True,
    )  # fmt: skip


def set_learning_rate(optimizer: torch.optim.AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["relative_lr"]


def moments(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """All that it remembers; its settings come from the config, the learning rate with each step."""
    remembered = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, named in remembered.items() for name, tensor in named.items()}


def load_moments(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        remembered.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": remembered, "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero at the last step."""
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

    @contextmanager
    def used_by(self, stage) -> Iterator[None]:
        """The stage predicts with the averaged weights inside."""
        trained, stage.network = stage.network, self.network
        try:
            yield
        finally:
            stage.network = trained
