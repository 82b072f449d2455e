"""The interface of a dataset to the rest of the repo.

Shapes: S trajectories, T frames, N points, B batch, K steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ups.errors import UserError


@dataclass(frozen=True)
class Trajectories:
    """Solutions of u_t + (u^2/2)_x = (nu/pi) u_xx on the periodic interval [0, 1).

    u: (S, T, N) float32, point values at equal distances in space and time.
    nu: (S,) float32, PDEBench's nu: the viscosity is nu/pi.
    time_step: between two frames, in the equation's time.
    """

    u: Tensor
    nu: Tensor
    time_step: float

    def __post_init__(self):
        if self.u.ndim != 3 or self.nu.shape != self.u.shape[:1]:
            raise ValueError(f"u must be (S, T, N) and nu (S,): got {tuple(self.u.shape)}, {tuple(self.nu.shape)}")

    def __len__(self) -> int:
        return len(self.u)

    def to(self, device: torch.device) -> "Trajectories":
        return Trajectories(self.u.to(device), self.nu.to(device), self.time_step)

    def window(
        self, initial_frame: int, steps: int, keys: tuple[str, str] = ("initial_frame", "rollout_steps")
    ) -> "Trajectories":
        """The frames initial_frame .. initial_frame + steps; `keys` of the config are named if there are fewer."""
        first_key, steps_key = keys
        last = initial_frame + steps
        most = self.u.shape[1] - 1 - initial_frame
        if most < 1:
            raise UserError(f"{first_key}={initial_frame}: no frame is left to predict of {self.u.shape[1]}")
        if steps > most:
            raise UserError(
                f"{steps_key}={steps} from {first_key}={initial_frame} needs {last + 1} frames "
                f"and the data has {self.u.shape[1]}: choose at most {most} steps"
            )
        return Trajectories(self.u[:, initial_frame : last + 1], self.nu, self.time_step)

    def split(self, size: int) -> list["Trajectories"]:
        """Parts of at most `size` trajectories, in order."""
        return [
            Trajectories(u, nu, self.time_step)
            for u, nu in zip(self.u.split(size), self.nu.split(size), strict=True)
        ]


@dataclass(frozen=True)
class Splits:
    """Trajectories that share no initial condition."""

    train: Trajectories
    validation: Trajectories
    test: Trajectories

    def to(self, device: torch.device) -> "Splits":
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))


class Dataset(ABC):
    """What a node `dataset` describes. A rollout starts from `initial_frame` and predicts `rollout_steps` frames."""

    initial_frame: int
    rollout_steps: int

    @abstractmethod
    def load(self, cache: Path) -> Splits:
        """On the CPU. `cache` is a folder for what is generated; it may not exist yet."""

    @abstractmethod
    def load_test(self, cache: Path) -> Trajectories:
        """The test split alone."""

    def example(self) -> Trajectories | None:
        """One trajectory in the shape of the others, whatever its values; None if it is not known before `load`."""
        return None
