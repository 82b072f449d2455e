"""Stage 2: a diffusion model of the operator's residual, in the physical field.

Shapes: B batch, N points.
"""

import itertools
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
        """The sum of three: the mean's error relative to the operator's, the scale's Gaussian likelihood, EDM's."""
        u, truth = batch.u.unbind(1)
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):  # a residual is below half precision
            prediction = self.operator.step(u, batch.nu, batch.time_step, batch.generator)
        residual = truth - prediction
        mean, scale = self.network.moments(u, prediction, batch.nu, batch.time_step)
        mean_loss = relative_l2(prediction + mean, truth).mean() / batch.mean(relative_l2(prediction, truth))

        left = residual - mean.detach()
        left_size = batch.mean(left.square()).add(1e-12).sqrt()
        scale_loss = (scale.log() + 0.5 * (left / scale).square()).mean() - left_size.log()

        scale = scale.detach()
        z0 = (left / scale).clamp(-TAIL, TAIL)
        center, deviation = self.log_sigma
        sigma = (center + deviation * batch.normal(u[:, :1])).exp().clamp(self.sigma_min, self.sigma_max)
        z0_hat = self.network.denoise(
            z0 + sigma * batch.normal(z0), sigma, u, prediction, scale, batch.nu, batch.time_step
        )
        denoising_loss = ((sigma**2 + 1) / sigma**2 * (z0_hat - z0).square()).mean()
        terms = {"mean_loss": mean_loss, "scale_loss": scale_loss, "denoising_loss": denoising_loss}
        return mean_loss + scale_loss + denoising_loss, terms

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        return sampled_step(self, u, nu, time_step, generator)

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


def sampled_step(stage, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
    """One member's next frame: operator, mean correction, and a sample of what is left."""
    prediction = stage.operator.step(u, nu, time_step, generator)
    mean, scale = stage.network.moments(u, prediction, nu, time_step)

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        return stage.network.denoise(z, sigma, u, prediction, scale, nu, time_step)

    def draw() -> Tensor:
        return torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)

    z = stage.sample(denoise, draw).clamp(-TAIL, TAIL)
    return prediction + mean + scaled_without_mean(z, scale)


def heun_step(denoise: Denoiser, z: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """dz/dsigma = (z - D(z, sigma)) / sigma from one noise level to the next, second order. sigma, lower: (B, 1)."""
    slope = (z - denoise(z, sigma)) / sigma
    euler = z + (lower - sigma) * slope
    slope_there = (euler - denoise(euler, lower)) / lower
    return z + (lower - sigma) * (slope + slope_there) / 2
