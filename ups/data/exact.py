"""The exact solution of Burgers' equation by the Cole-Hopf transformation, the ground truth of the solvers' tests."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cole_hopf(u0: Tensor, kappa: float, times: Sequence[float], x: Tensor) -> Tensor:
    """The solution at times (all > 0) and points x: (N,) -> (B, T, N) float64, on u0's device.

    u0: (B, M) values at the M cell centres of the periodic interval [0, 1). With the mean m taken out (a Galilean
    shift), u(x, t) = sum_y w (x - y)/t / sum_y w, w = exp(-(Phi(y) + (x - y)^2 / 2t) / 2 kappa), Phi' = u0: weights
    that leave float64 at small kappa, so they are normalised in the logarithm. Sums over cells are exact to rounding
    once a cell is narrower than sqrt(2 kappa t); the integral Phi is taken in Fourier space.
    """
    u0, x = u0.double(), x.to(u0.device, torch.float64)
    cells = u0.shape[-1]
    y = (torch.arange(cells, dtype=torch.float64, device=u0.device) + 0.5) / cells
    mean = u0.mean(-1, keepdim=True)
    wave = 2j * torch.pi * torch.fft.rfftfreq(cells, 1 / cells, dtype=torch.float64, device=u0.device)
    wave[0] = 1
    potential = torch.fft.irfft(torch.fft.rfft(u0 - mean) / wave, cells)

    def at(time: float) -> Tensor:
        # A particle of the mean-free flow comes from at most one period away, plus the width of the heat kernel.
        reach = 1 + math.ceil(7 * math.sqrt(2 * kappa * time))
        images = range(-reach, reach + 1)
        sources = torch.cat([y + image for image in images])
        position = (x - mean * time) % 1
        distance = position[:, :, None] - sources  # (B, N, images * M)
        action = potential.repeat(1, len(images))[:, None] + distance**2 / (2 * time)
        weight = torch.softmax(-action / (2 * kappa), -1)
        return mean + (weight * distance).sum(-1) / time

    return torch.stack([at(time) for time in times], 1)
