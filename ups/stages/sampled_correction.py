"""What stages 2 and 3 share: a step is the operator's, a mean correction, and a sample of what is left.

Shapes: B batch, N points.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ups.models.corrector import Corrector, Velocity, scaled_without_mean
from ups.models.step import Step
from ups.stages.stage import Stage

TAIL = 6.0  # of the normalised residual, in its local scale: beyond it a few points would be most of the loss


class SampledCorrection(Stage):
    """An ensemble's stage: its step draws noise, and `sample` says how."""

    stochastic = True
    selects_by = "crps"

    def with_evaluations(self, count: int) -> "SampledCorrection":
        """The same stage, whose step takes so many evaluations of the flow."""
        other = copy.copy(self)
        other.evaluations_per_step = count
        return other

    @abstractmethod
    def networks(self) -> tuple[Step, Corrector]:
        """The operator's and the corrector that a step is made with."""

    @abstractmethod
    def sample(self, velocity: Velocity, draw: Callable[[], Tensor]) -> Tensor:
        """draw() -> (B, N) white noise; -> z1 (B, N), what is left in units of its local scale."""

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        draw = lambda: torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)
        return self.sampled_step(u, nu, time_step, draw)[0]

    def sampled_step(
        self, u: Tensor, nu: Tensor, time_step: float, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One member's next frame, and at its points the scale of what was sampled; all (B, N)."""
        operator, corrector = self.networks()
        with full_precision(u):
            opened = operator.opened(u, nu, time_step)
        mean, scale = corrector.moments(opened, nu, time_step)
        z = self.sample(corrector.velocity_at(opened, scale, nu, time_step), draw).clamp(-TAIL, TAIL)
        with full_precision(u):
            state = opened.after + mean + scaled_without_mean(z, scale)
            return opened.to_field(state), opened.at_points(scale)


def full_precision(like: Tensor) -> torch.autocast:
    """For the operator's part of a step: what it gets wrong is below half precision."""
    return torch.autocast(like.device.type, enabled=False)
