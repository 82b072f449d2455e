"""Random initial conditions for Burgers' equation on the periodic interval [0, 1)."""

import math

import torch
from torch import Tensor

SLOTS = 4  # wave numbers 1 .. 4
FIELD_SIGMA, FIELD_TAU, FIELD_GAMMA = 25.0, 5.0, 2.0
FIELD_WAVES = 128  # the standard deviation of the last is 1e-4 of the first's


def cell_centres(points: int) -> Tensor:
    """x: (N,) float64 on [0, 1)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def random_sinusoids(count: int, points: int, generator: torch.Generator) -> Tensor:
    """u0: (count, N) float64: PDEBench's (arXiv 2210.07182, appendix D), our own code.

    Two draws into four slots; a slot's wave number is its index times how often it was drawn (so 0 to 8), its
    amplitude U[0, 1], its phase U[0, 2 pi]: a slot that was not drawn adds a constant. Then a tenth of the samples
    is replaced by the absolute value, each gets a random sign, and a tenth is cut by a smooth window. One difference:
    PDEBench's wave numbers are for an interval one cell short of 1, which leaves a jump of a cell at the boundary.
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


def random_field(count: int, points: int, generator: torch.Generator) -> Tensor:
    """u0: (count, N) float64: a periodic Gaussian random field without mean, as of the Fourier neural operator's data.

    Its covariance is sigma^2 (-Laplace + tau^2)^-gamma with sigma = 25, tau = 5, gamma = 2 (arXiv 2010.08895, section
    5.1): root mean square 0.59, where the sinusoids with their constants have 0.82.
    """
    wave = 2 * math.pi * torch.arange(1, FIELD_WAVES + 1, dtype=torch.float64)
    deviation = FIELD_SIGMA * (wave**2 + FIELD_TAU**2) ** (-FIELD_GAMMA / 2)
    angle = wave[:, None] * cell_centres(points)
    drawn = torch.randn(count, 2 * FIELD_WAVES, generator=generator, dtype=torch.float64)
    return drawn @ (math.sqrt(2) * deviation.repeat(2)[:, None] * torch.cat((angle.cos(), angle.sin())))


INITIAL_CONDITIONS = {"sinusoids": random_sinusoids, "random_field": random_field}
