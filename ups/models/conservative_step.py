"""One time step of a conservation law from any network: the flux form in a co-moving frame.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor, nn

from ups.models.conditioning import physical_scalars
from ups.models.subcell import SubcellCorrection

CONDITIONS = 2  # what `physical_scalars` gives


class ConservativeStep(nn.Module):
    """u: (B, N) point values, nu: (B,) -> the field a time step later, (B, N).

    The network gives the mean flux through the right face of each cell, so the sum of the cell averages is kept to
    rounding: averages' = averages - (dt/dx) (f - f shifted by one).

    Burgers' equation is Galilean invariant: v = u - c solves it in a frame that moves at c. With c a whole number of
    cells per time step, the change of frame is exact on the grid, and the network never sees a mean above half a
    cell per step.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.to_averages = SubcellCorrection(CONDITIONS)
        self.network = network
        self.to_points = SubcellCorrection(CONDITIONS)

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        points = u.shape[-1]
        c = physical_scalars(nu, time_step)
        cells_per_speed = time_step * points
        moved = (u.mean(-1, keepdim=True) * cells_per_speed).round()

        averages = self.to_averages(u - moved / cells_per_speed, c)
        flux = self.network(averages[:, None], c)[:, 0].float()  # it is differenced: half precision ends here
        v = self.to_points(averages - cells_per_speed * backward_difference(flux), c)

        source = (torch.arange(points, device=u.device) - moved.long()) % points
        return v.gather(1, source) + moved / cells_per_speed


def backward_difference(face: Tensor) -> Tensor:
    """(..., N) values at the right faces -> (..., N): right minus left of each cell. Sums to zero."""
    return face - face.roll(1, -1)
