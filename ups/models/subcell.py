"""From point values to cell averages and back: where in its cell a shock stands.

A flux form keeps the sum over the cells. The sum that Burgers' equation keeps is of cell averages; of point values it
jitters as a shock moves through a cell, by 2e-4 at nu 0.001 and 256 points (the `crmse` of persistence, which keeps it
too, in evaluate.py's table). A network that keeps the sum of point values must put that jitter somewhere, and puts it
at the shock: most of its error. The average of a cell can be read from the values around it. Where the field is smooth,
it is the value at the centre and a 24th of the second difference, to the fourth order in the grid spacing. At a shock
it is learned: the flanks are exponentials, so the logarithms of the differences on both sides are linear in where the
shock stands between the points.

Shapes: B batch, N points, W window.
"""

import math

import torch
from torch import Tensor, nn

from ups.errors import UserError

WINDOW = 7  # points
TO_AVERAGES, TO_POINTS = 1 / 24, -1 / 24  # of the second difference, where the field is smooth
RESOLVED = 1e-4  # of the window's range: differences below it count as none
COARSE = 8  # the cell Reynolds number from which on a shock is not resolved: up to nu 0.0015 on 256 points


def unresolved(nu: Tensor, points: int, power: float = 3) -> Tensor:
    """nu: (B,) -> (B, 1): what the grid leaves to be learned, 1 where its cells are too wide for a shock.

    It falls with a power of the cell Reynolds number dx / kappa, kappa = nu / pi, dx = 1 / points: the third, as the
    error of an untrained `solver_in_the_loop` does from nu 0.001 to 0.01 (256 points). With its output times this, no
    network has to learn to be small where viscosity resolves the shocks, at other nu and on finer grids.
    """
    return (math.pi / (COARSE * points * nu)).clamp(max=1).pow(power)[:, None]


class SubcellCorrection(nn.Module):
    """u: (B, N), c: (B, condition), nu: (B,) -> u + s d + w |d|, (B, N), where d is the second difference of u.

    s is `smooth_factor`, TO_AVERAGES or TO_POINTS. w, zero at initialisation, is `unresolved` times a function of the
    window around each point, scaled to [-1, 1], of its differences on a logarithmic scale, and of its range.
    Straight lines are left alone.
    """

    def __init__(self, condition: int, smooth_factor: float, width: int = 32):
        super().__init__()
        self.smooth_factor = smooth_factor
        self.weight = nn.Sequential(
            nn.Conv1d(2 * WINDOW + condition, width, 1), nn.GELU(), nn.Conv1d(width, width, 1), nn.GELU(),
            nn.Conv1d(width, 1, 1),
        )  # fmt: skip
        nn.init.zeros_(self.weight[-1].weight)
        nn.init.zeros_(self.weight[-1].bias)

    def forward(self, u: Tensor, c: Tensor, nu: Tensor) -> Tensor:
        points = u.shape[-1]
        if points < WINDOW:
            raise UserError(f"a field of {points} points is too coarse: its conservative form reads {WINDOW}")
        reach = WINDOW // 2
        padded = torch.cat((u[:, -reach:], u, u[:, :reach]), -1)
        window = torch.stack([padded[:, k : k + points] for k in range(WINDOW)], 1)  # (B, W, N)
        low, high = window.amin(1, keepdim=True), window.amax(1, keepdim=True)
        spread = high - low + 1e-3
        scaled = (2 * window - low - high) / spread
        steps = window.diff(dim=1) / spread
        steps = steps.sign() * (steps.abs() / RESOLVED).log1p() / 3  # of order one, as the other features
        features = torch.cat((scaled, steps, spread.log() / 2, c[..., None].expand(-1, -1, points)), 1)
        second_difference = u.roll(-1, -1) - 2 * u + u.roll(1, -1)
        weight = 4 * unresolved(nu, points) * self.weight(features)[:, 0].float()
        return u + self.smooth_factor * second_difference + weight * second_difference.abs()
