"""A distribution of what an operator's step got wrong: a mean, a local scale, and a diffusion of what is left.

    a' = after + m + s z,   m, s from one network, z ~ EDM (Karras et al., arXiv 2206.00364), sigma_data = 1

It works on the operator's inner state; of a `ConservativeStep` that is the cell averages in its moving frame, whose sum
is kept. The residual is some 1e-3 of the field, nearly zero away from shocks and heavy-tailed at them. One global noise
scale drowns the first and misses the second; divided by s(x), the residual has the same size everywhere.

Shapes: B batch, N points. sigma: (B, 1).
"""

import torch
from torch import Tensor, nn

from ups.models.conditioning import physical_scalars
from ups.models.conservative_step import CONDITIONS, backward_difference
from ups.models.step import OpenedStep

INITIAL_SCALE = 3e-3  # of the field's deviation: the order of the residual before anything is learned


class Corrector(nn.Module):
    """`network(in_channels, out_channels, condition)` builds a module for the moments and one for the denoiser."""

    def __init__(self, network, sigma_min: float):
        super().__init__()
        self.sigma_min = sigma_min
        self.moments_network = network(in_channels=2, out_channels=2, condition=CONDITIONS)
        self.denoiser_network = network(in_channels=4, out_channels=1, condition=CONDITIONS + 1)

    def moments(self, opened: OpenedStep, nu: Tensor, time_step: float) -> tuple[Tensor, Tensor]:
        """The residual's conditional mean m, of zero sum, and its scale s > 0, both (B, N)."""
        flux, log_scale = self.moments_network(
            torch.stack(channels_of(opened), 1), physical_scalars(nu, time_step)
        ).float().unbind(1)
        size = size_of(opened.after)
        return size * backward_difference(flux), size * log_scale.clamp(-8, 3).exp()

    def denoise(
        self, z: Tensor, sigma: Tensor, opened: OpenedStep, scale: Tensor, nu: Tensor, time_step: float
    ) -> Tensor:
        """E[z0 | z0 + sigma n = z], (B, N). At sigma_min it is z itself, as a consistency model needs."""
        gap = sigma - self.sigma_min
        skip, out = 1 / (gap**2 + 1), gap / (sigma**2 + 1).sqrt()
        log_scale = (scale / scale.mean(-1, keepdim=True)).log()
        channels = torch.stack((z / (sigma**2 + 1).sqrt(), *channels_of(opened), log_scale), 1)
        c = torch.cat((physical_scalars(nu, time_step), sigma.log() / 4), -1)
        return skip * z + out * self.denoiser_network(channels, c)[:, 0].float()


def channels_of(opened: OpenedStep) -> tuple[Tensor, Tensor]:
    """What a correction is read from, (B, N) each."""
    return opened.after - opened.after.mean(-1, keepdim=True), opened.after - opened.before


def size_of(field: Tensor) -> Tensor:
    """(B, N) -> (B, 1): the unit of a correction."""
    return INITIAL_SCALE * (field.std(-1, keepdim=True) + 1e-3)


def scaled_without_mean(z: Tensor, scale: Tensor) -> Tensor:
    """s z less a multiple of s, so that it sums to zero and stays where the scale is: the mean is conserved."""
    scaled = scale * z
    return scaled - scale * (scaled.sum(-1, keepdim=True) / scale.sum(-1, keepdim=True))


def noise_levels(sigma_min: float, sigma_max: float, count: int, like: Tensor) -> Tensor:
    """(count,) falling from sigma_max to sigma_min, EDM's equation 5 with rho = 7."""
    ramp = torch.linspace(0, 1, count, device=like.device, dtype=like.dtype)
    return (sigma_max ** (1 / 7) + ramp * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
