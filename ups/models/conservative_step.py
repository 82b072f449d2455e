"""One time step of a conservation law from any network: the flux form in a co-moving frame.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor, nn

from ups.models.conditioning import physical_scalars
from ups.models.step import Step
from ups.models.subcell import SubcellCorrection

CONDITIONS = 2  # what `physical_scalars` gives


class ConservativeStep(Step):
    """The network gives the mean flux through the right face of each cell, so the sum of the cell averages is kept to
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
        _, v, moved = self._step_in_frame(u, nu, time_step)
        return self._out_of_frame(v, moved, time_step)

    def with_round_trip(self, u: Tensor, nu: Tensor, time_step: float) -> tuple[Tensor, Tensor, Tensor]:
        """The inner state is the averages in the moving frame; a shock that stands has their bias in every step."""
        averages, v, moved = self._step_in_frame(u, nu, time_step)
        read_again = self.to_averages(v, physical_scalars(nu, time_step))
        return self._out_of_frame(v, moved, time_step), averages, read_again

    def _step_in_frame(self, u: Tensor, nu: Tensor, time_step: float) -> tuple[Tensor, Tensor, Tensor]:
        """The new averages and point values, (B, N) in the frame, and the cells that it moves in a step, (B, 1)."""
        c = physical_scalars(nu, time_step)
        cells_per_speed = time_step * u.shape[-1]
        moved = (u.mean(-1, keepdim=True) * cells_per_speed).round()
        averages = self.advance(self.to_averages(u - moved / cells_per_speed, c), nu, time_step, c)
        return averages, self.to_points(averages, c), moved

    def _out_of_frame(self, v: Tensor, moved: Tensor, time_step: float) -> Tensor:
        points = v.shape[-1]
        source = (torch.arange(points, device=v.device) - moved.long()) % points
        return v.gather(1, source) + moved / (time_step * points)

    def advance(self, averages: Tensor, nu: Tensor, time_step: float, c: Tensor) -> Tensor:
        """Cell averages in the moving frame: (B, N) -> (B, N), with the same sum."""
        return self.corrected(averages, averages[:, None], time_step, c)

    def corrected(self, averages: Tensor, channels: Tensor, time_step: float, c: Tensor) -> Tensor:
        """averages: (B, N) less the divergence of the flux that the network reads from channels: (B, C, N)."""
        flux = self.network(channels, c)[:, 0].float()  # it is differenced: half precision ends here
        return averages - time_step * averages.shape[-1] * backward_difference(flux)


def backward_difference(face: Tensor) -> Tensor:
    """(..., N) values at the right faces -> (..., N): right minus left of each cell. Sums to zero."""
    return face - face.roll(1, -1)
