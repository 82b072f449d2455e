"""PDEBench's random initial conditions for Burgers' equation (arXiv 2210.07182, appendix D), our own code.

One difference: their wave numbers are for an interval one cell short of 1, which leaves a jump of a cell at the
boundary; here they are periodic on [0, 1).
"""

import torch
from torch import Tensor

SLOTS = 4  # wave numbers 1 .. 4


def cell_centres(points: int) -> Tensor:
    """x: (N,) float64 on [0, 1)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def random_sinusoids(count: int, points: int, generator: torch.Generator) -> Tensor:
    """u0: (count, N) float64.

    Two draws into four slots; a slot's wave number is its index times how often it was drawn (so 0 to 8), its
    amplitude U[0, 1], its phase U[0, 2 pi]: a slot that was not drawn adds a constant. Then a tenth of the samples
    is replaced by the absolute value, each gets a random sign, and a tenth is cut by a smooth window.
    """
    x = cell_centres(points)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)

    drawn = torch.randint(SLOTS, (count, 2), generator=generator)
    times_drawn = torch.nn.functional.one_hot(drawn, SLOTS).sum(1)
    wave_number = times_drawn * torch.arange(1, SLOTS + 1)
    amplitude, phase = draw(count, SLOTS, 1), 2 * torch.pi * draw(count, SLOTS, 1)
    u = (amplitude * torch.sin(2 * torch.pi * wave_number[..., None] * x + phase)).sum(1)

    u = torch.where(draw(count, 1) < 0.1, u.abs(), u)
    u = torch.where(draw(count, 1) < 0.5, -u, u)

    left, right = 0.1 + 0.35 * draw(count, 1), 0.55 + 0.35 * draw(count, 1)
    window = 0.5 * (torch.tanh((x - left) / 0.01) - torch.tanh((x - right) / 0.01))
    return torch.where(draw(count, 1) < 0.1, u * window, u)
