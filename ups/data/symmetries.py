"""Symmetries of u_t + (u^2/2)_x = kappa u_xx on the periodic interval [0, 1), exact on the grid, as augmentation.

The image of a solution's frames is a solution's frames, at the same kappa.

Shapes: B samples, K steps, N points.
"""

import torch
from torch import Tensor

FARTHEST = 3  # cells per step of a random Galilean shift: a speed of 0.23 at 256 points and a time step of 0.05


def translate(u: Tensor, cells: Tensor) -> Tensor:
    """v(x, t) = u(x - a, t). u: (B, K+1, N), cells: (B,) whole numbers, a in cells."""
    return rolled(u, cells[:, None])


def reflect(u: Tensor) -> Tensor:
    """v(x, t) = -u(-x, t)."""
    return -u.flip(-1)


def galilean(u: Tensor, cells: Tensor, time_step: float) -> Tensor:
    """v(x, t) = u(x - c t, t) + c. u: (B, K+1, N), cells: (B,) whole numbers, c in cells per step."""
    steps, points = u.shape[1:]
    speed = cells / (points * time_step)
    return rolled(u, cells[:, None] * torch.arange(steps, device=u.device)) + speed[:, None, None].to(u.dtype)


def rolled(u: Tensor, cells: Tensor) -> Tensor:
    """u: (..., N), each field moved right by a whole number of cells: (...), or (B, 1) for all frames of a sample."""
    points = u.shape[-1]
    source = (torch.arange(points, device=u.device) - cells[..., None]) % points
    return u.gather(-1, source.expand_as(u))


def transformed(u: Tensor, name: str, time_step: float, generator: torch.Generator) -> Tensor:
    """u: (B, K+1, N), each sample under a random member of the named symmetry; the identity is one."""
    draw = lambda low, high: torch.randint(low, high, u.shape[:1], generator=generator, device=u.device)
    if name == "translation":
        return translate(u, draw(0, u.shape[-1]))
    if name == "reflection":
        return torch.where(draw(0, 2).bool()[:, None, None], reflect(u), u)
    if name == "galilean":
        return galilean(u, draw(-FARTHEST, FARTHEST + 1), time_step)
    raise ValueError(f"no symmetry is called {name}")
