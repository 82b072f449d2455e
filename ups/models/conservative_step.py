"""One time step of a conservation law from any network: the flux form in a co-moving frame.

Shapes: B batch, N points.
"""

from torch import Tensor, nn

from ups.data.symmetries import rolled
from ups.models.conditioning import CONDITIONS, physical_scalars
from ups.models.step import OpenedStep, Step, output_of
from ups.models.subcell import TO_AVERAGES, TO_POINTS, SubcellCorrection


class ConservativeStep(Step):
    """The network gives the mean flux through the right face of each cell, so the sum of the cell averages is kept to
    rounding: averages' = averages - (dt/dx) (f - f shifted by one).

    Burgers' equation is Galilean invariant: v = u - s solves it in a frame that moves at s. With s a whole number of
    cells per time step, the change of frame is exact on the grid, and the network never sees a mean above half a
    cell per step.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.to_averages = SubcellCorrection(CONDITIONS, TO_AVERAGES)
        self.network = network
        self.to_points = SubcellCorrection(CONDITIONS, TO_POINTS)

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        step = self.opened(u, nu, time_step)
        return step.to_field(step.after)

    def opened(self, u: Tensor, nu: Tensor, time_step: float) -> OpenedStep:
        """The inner state is the cell averages in the moving frame."""
        conditions = physical_scalars(nu, time_step)
        cells_per_speed = time_step * u.shape[-1]
        moved = (u.mean(-1) * cells_per_speed).round()  # (B,), cells in this time step
        speed = moved[:, None] / cells_per_speed

        def at_points(cells: Tensor) -> Tensor:
            return rolled(cells, moved.long())

        def to_field(averages: Tensor) -> Tensor:
            return at_points(self.to_points(averages, conditions, nu)) + speed

        def to_state(field: Tensor) -> Tensor:
            return self.to_averages(rolled(field, -moved.long()) - speed, conditions, nu)

        before = self.to_averages(u - speed, conditions, nu)
        return OpenedStep(before, self.advance(before, nu, time_step, conditions), to_field, to_state, at_points)

    def advance(self, averages: Tensor, nu: Tensor, time_step: float, conditions: Tensor) -> Tensor:
        """Cell averages in the moving frame: (B, N) -> (B, N), with the same sum."""
        return updated(averages, self.flux(averages[:, None], conditions), time_step)

    def flux(self, channels: Tensor, conditions: Tensor) -> Tensor:
        """(B, C, N) -> through the right face of each cell, (B, N)."""
        return output_of(self.network, channels, conditions, 1)[:, 0]


def updated(averages: Tensor, flux: Tensor, time_step: float) -> Tensor:
    """(B, N) each: the averages a time step later, by the mean flux through the right faces in it."""
    return averages - time_step * averages.shape[-1] * backward_difference(flux)


def backward_difference(face: Tensor) -> Tensor:
    """(..., N) values at the right faces -> (..., N): right minus left of each cell. Sums to zero."""
    return face - face.roll(1, -1)
