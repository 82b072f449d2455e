"""Training batches as a function of (seed, step): nothing else decides what a step sees, so a resumed run is equal.

Shapes: B batch, K steps, N points.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ups.data.trajectories import Trajectories


@dataclass(frozen=True)
class Batch:
    """u: (B, K+1, N) consecutive frames; nu: (B,); generator: of all the randomness of this step's loss."""

    u: Tensor
    nu: Tensor
    time_step: float
    generator: torch.Generator

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.u.device)


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream is independent of every other key's (NumPy's SeedSequence hashes the key)."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> 1))


def batch_at(data: Trajectories, size: int, steps: int, seed: int, step: int) -> Batch:
    """Windows of `steps` + 1 frames drawn uniformly, half of them reflected: v(x) = -u(-x) solves Burgers' too."""
    device = data.u.device
    generator = generator_of(device, seed, step)
    draw = lambda high: torch.randint(high, (size,), generator=generator, device=device)
    sample, frame = draw(len(data)), draw(data.u.shape[1] - steps)
    frames = frame[:, None] + torch.arange(steps + 1, device=device)
    u = data.u[sample[:, None], frames]
    reflected = draw(2).bool()[:, None, None]
    return Batch(torch.where(reflected, -u.flip(-1), u), data.nu[sample], data.time_step, generator)
