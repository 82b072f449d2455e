"""One time step of a conservation law from any network: the flux form in a co-moving frame.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor, nn

from ups.models.conditioning import physical_scalars

CONDITIONS = 2  # what `physical_scalars` gives


class ConservativeStep(nn.Module):
    """u: (B, N), nu: (B,) -> the field a time step later, (B, N).

    The network gives the mean flux through the right face of each cell, so the sum over the cells is kept to
    rounding: u' = u - (dt/dx) (f - f shifted by one).

    Burgers' equation is Galilean invariant: v = u - c solves it in a frame that moves at c. With c a whole number of
    cells per time step, the change of frame is exact on the grid, and the network never sees a mean above half a
    cell per step.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        points = u.shape[-1]
        cells_per_speed = time_step * points
        moved = (u.mean(-1, keepdim=True) * cells_per_speed).round()
        v = u - moved / cells_per_speed
        flux = self.network(v[:, None], physical_scalars(nu, time_step))[:, 0]
        v = v - cells_per_speed * backward_difference(flux)
        source = (torch.arange(points, device=u.device) - moved.long()) % points
        return v.gather(1, source) + moved / cells_per_speed


def backward_difference(face: Tensor) -> Tensor:
    """(..., N) values at the right faces -> (..., N): right minus left of each cell. Sums to zero."""
    return face - face.roll(1, -1)
