"""Stage 3: a student of the diffusion that needs one or two evaluations, and is held to the truth over its rollouts.

The student maps any point of the teacher's path to the path's end (Song et al., arXiv 2303.01469): one part of its loss
compares its answers at two neighbouring points of one path. At sigma_min its answer is the point itself, by
construction: so a student that answers zero everywhere does not minimise the loss, and a teacher's spread is kept.

The teacher knows one step from a true field alone. A rollout starts from a member's own, and what is calibrated for one
step is not for many. One evaluation a step makes rollouts cheap enough to train on: the other part of the loss is the
CRPS of the members' own rollouts, of which a spread that is too small or too large costs more than the right one.

Shapes: B batch, N points, M members.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.errors import UserError
from ups.evaluation.metrics import fair_crps
from ups.models.corrector import noise_levels, size_of
from ups.stages.diffusion_residual import DiffusionResidual
from ups.stages.sampled_correction import TAIL, Denoiser, SampledCorrection, full_precision

SMALLEST_SCALE = 0.003  # of a correction's unit: what is smaller, some 1e-5 of the field, need not be known any better


class ConsistencyDistill(SampledCorrection):
    """Arguments: see conf/stage/consistency_distill.yaml. `requires` is the teacher, which is never changed."""

    def __init__(
        self, requires: DiffusionResidual, levels: int, unroll: int, evaluations_per_step: int, members: int
    ):  # fmt: skip
        if evaluations_per_step not in (1, 2):
            raise UserError(f"stage.evaluations_per_step={evaluations_per_step}: a consistency student takes 1 or 2")
        if members < 2:
            raise UserError(f"stage.members={members}: the spread of a student is learned from 2 or more")
        if not isinstance(requires, DiffusionResidual):
            raise UserError("stage.requires: a consistency_distill requires a diffusion_residual")
        self.teacher = requires
        self.operator = requires.operator
        self.sigma_min, self.sigma_max = requires.sigma_min, requires.sigma_max
        self.levels, self.evaluations_per_step, self.members = levels, evaluations_per_step, members
        self.frames_per_sample = unroll + 1
        self.network = copy.deepcopy(requires.network).requires_grad_(True)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # In this order: autocast keeps the first cast of a weight, on older PyTorch one without gradient as well.
        terms = {"rollout_loss": self._rollout_crps(batch), "consistency_loss": self._consistency(batch)}
        return sum(terms.values()), terms

    def _consistency(self, batch: Batch) -> Tensor:
        """Of the first step, in the mean and scale that the student samples with; they start as the teacher's."""
        u, truth = batch.u[:, 0], batch.u[:, 1]
        with torch.no_grad():
            with full_precision(u):
                opened = self.operator.opened(u, batch.nu, batch.time_step)
                residual = opened.to_state(truth) - opened.after
            mean, scale = self.network.moments(opened, batch.nu, batch.time_step)
        z0 = ((residual - mean) / scale).clamp(-TAIL, TAIL)
        context = (opened, scale, batch.nu, batch.time_step)

        levels = noise_levels(self.sigma_min, self.sigma_max, self.levels, u)
        upper = (batch.uniform(1) * (self.levels - 1)).long()
        sigma, lower = levels[upper], levels[upper + 1]
        z = z0 + sigma * batch.normal(z0)
        with torch.no_grad():
            teacher = lambda z, sigma: self.teacher.network.denoise(z, sigma, *context)
            target = self.network.denoise(heun_step(teacher, z, sigma, lower), lower, *context)
        return (self.network.denoise(z, sigma, *context) - target).square().mean()

    def _rollout_crps(self, batch: Batch) -> Tensor:
        """Of M members that start from the same field; the gradient of a step ends at the field that it was given.

        In two units, summed: the correction's own, which is the score in the field, and the local scale, which is far
        smaller away from shocks and makes all points count.
        """
        first, truth = batch.u[:, 0], batch.u[:, 1:]
        u, nu = first.repeat(self.members, 1), batch.nu.repeat(self.members)  # (M B, N), (M B,)
        draw = lambda: torch.cat([batch.normal(first) for _ in range(self.members)])
        unit = size_of(first)
        scores = []
        for k in range(truth.shape[1]):
            u, scale = self.sampled_step(u.detach(), nu, batch.time_step, draw)
            members, scales = (values.unflatten(0, (self.members, -1)) for values in (u, scale.detach()))  # (M, B, N)
            with full_precision(u):
                crps = fair_crps(members, truth[:, k])
            scores.append(crps / unit + crps / (scales.mean(0) + SMALLEST_SCALE * unit))
        return torch.stack(scores).mean()

    def sample(self, denoise: Denoiser, draw: Callable[[], Tensor]) -> Tensor:
        """Straight from noise to the path's end; a second evaluation starts again from half way (a fixed level)."""
        noise = draw()
        full = lambda level: noise.new_full((len(noise), 1), level)
        z = denoise(self.sigma_max * noise, full(self.sigma_max))
        if self.evaluations_per_step == 2:
            middle = (self.sigma_max * self.sigma_min) ** 0.5
            z = denoise(z + middle * draw(), full(middle))
        return z


def heun_step(denoise: Denoiser, z: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """dz/dsigma = (z - D(z, sigma)) / sigma from one noise level to the next, second order. sigma, lower: (B, 1)."""
    slope = (z - denoise(z, sigma)) / sigma
    euler = z + (lower - sigma) * slope
    slope_there = (euler - denoise(euler, lower)) / lower
    return z + (lower - sigma) * (slope + slope_there) / 2
