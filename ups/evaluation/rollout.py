"""Autoregressive prediction: the output of a step is the input of the next.

Shapes: S trajectories, T predicted frames, N points, M members.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import generator_of
from ups.data.solver import finite_volume, spectral
from ups.data.trajectories import Trajectories

Predictor = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]
"""(u (B, N), nu (B,), time step, generator) -> the next frame (B, N)."""

STIFF = 25  # kappa N from which on diffusion holds finite volumes to a 50th of the step of a unit speed
# Trajectories at a time, of every validation: a corrector draws its noise batch by batch, so another number gives a
# trajectory other noise, and may select other weights.
BATCH_SIZE = 64


@torch.no_grad()
def rollout(step: Predictor, window: Trajectories, member: int = 0, batch_size: int = BATCH_SIZE) -> Tensor:
    """From the window's first frame, as many steps as it has further frames -> (S, T, N)."""
    generator = generator_of(window.u.device, 0, member)
    parts = []
    for part in window.split(batch_size):
        u, frames = part.u[:, 0], []
        for _ in range(part.u.shape[1] - 1):
            u = step(u, part.nu, part.time_step, generator)
            frames.append(u)
        parts.append(torch.stack(frames, 1))
    return torch.cat(parts)


@torch.no_grad()
def one_step(step: Predictor, window: Trajectories, batch_size: int = BATCH_SIZE) -> Tensor:
    """Every frame of the window but the first, predicted from the true one before -> (S, T, N)."""
    samples, frames, points = window.u.shape
    pairs = Trajectories(
        torch.stack((window.u[:, :-1], window.u[:, 1:]), 2).reshape(-1, 2, points),
        window.nu.repeat_interleave(frames - 1),
        window.time_step,
    )
    return rollout(step, pairs, batch_size=batch_size * 8).reshape(samples, frames - 1, points)


def ensemble(step: Predictor, window: Trajectories, members: int, batch_size: int = BATCH_SIZE) -> Tensor:
    """`members` rollouts with their own noise -> (M, S, T, N)."""
    return torch.stack([rollout(step, window, member, batch_size) for member in range(members)])


def persistence(u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
    """The next frame is this frame."""
    return u


def classical_solver(u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
    """Finite volumes on the surrogate's own grid; of a viscosity that would take them hours, `spectral`."""
    kappa = nu[:, None] / torch.pi
    stiff = kappa[:, 0] * u.shape[-1] >= STIFF
    advanced = torch.empty_like(u)
    for method, rows in ((finite_volume, ~stiff), (spectral, stiff)):
        if rows.any():
            advanced[rows] = method(u[rows], kappa[rows], [0.0, time_step])[:, -1]
    return advanced
