"""`dataset=burgers`: PDEBench's task, generated on first use and kept in a cache.

One file for each split and nu (or range of nu), named by a hash of all that determines it, so a sweep over nu or a
larger test set generates only what is new. Two runs that start at once share it: one generates under a lock, the other
waits.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from multiprocessing.spawn import get_preparation_data
from pathlib import Path

import torch
from torch import Tensor

from ups.console import Bar, console
from ups.data.batches import generator_of
from ups.data.initial_conditions import INITIAL_CONDITIONS
from ups.data.solver import finite_volume, method_for, solve, spectral
from ups.data.trajectories import Dataset, Splits, Trajectories
from ups.data.workers import each_solved
from ups.errors import UserError
from ups.files import locked, set_aside
from ups.memory import CPU, Lever, Memory
from ups.tensors import Damaged, read_tensors, write_tensors

SPLITS = ("train", "validation", "test")
ROUNDING = 1e-6  # of the first frame's size: what is left of a field that decays so far is rounding
CHUNK = 32  # trajectories solved together: small enough for the caches of one core
VERSIONS = {finite_volume: 2, spectral: 3}  # raise a method's, and FORMAT of identities, when its numbers change


class Burgers(Dataset):
    """Arguments: see conf/dataset/burgers.yaml."""

    def __init__(
        self, nu: float | list[float], train: int, validation: int, test: int, seed: int, solver_points: int,
        points: int, shifts: int, frames: int, time_step: float, initial_frame: int, rollout_steps: int,
        nu_range: list[float] | None, initial_condition: str,
    ):  # fmt: skip
        if train is None:
            raise UserError("dataset.train=null: say how many trajectories to generate; null is for published files")
        self.nu = [float(value) for value in _as_list(nu)]
        self.nu_range = nu_range and [float(value) for value in nu_range]
        self.initial_condition = initial_condition
        self.counts = dict(zip(SPLITS, (train, validation, test), strict=True))
        self.seed, self.solver_points, self.points, self.shifts = seed, solver_points, points, shifts
        self.frames, self.time_step = frames, time_step
        self.initial_frame, self.rollout_steps = initial_frame, rollout_steps
        if solver_points % points:
            raise UserError(f"dataset.points={points} must divide dataset.solver_points={solver_points}")

    def load(self, cache: Path) -> Splits:
        """All three splits, generated where they are not in the cache."""
        self._check_shifts()
        return Splits(**{split: self._load_split(split, cache) for split in SPLITS})

    def load_test(self, cache: Path) -> Trajectories:
        return self._load_split("test", cache)

    def example(self) -> Trajectories:
        """Of a training: it comes before `load`, and before anything is rented for that."""
        self._check_shifts()
        u = torch.zeros(1).expand(1, self.frames, self.points)  # of no size in memory
        return Trajectories(u, torch.tensor(self.nu[:1]), self.time_step)

    def _check_shifts(self) -> None:
        """Of a training set. They are no matter to a test set: so a stage can be scored at any resolution."""
        most = self.solver_points // self.points
        if self.shifts > most:
            raise UserError(f"dataset.shifts={self.shifts}: at most {most}, dataset.solver_points / dataset.points")

    def _load_split(self, split: str, cache: Path) -> Trajectories:
        with Memory(f"the data for {split}", lambda: [Lever(f"dataset.{split}", self.counts[split])], CPU):
            drawn = self.nu_range is not None and split != "test"
            parts = [self._load_part(split, nu, cache) for nu in ([self.nu_range] if drawn else self.nu)]
            return Trajectories(torch.cat([u for u, _ in parts]), torch.cat([nu for _, nu in parts]), self.time_step)

    def _load_part(self, split: str, nu: float | list[float], cache: Path) -> tuple[Tensor, Tensor]:
        """u, and the nu of each trajectory, for one nu or for a range."""
        shifts = self.shifts if split == "train" else 1
        methods = {method_for(value / torch.pi, self.solver_points) for value in _as_list(nu)}
        key = {
            "version": sum(VERSIONS[method] for method in methods), "split": split, "nu": nu,
            "count": self.counts[split], "seed": self.seed, "solver_points": self.solver_points,
            "points": self.points, "shifts": shifts, "frames": self.frames, "time_step": self.time_step,
            "initial_condition": self.initial_condition,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        file = cache / "burgers" / f"{split}-nu{named(nu)}-{digest}.safetensors"
        tensors = stored(file, key)
        if tensors is None:
            # Python's error for a script without `if __name__ == "__main__"`, early: the processes below, which import
            # it again, would wait for the lock of the one that starts them.
            get_preparation_data("any")
            with locked(file):
                tensors = stored(file, key, damaged=set_aside)
                if tensors is None:  # nor by the run that this one waited for
                    tensors = self._generate(split, nu, shifts)
                    write_tensors(file, tensors, {"key": json.dumps(key)})
                    console.print(f"generated {file} ({file.stat().st_size / 1e6:.0f} MB)")
        u = tensors["u"]
        return u, tensors["nu"] if isinstance(nu, list) else torch.full((len(u),), nu)

    def _generate(self, split: str, nu: float | list[float], shifts: int) -> dict[str, Tensor]:
        """u: (shifts * count, T, N) float32, where the copies of one trajectory lie a solver's cell apart.

        nu: (shifts * count,) float32, of a range alone.
        """
        count = self.counts[split]
        u = torch.empty(count, self.frames, self.solver_points)  # the largest first: without memory it fails at once
        # The stream depends on the split and nu by their names, so no two parts share an initial condition.
        named_by = [round(value * 1e9) for value in _as_list(nu)]
        stream = generator_of(CPU, self.seed, SPLITS.index(split), *named_by)
        u0 = INITIAL_CONDITIONS[self.initial_condition](count, self.solver_points, stream)
        nus = log_uniform(*nu, count, stream) if isinstance(nu, list) else None

        # Chunks of like speed or nu: all of a chunk wait for its slowest solution, and the spectral method takes its
        # steps for all. So a GPU, for which they are too small, would make other data of the same name.
        order = (u0.abs().amax(-1) if nus is None else nus).argsort()
        chunks = [
            (rows, u0[rows], nu / torch.pi if nus is None else nus[rows, None] / torch.pi)
            for rows in order.split(CHUNK)
        ]
        solve_chunk = partial(solve_frames, frames=self.frames, time_step=self.time_step)
        with Bar(f"generating {split}, nu {named(nu)}", count) as bar:
            done = 0
            for rows, frames in each_solved(solve_chunk, chunks):
                u[rows] = frames
                done += len(rows)
                bar.update(done)
        key = "dataset.nu" if nus is None else "dataset.nu_range"
        if not torch.isfinite(u).all():
            raise UserError(f"{key}={nu}: the solver diverged; raise dataset.solver_points")
        sizes = torch.linalg.vector_norm(u, dim=-1)  # (count, T)
        if (sizes <= ROUNDING * sizes[:, :1]).any():
            raise UserError(f"{key}={nu}: a field decays to zero, and no error is relative to that; lower it")
        stride = self.solver_points // self.points
        u = torch.cat([u[..., shift::stride] for shift in range(shifts)]).contiguous()
        return {"u": u} if nus is None else {"u": u, "nu": nus.repeat(shifts)}


def named(nu: float | list[float]) -> str:
    """0.001, or 0.001-0.1 for a range."""
    return "-".join(f"{value:g}" for value in _as_list(nu))


def _as_list(nu: float | list[float]) -> list[float]:
    return nu if isinstance(nu, list) else [nu]


def log_uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) float32, as it is stored, so that what was solved is what is told."""
    return (low * (high / low) ** torch.rand(count, generator=generator, dtype=torch.float64)).float()


def stored(
    file: Path, key: dict, damaged: Callable[[Path, str], None] = lambda file, reason: None
) -> dict[str, Tensor] | None:
    """What a cached file holds; None if there is none, or if it is not what was written for this key."""
    try:
        tensors, metadata = read_tensors(file)
        if metadata.get("key") != json.dumps(key):
            raise Damaged("it holds other data")
        return tensors
    except FileNotFoundError:
        return None
    except Damaged as error:
        damaged(file, str(error))
        return None


def solve_frames(u0: Tensor, kappa: float | Tensor, frames: int, time_step: float) -> Tensor:
    """u0: (B, M) float64, kappa: one, or (B, 1) -> (B, T, M) float32."""
    return solve(u0.float(), kappa, [frame * time_step for frame in range(frames)])
