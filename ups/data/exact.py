"""Burgers' equation solved exactly, by the Cole-Hopf transformation.

`cole_hopf` takes an initial field to any times and points: the ground truth of the solvers' tests. `cole_hopf_step`
takes cell averages one time step on and has gradients: the classical step of `solver_in_the_loop`.

Shapes: B batch, M, N points, T times, Q nodes of a quadrature.
"""

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
    return (averages + (change - change.roll(1, -1)) / dx).to(given)
