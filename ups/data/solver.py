"""Two solvers of u_t + (u^2/2)_x = kappa u_xx on the periodic interval [0, 1), batched, on any device.

`finite_volume` is PDEBench's scheme (second order, monotonized-central limiter, upwind flux, central diffusion,
midpoint rule); its step is bound by dx^2/kappa, so it is for small viscosity, where shocks are thin. `spectral` takes
diffusion exactly (integrating factor, RK4), so it is for viscosity that resolves the shocks on the grid.

Both take kappa as a number, or as a (B, 1) tensor: one for each trajectory. The step is the whole batch's.

Shapes: B batch, N points, T times.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

COURANT = 0.5  # half of the scheme's limit; 0.25 (PDEBench's) changes the solution by 5e-5 of its norm


def finite_volume(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """u: (B, N) cell values at times[0] -> (B, T, N)."""
    dx = 1.0 / u.shape[-1]
    diffusion_step = 0.25 * dx**2 / (float(kappa.max()) if isinstance(kappa, Tensor) else kappa)
    frames = [u]
    for start, end in itertools.pairwise(times):
        time = start
        while end - time > 1e-9:
            largest = max(float(u.detach().abs().max()), 1e-12)
            step = min(COURANT * dx / largest, diffusion_step, end - time)
            half = u.add(_flux_difference(u, kappa / dx), alpha=0.5 * step / dx)
            u = u.add(_flux_difference(half, kappa / dx), alpha=step / dx)
            time += step
        frames.append(u)
    return torch.stack(frames, 1)


def _flux_difference(u: Tensor, diffusion: float | Tensor) -> Tensor:
    """Flux in minus flux out of each cell. Slices of one padded copy: this is where the generator's time goes."""
    padded = torch.cat((u[:, -2:], u, u[:, :2]), -1)
    jump = padded[:, 1:] - padded[:, :-1]

    # The limited slope: the smallest of 2 jumps and the central difference where all have one sign, else 0.
    left, right = jump[:, :-1], jump[:, 1:]
    central = (left + right).mul_(0.5)
    lowest = torch.minimum(torch.minimum(left, right).mul_(2), central).clamp_(min=0)
    highest = torch.maximum(torch.maximum(left, right).mul_(2), central).clamp_(max=0)
    half_slope = lowest.add_(highest).mul_(0.5)

    cell = padded[:, 1:-1]
    behind, ahead = (cell + half_slope)[:, :-1], (cell - half_slope)[:, 1:]  # both sides of each face
    upwind = (behind + ahead).abs_()
    flux = (behind * behind).addcmul_(ahead, ahead).addcmul_(upwind, ahead - behind, value=-1).mul_(0.25)
    if isinstance(diffusion, Tensor):
        flux.addcmul_(jump[:, 1:-1], diffusion, value=-1)
    else:
        flux.sub_(jump[:, 1:-1], alpha=diffusion)
    return flux[:, :-1] - flux[:, 1:]


def spectral(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """u: (B, N) point values at times[0] -> (B, T, N); products are dealiased by the 2/3 rule."""
    points = u.shape[-1]
    wave = 2 * math.pi * torch.arange(points // 2 + 1, device=u.device, dtype=u.dtype)
    kept = torch.arange(points // 2 + 1, device=u.device) <= points // 3
    transport = -0.5j * wave * kept

    def rate(coefficients: Tensor) -> Tensor:
        return transport * torch.fft.rfft(torch.fft.irfft(coefficients, points).square())

    frames = [u]
    hat = torch.fft.rfft(u)
    for start, end in itertools.pairwise(times):
        largest = max(float(frames[-1].abs().max()), 1e-12)
        # RK4 is stable up to 2.8 for a purely imaginary rate; the fastest kept mode turns at |u| k_max.
        count = math.ceil((end - start) * largest * 2 * math.pi * (points // 3) / 1.4)
        step = (end - start) / count
        half, full = torch.exp(-kappa * wave**2 * step / 2), torch.exp(-kappa * wave**2 * step)
        for _ in range(count):
            a = rate(hat)
            b = rate(half * (hat + step / 2 * a))
            c = rate(half * hat + step / 2 * b)
            d = rate(full * hat + step * half * c)
            hat = full * hat + step / 6 * (full * a + 2 * half * (b + c) + d)
        frames.append(torch.fft.irfft(hat, points))
    return torch.stack(frames, 1)


def solve(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """The solver that fits: spectral where the grid resolves the shocks, finite volumes where it does not.

    A shock of height h is 4 kappa / h wide; the spectral method wants that over 3 cells for h = 1.
    """
    resolved = 4 * kappa * u.shape[-1] > 3
    if not isinstance(kappa, Tensor):
        return (spectral if resolved else finite_volume)(u, kappa, times)
    solution = u.new_empty(len(u), len(times), u.shape[-1])
    for method, rows in ((spectral, resolved.flatten()), (finite_volume, ~resolved.flatten())):
        if rows.any():
            solution[rows] = method(u[rows], kappa[rows], times)
    return solution
