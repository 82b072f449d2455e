"""Stage 2: a diffusion model of what the operator's step gets wrong.

Shapes: B batch, N points.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.errors import UserError
from ups.models.corrector import Corrector, noise_levels
from ups.stages.operator import Operator
from ups.stages.sampled_correction import TAIL, Denoiser, SampledCorrection, full_precision
from ups.stages.stage import Stage, relative_l2


class DiffusionResidual(SampledCorrection):
    """Arguments: see conf/stage/diffusion_residual.yaml. `requires` is the operator, `network` builds networks."""

    def __init__(
        self, network, requires: Stage, sigma: list[float], log_sigma: list[float], evaluations_per_step: int,
        members: int,
    ):  # fmt: skip
        if not isinstance(requires, Operator):
            raise UserError("stage.requires: a diffusion_residual requires an operator")
        self.operator = requires
        self.sigma_min, self.sigma_max = sigma
        self.log_sigma = log_sigma
        self.evaluations_per_step, self.members = evaluations_per_step, members
        self.network = Corrector(network, self.sigma_min)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of three: the mean's error relative to the operator's, the scale's likelihood (Laplace's, since the
        tails are heavy), EDM's."""
        u, truth = batch.u.unbind(1)
        with torch.no_grad(), full_precision(u):
            opened = self.operator.opened(u, batch.nu, batch.time_step)
            truth = opened.to_state(truth)
        mean, scale = self.network.moments(opened, batch.nu, batch.time_step)
        mean_loss = relative_l2(opened.after + mean, truth).mean() / batch.mean(relative_l2(opened.after, truth))

        left = truth - opened.after - mean.detach()
        left_size = batch.mean(left.square()).add(1e-12).sqrt()
        scale_loss = (scale.log() + math.sqrt(2) * left.abs() / scale).mean() - left_size.log()

        scale = scale.detach()
        z0 = (left / scale).clamp(-TAIL, TAIL)
        center, deviation = self.log_sigma
        sigma = (center + deviation * batch.normal(u[:, :1])).exp().clamp(self.sigma_min, self.sigma_max)
        z0_hat = self.network.denoise(z0 + sigma * batch.normal(z0), sigma, opened, scale, batch.nu, batch.time_step)
        denoising_loss = ((sigma**2 + 1) / sigma**2 * (z0_hat - z0).square()).mean()
        terms = {"mean_loss": mean_loss, "scale_loss": scale_loss, "denoising_loss": denoising_loss}
        return mean_loss + scale_loss + denoising_loss, terms

    def sample(self, denoise: Denoiser, draw: Callable[[], Tensor]) -> Tensor:
        """The probability flow from sigma_max to sigma_min -> z0 (B, N), by DPM-Solver++(2M) (arXiv 2211.01095).

        One evaluation a noise level, none at sigma_min, where the denoiser's answer is z itself. A step is exact if the
        denoised z is linear in log(sigma), which the evaluation before extrapolates.
        """
        z = self.sigma_max * draw()
        levels = noise_levels(self.sigma_min, self.sigma_max, self.evaluations_per_step + 1, z)
        before, width_before = None, None
        for sigma, lower in itertools.pairwise(levels):
            denoised, width = denoise(z, sigma.expand(len(z), 1)), (sigma / lower).log()
            middle = denoised if before is None else denoised + (denoised - before) * width / (2 * width_before)
            z = z * lower / sigma + middle * (1 - lower / sigma)
            before, width_before = denoised, width
        return z
