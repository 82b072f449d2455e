"""Training batches as a function of (seed, step): nothing else decides what a step sees, so a resumed run is equal.

Shapes: B batch (or a process's part of it), K steps, N points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ups.data.symmetries import transformed
from ups.data.trajectories import Trajectories


@dataclass(frozen=True)
class Batch:
    """u: (B, K+1, N) consecutive frames; nu: (B,); generator: of all the randomness of this step's loss.

    sample, frame: (B,), which trajectories of the training data, from which of their frames on.

    A part of a step's batch holds B of its `size` samples, from `first` on. Noise is drawn for the whole batch,
    so that the mean of the parts' losses is the loss of the whole.
    """

    u: Tensor
    nu: Tensor
    time_step: float
    generator: torch.Generator
    sample: Tensor
    frame: Tensor
    size: int
    first: int = 0
    mean_of_parts: Callable[[Tensor], Tensor] | None = None

    def normal(self, like: Tensor) -> Tensor:
        """like: (B, ...)."""
        shape = (self.size, *like.shape[1:])
        return self._own(torch.randn(shape, generator=self.generator, device=like.device, dtype=like.dtype))

    def uniform(self, *shape: int) -> Tensor:
        """-> (B, *shape)."""
        return self._own(torch.rand((self.size, *shape), generator=self.generator, device=self.u.device))

    def mean(self, values: Tensor) -> Tensor:
        """Of the whole step's batch, whatever part this is; for values that need no gradient."""
        own = values.detach().mean()
        return self.mean_of_parts(own) if self.mean_of_parts else own

    def part(self, index: int, count: int, mean_of_parts: Callable[[Tensor], Tensor]) -> "Batch":
        """One of `count` equal parts; `mean_of_parts` gives a scalar's mean over all of them."""
        length = self.size // count
        first = index * length
        rows = slice(first, first + length)
        own = {name: getattr(self, name)[rows] for name in ("u", "nu", "sample", "frame")}
        return replace(self, **own, first=first, mean_of_parts=mean_of_parts)

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self.first : self.first + len(self.u)]


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream is a function of the key, by NumPy's SeedSequence; (seed,) and (seed, 0) are one key."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> 1))


def batch_at(data: Trajectories, size: int, steps: int, seed: int, step: int, symmetries: Sequence[str] = ()) -> Batch:
    """Windows of `steps` + 1 frames drawn uniformly, each under a random member of each of the symmetries, in order."""
    device = data.u.device
    generator = generator_of(device, seed, step)
    draw = lambda high: torch.randint(high, (size,), generator=generator, device=device)
    sample, frame = draw(len(data)), draw(data.u.shape[1] - steps)
    frames = frame[:, None] + torch.arange(steps + 1, device=device)
    u = data.u[sample[:, None], frames]
    for name in symmetries:
        u = transformed(u, name, data.time_step, generator)
    return Batch(u, data.nu[sample], data.time_step, generator, sample, frame, size)
