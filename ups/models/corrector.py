"""The distribution of an operator's one-step error: a mean, a local scale, and a diffusion of the normalized residual.

    a' = after + m + s z,   m, s from one network, z by a flow from white noise n

The flow (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003) is made of straight paths from noise to sample,
z_t = (1 - t) n + t z1: its network gives the mean of their velocity z1 - n, given z_t.

It works on the operator's inner state; of a `ConservativeStep` that is the cell averages in its moving frame, whose sum
is kept. The residual is some 1e-3 of the field, nearly zero away from shocks and heavy-tailed at them. One global noise
scale drowns the first and misses the second; divided by s(x), the residual has the same size everywhere.

Shapes: B batch, N points. t: (B, 1), the flow's own time, 0 at the noise, 1 at the sample.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ups.models.conditioning import CONDITIONS, physical_scalars
from ups.models.conservative_step import backward_difference
from ups.models.step import OpenedStep, output_of

UNIT = 3e-3  # of the field's standard deviation: the order of an operator's residual
LOG_SCALES = (-8, 3)  # of that unit: from below the field's rounding to beyond any residual, so that exp stays finite

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(z (B, N), t (B, 1)) -> (B, N): a flow's velocity, for one batch's step."""


class Corrector(nn.Module):
    """`network(in_channels, out_channels, condition)` builds a module for the moments and one for the flow."""

    def __init__(self, network):
        super().__init__()
        self.moments_network = network(in_channels=2, out_channels=2, condition=CONDITIONS)
        self.velocity_network = network(in_channels=4, out_channels=1, condition=CONDITIONS + 1)

    def moments(self, opened: OpenedStep, nu: Tensor, time_step: float) -> tuple[Tensor, Tensor]:
        """nu: (B,) -> the residual's conditional mean m, of zero sum, and its scale s > 0, both (B, N)."""
        channels, conditions = torch.stack(channels_of(opened), 1), physical_scalars(nu, time_step)
        flux, log_scale = output_of(self.moments_network, channels, conditions, 2).unbind(1)
        size = size_of(opened.after)
        return size * backward_difference(flux), size * log_scale.clamp(*LOG_SCALES).exp()

    def velocity(self, z: Tensor, t: Tensor, opened: OpenedStep, scale: Tensor, nu: Tensor, time_step: float) -> Tensor:
        """z, scale: (B, N), t: (B, 1), nu: (B,) -> E[z1 - n | z_t = z], (B, N)."""
        log_scale = (scale / scale.mean(-1, keepdim=True)).log()
        channels = torch.stack((z, *channels_of(opened), log_scale), 1)
        conditions = torch.cat((physical_scalars(nu, time_step), t - 0.5), -1)
        return output_of(self.velocity_network, channels, conditions, 1)[:, 0]

    def velocity_at(self, opened: OpenedStep, scale: Tensor, nu: Tensor, time_step: float) -> Velocity:
        """`velocity` of one batch's step."""
        return lambda z, t: self.velocity(z, t, opened, scale, nu, time_step)


def channels_of(opened: OpenedStep) -> tuple[Tensor, Tensor]:
    """What a correction is read from, (B, N) each."""
    return opened.after - opened.after.mean(-1, keepdim=True), opened.after - opened.before


def size_of(field: Tensor) -> Tensor:
    """(B, N) -> (B, 1): the unit of a correction."""
    return UNIT * (field.std(-1, keepdim=True) + 1e-3)


def scaled_without_mean(z: Tensor, scale: Tensor) -> Tensor:
    """s z less a multiple of s, so that it sums to zero and stays where the scale is: the mean is conserved."""
    scaled = scale * z
    return scaled - scale * (scaled.sum(-1, keepdim=True) / scale.sum(-1, keepdim=True))
