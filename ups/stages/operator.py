"""Stage 1: a deterministic step of Burgers' equation, trained by the relative L2 error of its rollouts.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor, nn

from ups.data.batches import Batch
from ups.models.conservative_step import CONDITIONS, ConservativeStep
from ups.stages.stage import Stage, relative_l2


class Operator(Stage):
    """Arguments: see conf/stage/operator.yaml. `model` builds a network from its channels and conditions."""

    def __init__(self, model, requires: None, unroll: int, input_noise: list[float]):
        self.network: nn.Module = ConservativeStep(model(in_channels=1, out_channels=1, condition=CONDITIONS))
        self.frames_per_sample = unroll + 1
        self.input_noise = input_noise

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        u, truth = batch.u[:, 0], batch.u[:, 1:]
        u = u + self._input_noise(batch)
        errors = []
        for k in range(truth.shape[1]):
            u = self.network(u, batch.nu, batch.time_step)
            errors.append(relative_l2(u, truth[:, k]).mean())
        return torch.stack(errors).mean(), {"one_step_loss": errors[0]}

    def _input_noise(self, batch: Batch) -> Tensor | float:
        """White noise, its deviation log-uniform in the given range of the field's own: rollouts meet their errors."""
        low, high = self.input_noise
        if high == 0:
            return 0.0
        u = batch.u[:, 0]
        level = low * (high / low) ** batch.uniform(1)
        return batch.normal(u) * level * u.std(-1, keepdim=True)

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator | None = None) -> Tensor:
        return self.network(u, nu, time_step)
