"""A coarse classical step and a learned correction of its flux (after Um et al., arXiv 2007.00016).

The classical step advances the cell averages; the network sees them before and after, and adds a flux of its own. What
is left to learn is small and local: the subcell structure, and what the solver of the data does to a shock.

Shapes: B batch, N points, Q nodes of a quadrature.
"""

import math

import torch
from torch import Tensor

from ups.data.solver import finite_volume
from ups.models.conservative_step import ConservativeStep, backward_difference, updated
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

    def advance(self, averages: Tensor, nu: Tensor, time_step: float, c: Tensor) -> Tensor:
        """(B, N) -> (B, N), nan where a trajectory is faster than FASTEST."""
        lost = ~(averages.abs() < FASTEST).all(-1, keepdim=True)
        averages = averages.masked_fill(lost, math.nan)  # it would cost the others of its batch endless steps
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.solver_gradient):
            solved = self.solve(averages, nu[:, None] / math.pi, time_step)
        size = unresolved(nu, averages.shape[-1], self.power)
        return updated(solved, size * self.flux(torch.stack((averages, solved), 1), c), time_step)


def cole_hopf_step(averages: Tensor, kappa: Tensor, time_step: float) -> Tensor:
    """(B, N) cell averages, (B, 1) viscosities -> the averages a time step later, (B, N); the sum is kept to rounding.

    The potential Phi, Phi_x = u, is known at the faces of the cells exactly. The Cole-Hopf transformation gives it a
    time step later, Phi(x, t) = -2 kappa log (4 pi kappa t)^(-1/2) int exp(-(Phi(y) + (x - y)^2 / 2t) / 2 kappa) dy,
    and its differences are the new averages. The integrand is a Gaussian of standard deviation sqrt(2 kappa t) (1.4
    cells at nu 0.001, 256 points, a step of 0.05) times what the averages make of it, and a sum over the faces is the
    integral to rounding where they are at most 1.4 standard deviations apart. A coarser grid gets nodes between the
    faces, where the potential is only known to first order: as many as each kappa needs.

    In float64 inside: the new averages are differences of a potential that is far larger than they are. At nu 0.1,
    float32 would leave an error of 3e-5 after 31 steps, and float64 leaves 1e-7.
    """
    wide = (2 * kappa.double() * time_step).sqrt()
    nodes = (1 / (averages.shape[-1] * 1.4 * wide)).ceil().clamp(min=1)  # (B, 1), in a cell
    stepped = torch.empty_like(averages)
    for count in nodes.unique().tolist():
        rows = (nodes == count)[:, 0]
        stepped[rows] = _by_quadrature(averages[rows], kappa[rows], time_step, int(count))
    return stepped


def _by_quadrature(averages: Tensor, kappa: Tensor, time_step: float, nodes: int) -> Tensor:
    given, averages, kappa = averages.dtype, averages.double(), kappa.double()
    points, dx = averages.shape[-1], 1.0 / averages.shape[-1]
    widest = float((2 * kappa * time_step).sqrt().max())
    fastest = float(averages.detach().abs().nan_to_num().max())
    reach = math.ceil((fastest * time_step + 6 * widest) / dx) * nodes

    potential = (averages.repeat_interleave(nodes, -1) * (dx / nodes)).cumsum(-1)  # (B, N nodes), linear in a cell
    offset = torch.arange(-reach, reach + 1, device=averages.device)  # (Q,)
    face = torch.arange(1, points + 1, device=averages.device) * nodes - 1
    node = face[:, None] + offset  # (N, Q): it goes around the circle, and the potential rises by the sum each time
    turns = torch.div(node, points * nodes, rounding_mode="floor")
    around = potential[:, node % (points * nodes)] + turns * potential[:, -1:, None]

    here = potential[:, face]
    distance = offset.double() * (dx / nodes)  # (Q,)
    action = around - here[..., None] + distance.square() / (2 * time_step)
    log_norm = 0.5 * torch.log(4 * math.pi * kappa * time_step) - math.log(dx / nodes)
    change = -2 * kappa * (torch.logsumexp(-action / (2 * kappa[..., None]), -1) - log_norm)
    return (averages + backward_difference(change) / dx).to(given)


def finite_volume_step(averages: Tensor, kappa: Tensor, time_step: float) -> Tensor:
    """(B, N) cell averages, (B, 1) viscosities -> the averages a time step later, (B, N)."""
    return finite_volume(averages, kappa, [0.0, time_step])[:, -1]


# Each with a power of the cell Reynolds number by which its error falls at least, where the grid resolves the shocks.
SOLVERS = {"cole_hopf": (cole_hopf_step, 3), "finite_volume": (finite_volume_step, 1)}
