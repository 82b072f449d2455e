"""A control of stage 3: its networks, its rollouts and its loss, but a single prediction without noise.

The CRPS of one member is its absolute error. So this is what the loss alone, in its two units, is worth.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.models.corrector import Velocity
from ups.stages.consistency_distill import ConsistencyDistill
from ups.stages.sampled_correction import full_precision
from ups.stages.stage import Stage


class StudentWithoutNoise(ConsistencyDistill):
    """Its step is the student's operator's and the mean correction."""

    stochastic = False
    selects_by = Stage.selects_by

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.members = 1  # fewer than a student may have: there is no spread to learn

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._rollout_crps(batch), {}

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return super().sampled_step(u, nu, time_step, lambda: u)[0]

    def sampled_step(
        self, u: Tensor, nu: Tensor, time_step: float, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """With the teacher's scale as the loss's unit: without noise, its own has no gradient."""
        after, _ = super().sampled_step(u, nu, time_step, draw)
        operator, corrector = self.teacher.networks()
        with torch.no_grad():
            with full_precision(u):
                opened = operator.opened(u, nu, time_step)
            scale = corrector.moments(opened, nu, time_step)[1]
        return after, opened.at_points(scale)

    def sample(self, velocity: Velocity, draw: Callable[[], Tensor]) -> Tensor:
        return torch.zeros_like(draw())
