"""Two solvers of u_t + (u^2/2)_x = kappa u_xx on the periodic interval [0, 1), batched, on any device.

`finite_volume` is PDEBench's scheme in space (second order, monotonized-central limiter, upwind flux, central
diffusion); in time it is MUSCL-Hancock (Toro, Riemann Solvers, 14.4), which takes one flux a step and has a smaller
error than PDEBench's midpoint rule. Its step is bound by dx^2/kappa, so it is for small viscosity, where shocks are
thin. `spectral` takes diffusion exactly (integrating factor, RK4), so it is for viscosity that resolves the shocks on
the grid.

Both take kappa as a number, or as a (B, 1) tensor: one for each trajectory.

Shapes: B batch, N points, T times.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COURANT = 0.5  # half of the scheme's limit
TURN = 2.0  # radians a step of the fastest mode; half of it changes the solution by 1e-6 of its norm at most


def finite_volume(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """u: (B, N) cell values at times[0] -> (B, T, N). Each trajectory takes steps of its own."""
    dx = 1.0 / u.shape[-1]
    kappa = torch.as_tensor(kappa, dtype=u.dtype, device=u.device)
    diffusion_step = 0.25 * dx**2 / kappa
    frames = [u]
    for start, end in itertools.pairwise(times):
        left = torch.full_like(u[:, :1], end - start, dtype=torch.float64)
        while float(left.max()) > 0:
            largest = u.detach().abs().nan_to_num().amax(-1, keepdim=True).clamp(min=1e-12)
            step = torch.minimum(torch.minimum(COURANT * dx / largest, diffusion_step), left)
            left = left - step
            step = (step / dx).to(u.dtype)
            u = u.addcmul(_flux_difference(u, step, kappa / dx), step)
        frames.append(u)
    return torch.stack(frames, 1)


def _flux_difference(u: Tensor, step: Tensor, diffusion: Tensor) -> Tensor:
    """u: (B, N), step: (B, 1), in dx, diffusion: kappa / dx -> flux in minus flux out of each cell in the step, (B, N).

    Slices of one padded copy: this is where the generator's time goes.
    """
    padded = torch.cat((u[:, -2:], u, u[:, :2]), -1)
    jump = padded[:, 1:] - padded[:, :-1]

    # The limited slope: the smallest of 2 jumps and the central difference where all have one sign, else 0.
    left, right = jump[:, :-1], jump[:, 1:]
    central = (left + right).mul_(0.5)
    lowest = torch.minimum(torch.minimum(left, right).mul_(2), central).clamp_(min=0)
    highest = torch.maximum(torch.maximum(left, right).mul_(2), central).clamp_(max=0)
    half_slope = lowest.add_(highest).mul_(0.5)

    # In the middle of the step, by u_t = -u u_x + kappa u_xx.
    cell = padded[:, 1:-1]
    middle = torch.addcmul(cell, cell * step, half_slope, value=-1).addcmul_(right - left, 0.5 * step * diffusion)
    behind, ahead = (middle + half_slope)[:, :-1], (middle - half_slope)[:, 1:]  # both sides of each face
    upwind = (behind + ahead).abs_()
    flux = (behind * behind).addcmul_(ahead, ahead).addcmul_(upwind, ahead - behind, value=-1).mul_(0.25)
    flux.addcmul_(middle[:, 1:] - middle[:, :-1], diffusion, value=-1)
    return flux[:, :-1] - flux[:, 1:]


def spectral(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """u: (B, N) point values at times[0] -> (B, T, N); products are dealiased by the 2/3 rule.

    Computed on as many points as the shocks need, which is far fewer where diffusion is strong, or they have decayed.
    All take the steps of the fastest, on the points of the sharpest.
    """
    points = u.shape[-1]
    waves = 2 * math.pi * torch.arange(points // 2 + 1, device=u.device, dtype=u.dtype)
    frames = [u]
    hat, coarse = torch.fft.rfft(u, norm="forward"), points
    for start, end in itertools.pairwise(times):
        coarse = min(coarse, max(points_needed(frames[-1], kappa), points_held(hat)))
        modes = coarse // 2 + 1
        hat, wave = hat[:, :modes], waves[:modes]
        transport = -0.5j * wave * (torch.arange(modes, device=u.device) <= coarse // 3)

        def rate(hat: Tensor, coarse: int = coarse, transport: Tensor = transport) -> Tensor:
            square = torch.fft.irfft(hat, coarse, norm="forward").square()
            return transport * torch.fft.rfft(square, norm="forward")

        largest = max(float(frames[-1].abs().max()), 1e-12)
        # RK4 is stable up to 2.8 for a purely imaginary rate; the fastest kept mode turns at |u| k_max.
        count = math.ceil((end - start) * largest * 2 * math.pi * (coarse // 3) / TURN)
        step = (end - start) / count
        half, full = torch.exp(-kappa * wave**2 * step / 2), torch.exp(-kappa * wave**2 * step)
        for _ in range(count):
            a = rate(hat)
            b = rate(half * (hat + step / 2 * a))
            c = rate(half * hat + step / 2 * b)
            d = rate(full * hat + step * half * c)
            hat = full * hat + step / 6 * (full * a + 2 * half * (b + c) + d)
        frames.append(torch.fft.irfft(hat, points, norm="forward"))  # the modes left out are 0
    return torch.stack(frames, 1)


def points_needed(u: Tensor, kappa: float | Tensor) -> int:
    """Points whose lower third of modes holds all that is above the rounding error from here on.

    The modes k of the steepest shock, h/2 tanh(h x / 4 kappa), fall as exp(-2 pi kappa k / h), and h is at most what u
    spans, which never grows. A multiple of 64, whose transforms are fast.
    """
    steepest = float(((u.amax(-1, keepdim=True) - u.amin(-1, keepdim=True)) / kappa).max())
    last = -math.log(torch.finfo(u.dtype).eps) * steepest / (2 * math.pi) ** 2
    return 64 * max(math.ceil(3 * last / 64), 1)


def points_held(hat: Tensor) -> int:
    """The same for the modes that are there: an initial field may be sharper than any shock."""
    size = hat.abs().amax(0)
    last = int((size > torch.finfo(size.dtype).eps * size.max()).nonzero().max()) if size.max() > 0 else 0
    return 64 * max(math.ceil(3 * last / 64), 1)


def method_for(kappa: float, points: int) -> Callable:
    """Spectral where the grid resolves the shocks, finite volumes where it does not.

    A shock of height h is 4 kappa / h wide; the spectral method wants that over 3 cells for h = 1.
    """
    return spectral if 4 * kappa * points > 3 else finite_volume


def solve(u: Tensor, kappa: float | Tensor, times: Sequence[float]) -> Tensor:
    """By the method that fits, each trajectory by its own."""
    if not isinstance(kappa, Tensor):
        return method_for(kappa, u.shape[-1])(u, kappa, times)
    solution = u.new_empty(len(u), len(times), u.shape[-1])
    methods = [method_for(value, u.shape[-1]) for value in kappa.flatten().tolist()]
    for method in set(methods):
        rows = torch.tensor([each is method for each in methods], device=u.device)
        solution[rows] = method(u[rows], kappa[rows], times)
    return solution
