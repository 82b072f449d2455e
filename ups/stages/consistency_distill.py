"""Stage 3: a student of the diffusion that needs one or two evaluations (Song et al., arXiv 2303.01469).

The student maps any point of the teacher's path to the path's end. Its loss compares its answers at two neighbouring
points of one path. At sigma_min its answer is the point itself, by construction: so a student that answers zero
everywhere does not minimise the loss, and a teacher's spread is kept.

Shapes: B batch, N points.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.errors import UserError
from ups.models.corrector import noise_levels
from ups.stages.diffusion_residual import TAIL, Denoiser, DiffusionResidual, heun_step, sampled_step
from ups.stages.stage import Stage


class ConsistencyDistill(Stage):
    """Arguments: see conf/stage/consistency_distill.yaml. `requires` is the teacher, which is never changed."""

    stochastic = True

    def __init__(self, requires: DiffusionResidual, levels: int, evaluations_per_step: int, members: int):
        if evaluations_per_step not in (1, 2):
            raise UserError(f"stage.evaluations_per_step={evaluations_per_step}: a consistency student takes 1 or 2")
        if not isinstance(requires, DiffusionResidual):
            raise UserError("stage.requires: a consistency_distill requires a diffusion_residual")
        self.teacher = requires
        self.operator = requires.operator
        self.sigma_min, self.sigma_max = requires.sigma_min, requires.sigma_max
        self.levels, self.evaluations_per_step, self.members = levels, evaluations_per_step, members
        self.network = copy.deepcopy(requires.network).requires_grad_(False)
        self.network.denoiser_network.requires_grad_(True)  # mean and scale stay the teacher's

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        u, truth = batch.u.unbind(1)
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):  # a residual is below half precision
            prediction = self.operator.step(u, batch.nu, batch.time_step, batch.generator)
            mean, scale = self.network.moments(u, prediction, batch.nu, batch.time_step)
            z0 = ((truth - prediction - mean) / scale).clamp(-TAIL, TAIL)
        context = (u, prediction, scale, batch.nu, batch.time_step)

        levels = noise_levels(self.sigma_min, self.sigma_max, self.levels, u)
        upper = (batch.uniform(1) * (self.levels - 1)).long()
        sigma, lower = levels[upper], levels[upper + 1]
        z = z0 + sigma * batch.normal(z0)
        with torch.no_grad():
            teacher = lambda z, sigma: self.teacher.network.denoise(z, sigma, *context)
            target = self.network.denoise(heun_step(teacher, z, sigma, lower), lower, *context)
        error = (self.network.denoise(z, sigma, *context) - target).square().mean(-1, keepdim=True)
        return error.mean(), {"consistency_loss_high": _mean_where(error, sigma > 1)}

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return sampled_step(self, u, nu, time_step, generator)

    def sample(self, denoise: Denoiser, draw: Callable[[], Tensor]) -> Tensor:
        """Straight from noise to the path's end; a second evaluation starts again from half way (a fixed level)."""
        noise = draw()
        full = lambda level: noise.new_full((len(noise), 1), level)
        z = denoise(self.sigma_max * noise, full(self.sigma_max))
        if self.evaluations_per_step == 2:
            middle = (self.sigma_max * self.sigma_min) ** 0.5
            z = denoise(z + middle * draw(), full(middle))
        return z


def _mean_where(value: Tensor, chosen: Tensor) -> Tensor:
    return (value * chosen).sum() / chosen.sum().clamp(min=1)
