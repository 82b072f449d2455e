"""AdamW, its learning rate as a function of the step, and the average of the weights."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names


@dataclass(frozen=True)
class OptimizerSettings:
    """The node `stage.optimizer`."""

    lr: float
    warmup: float
    betas: list[float]
    weight_decay: float
    clip: float
    average: float


class AdamW:
    """By torch's function: the class `torch.optim.AdamW` imports the compiler, which is two seconds of every start."""

    def __init__(self, network: nn.Module, settings: OptimizerSettings, relative_lr: Mapping[str, float]):
        """`relative_lr`: see Stage."""
        self.settings = settings
        self.groups: dict[float, list[nn.Parameter]] = {}  # by their relative learning rate
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self.groups.setdefault(relative_lr.get(name.partition(".")[0], 1.0), []).append(parameter)
        self.memory = {
            parameter: {"step": torch.tensor(0.0)} | {name: torch.zeros_like(parameter) for name in MOMENTS}
            for group in self.groups.values() for parameter in group
        }  # fmt: skip

    @torch.no_grad()
    def step(self, lr: float) -> None:
        beta1, beta2 = self.settings.betas
        for relative_lr, group in self.groups.items():
            parameters = [parameter for parameter in group if parameter.grad is not None]
            memory = [self.memory[parameter] for parameter in parameters]
            moments = ([each[name] for each in memory] for name in MOMENTS)
            adamw(
                parameters, [parameter.grad for parameter in parameters], *moments, [],
                [each["step"] for each in memory],
                lr=lr * relative_lr, beta1=beta1, beta2=beta2, weight_decay=self.settings.weight_decay, eps=1e-8,
                amsgrad=False, maximize=False, foreach=True, has_complex=any(map(torch.is_complex, parameters)),
            )  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers; its settings come from the config, the learning rate with each step."""
        return {
            f"{index}.{name}": tensor
            for index, memory in enumerate(self.memory.values()) for name, tensor in memory.items()
        }  # fmt: skip

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])


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
    def used_by(self, stage) -> Iterator[None]:
        """The stage predicts with the averaged weights inside."""
        trained, stage.network = stage.network, self.network
        try:
            yield
        finally:
            stage.network = trained
