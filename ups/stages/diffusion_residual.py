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
from ups.models.corrector import Corrector, noise_levels, scaled_without_mean
from ups.stages.operator import Operator
from ups.stages.stage import Stage, relative_l2

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(z (B, N), sigma (B, 1)) -> z0 (B, N), for one batch's state and prediction."""


class DiffusionResidual(Stage):
    """Arguments: see conf/stage/diffusion_residual.yaml. `requires` is the operator, `network` builds networks."""

    stochastic = True
    selects_by = "crps"

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
            step = self.operator.opened(u, batch.nu, batch.time_step)
            truth = step.read(truth)
        mean, scale = self.network.moments(step, batch.nu, batch.time_step)
        mean_loss = relative_l2(step.after + mean, truth).mean() / batch.mean(relative_l2(step.after, truth))

        left = truth - step.after - mean.detach()
        left_size = batch.mean(left.square()).add(1e-12).sqrt()
        scale_loss = (scale.log() + math.sqrt(2) * left.abs() / scale).mean() - left_size.log()

        scale = scale.detach()
        z0 = (left / scale).clamp(-TAIL, TAIL)
        center, deviation = self.log_sigma
        sigma = (center + deviation * batch.normal(u[:, :1])).exp().clamp(self.sigma_min, self.sigma_max)
        z0_hat = self.network.denoise(z0 + sigma * batch.normal(z0), sigma, step, scale, batch.nu, batch.time_step)
        denoising_loss = ((sigma**2 + 1) / sigma**2 * (z0_hat - z0).square()).mean()
        terms = {"mean_loss": mean_loss, "scale_loss": scale_loss, "denoising_loss": denoising_loss}
        return mean_loss + scale_loss + denoising_loss, terms

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return sampled_step(self, u, nu, time_step, noise_from(generator, u))[0]

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


TAIL = 6.0  # of the normalised residual, in its local scale: beyond it a few points would be most of the loss


def sampled_step(
    stage, u: Tensor, nu: Tensor, time_step: float, draw: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One member's next frame: operator, mean correction, and a sample of what is left; and the scale of that sample.

    All (B, N), the noise that `draw` gives too.
    """
    with full_precision(u):
        step = stage.operator.opened(u, nu, time_step)
    mean, scale = stage.network.moments(step, nu, time_step)

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        return stage.network.denoise(z, sigma, step, scale, nu, time_step)

    z = stage.sample(denoise, draw).clamp(-TAIL, TAIL)
    with full_precision(u):
        return step.to_field(step.after + mean + scaled_without_mean(z, scale)), step.placed(scale)


def noise_from(generator: torch.Generator, like: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def full_precision(like: Tensor) -> torch.autocast:
    """For an operator's step: what it gets wrong is below half precision."""
    return torch.autocast(like.device.type, enabled=False)


def heun_step(denoise: Denoiser, z: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """dz/dsigma = (z - D(z, sigma)) / sigma from one noise level to the next, second order. sigma, lower: (B, 1)."""
    slope = (z - denoise(z, sigma)) / sigma
    euler = z + (lower - sigma) * slope
    slope_there = (euler - denoise(euler, lower)) / lower
    return z + (lower - sigma) * (slope + slope_there) / 2
