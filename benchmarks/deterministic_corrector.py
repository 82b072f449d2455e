"""A control of stage 2: a correction of the same prediction, of as many parameters and as long a training, no noise.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.models.conditioning import physical_scalars
from ups.models.conservative_step import CONDITIONS, backward_difference
from ups.models.corrector import INITIAL_SCALE
from ups.stages.stage import Stage, relative_l2


class DeterministicCorrector(Stage):
    """The operator's prediction plus a zero-sum correction, trained by the relative L2 error of one step."""

    def __init__(self, network, requires: Stage):
        self.operator = requires
        self.network = network(in_channels=2, out_channels=1, condition=CONDITIONS)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        u, truth = batch.u.unbind(1)
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):  # a residual is below half precision
            prediction = self.operator.step(u, batch.nu, batch.time_step, batch.generator)
        return relative_l2(self._corrected(u, prediction, batch.nu, batch.time_step), truth).mean(), {}

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return self._corrected(u, self.operator.step(u, nu, time_step, generator), nu, time_step)

    def _corrected(self, u: Tensor, prediction: Tensor, nu: Tensor, time_step: float) -> Tensor:
        channels = torch.stack((prediction - prediction.mean(-1, keepdim=True), prediction - u), 1)
        flux = self.network(channels, physical_scalars(nu, time_step))[:, 0].float()
        size = INITIAL_SCALE * (prediction.std(-1, keepdim=True) + 1e-3)
        return prediction + size * backward_difference(flux)
