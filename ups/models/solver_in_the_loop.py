"""A coarse classical step and a learned correction of its flux (after Um et al., arXiv 2007.00016).

The classical step advances the cell averages; the network sees them before and after, and adds a flux of its own. What
is left to learn is small and local: the subcell structure, and what the solver of the data does to a shock.

Shapes: B batch, N points.
"""

import math

import torch
from torch import Tensor

from ups.data.exact import cole_hopf_step
from ups.data.solver import finite_volume
from ups.models.conservative_step import ConservativeStep, updated
from ups.models.dilresnet import DilatedResNet
from ups.models.subcell import unresolved

FASTEST = 100.0  # a trajectory that is faster is lost: PDEBench's are slower than 5


class SolverInTheLoop(ConservativeStep):
    """Arguments: see conf/model/solver_in_the_loop.yaml. It is a step as a whole, no network for a corrector."""

    def __init__(
        self, in_channels: int, out_channels: int, condition: int, solver: str, solver_gradient: bool, width: int,
        kernel: int, dilations: list[int],
    ):  # fmt: skip
        if (in_channels, out_channels) != (1, 1):
            raise ValueError("solver_in_the_loop is an operator, not a corrector's network: choose dilresnet_small")
        super().__init__(DilatedResNet(2, 1, condition, width, kernel, dilations))
        self.solve, self.power = SOLVERS[solver]
        self.solver_gradient = solver_gradient

    def advance(self, averages: Tensor, nu: Tensor, time_step: float, conditions: Tensor) -> Tensor:
        """(B, N) -> (B, N), nan where a trajectory is faster than FASTEST."""
        lost = ~(averages.abs() < FASTEST).all(-1, keepdim=True)
        averages = averages.masked_fill(lost, math.nan)  # it would cost the others of its batch endless steps
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.solver_gradient):
            solved = self.solve(averages, nu[:, None] / math.pi, time_step)
        size = unresolved(nu, averages.shape[-1], self.power)
        return updated(solved, size * self.flux(torch.stack((averages, solved), 1), conditions), time_step)


def finite_volume_step(averages: Tensor, kappa: Tensor, time_step: float) -> Tensor:
    """(B, N) cell averages, (B, 1) viscosities -> the averages a time step later, (B, N)."""
    return finite_volume(averages, kappa, [0.0, time_step])[:, -1]


# Each with a power of the cell Reynolds number by which its error falls at least, where the grid resolves the shocks.
SOLVERS = {"cole_hopf": (cole_hopf_step, 3), "finite_volume": (finite_volume_step, 1)}
