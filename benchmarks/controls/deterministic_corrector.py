"""A control of stages 2 and 3: a correction of the same operator's step, of one prediction and without noise.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.models.conditioning import CONDITIONS, physical_scalars
from ups.models.conservative_step import backward_difference
from ups.models.corrector import channels_of, size_of
from ups.stages.sampled_correction import full_precision
from ups.stages.stage import Stage, relative_l2


class DeterministicCorrector(Stage):
    """The operator's inner state plus a zero-sum correction, trained by the relative L2 error of one step's field."""

    def __init__(self, network, requires: Stage):
        self.operator = requires
        self.network = network(in_channels=2, out_channels=1, condition=CONDITIONS)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        u, truth = batch.u.unbind(1)
        return relative_l2(self._corrected(u, batch.nu, batch.time_step), truth).mean(), {}

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return self._corrected(u, nu, time_step)

    def _corrected(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        with torch.no_grad(), full_precision(u):
            opened = self.operator.opened(u, nu, time_step)
        flux = self.network(torch.stack(channels_of(opened), 1), physical_scalars(nu, time_step))[:, 0].float()
        with full_precision(u):
            return opened.to_field(opened.after + size_of(opened.after) * backward_difference(flux))
