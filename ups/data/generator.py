"""`dataset=burgers`: PDEBench's task, generated on first use and kept in a cache.

One file for each split and nu, named by a hash of all that determines it, so a sweep over nu or a larger test set
generates only what is new. Two runs that start at once share it: one generates under a lock, the other waits.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import TimeoutError, active_children, get_context, resource_tracker
from pathlib import Path

import torch
from torch import Tensor

from ups.console import Bar, console
from ups.data.batches import generator_of
from ups.data.initial_conditions import random_sinusoids
from ups.data.solver import solve
from ups.data.trajectories import Splits, Trajectories
from ups.errors import UserError
from ups.files import locked, set_aside
from ups.machine import cores
from ups.memory import Lever, Memory
from ups.tensors import Damaged, read_tensors, write_tensors

SPLITS = ("train", "validation", "test")
CHUNK = 32  # trajectories solved together: small enough for the caches of one core
VERSION = 1  # of the equations here: raise it when a change alters the numbers


class Burgers:
    """Arguments: see conf/dataset/burgers.yaml."""

    def __init__(
        self, nu: float | list[float], train: int, validation: int, test: int, seed: int, solver_points: int,
        points: int, shifts: int, frames: int, time_step: float, initial_frame: int, rollout_steps: int,
    ):  # fmt: skip
        self.nu = [float(value) for value in (nu if isinstance(nu, list) else [nu])]
        self.counts = dict(zip(SPLITS, (train, validation, test), strict=True))
        self.seed, self.solver_points, self.points, self.shifts = seed, solver_points, points, shifts
        self.frames, self.time_step = frames, time_step
        self.initial_frame, self.rollout_steps = initial_frame, rollout_steps
        if solver_points % points:
            raise UserError(f"dataset.points={points} must divide dataset.solver_points={solver_points}")

    def load(self, cache: Path, device: torch.device) -> Splits:
        """All three splits, generated where they are not in the cache."""
        most = self.solver_points // self.points
        if self.shifts > most:  # no matter to a test set: so a stage can be scored at any resolution
            raise UserError(f"dataset.shifts={self.shifts}: at most {most}, dataset.solver_points / dataset.points")
        return Splits(**{split: self._load_split(split, cache, device) for split in SPLITS})

    def load_test(self, cache: Path, device: torch.device) -> Trajectories:
        return self._load_split("test", cache, device)

    def _load_split(self, split: str, cache: Path, device: torch.device) -> Trajectories:
        with Memory(f"the data for {split}", lambda: [Lever(f"dataset.{split}", self.counts[split])], device):
            parts = [self._load_part(split, nu, cache, device) for nu in self.nu]
            nu = torch.cat([torch.full((len(part),), value) for part, value in zip(parts, self.nu, strict=True)])
            return Trajectories(torch.cat(parts), nu, self.time_step)

    def _load_part(self, split: str, nu: float, cache: Path, device: torch.device) -> Tensor:
        shifts = self.shifts if split == "train" else 1
        key = {
            "version": VERSION, "split": split, "nu": nu, "count": self.counts[split], "seed": self.seed,
            "solver_points": self.solver_points, "points": self.points, "shifts": shifts,
            "frames": self.frames, "time_step": self.time_step,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        file = cache / "burgers" / f"{split}-nu{nu:g}-{digest}.safetensors"
        if (u := stored(file, key)) is not None:
            return u
        with locked(file):
            if (u := stored(file, key, damaged=set_aside)) is None:  # nor by the run that this one waited for
                u = self._generate(split, nu, shifts, device)
                write_tensors(file, {"u": u}, {"key": json.dumps(key)})
                console.print(f"generated {file} ({file.stat().st_size / 1e6:.0f} MB)")
        return u

    def _generate(self, split: str, nu: float, shifts: int, device: torch.device) -> Tensor:
        """(shifts * count, T, N) float32; the copies of one trajectory lie a solver's cell apart."""
        count = self.counts[split]
        u = torch.empty(count, self.frames, self.solver_points)  # the largest first: without memory it fails at once
        # The stream depends on the split and nu by their names, so no two parts share an initial condition.
        stream = generator_of(torch.device("cpu"), self.seed, SPLITS.index(split), round(nu * 1e9))
        u0 = random_sinusoids(count, self.solver_points, stream)

        # Chunks of like speed: all of a chunk take the steps of its fastest. On a GPU, everything is one chunk.
        order = u0.abs().amax(-1).argsort()
        chunks = list(order.split(CHUNK if device.type == "cpu" else count))
        solve_chunk = partial(
            solve_frames, kappa=nu / torch.pi, frames=self.frames, time_step=self.time_step, device=device
        )
        with Bar(f"generating {split}, nu {nu:g}", count) as bar:
            done = 0
            for chunk, frames in _each(solve_chunk, u0, chunks, device):
                u[chunk] = frames
                done += len(chunk)
                bar.update(done)
        if not torch.isfinite(u).all():
            raise UserError(f"dataset.nu={nu:g}: the solver diverged; raise dataset.solver_points")
        stride = self.solver_points // self.points
        return torch.cat([u[..., shift::stride] for shift in range(shifts)]).contiguous()


def stored(file: Path, key: dict, damaged: Callable[[Path, str], None] = lambda file, reason: None) -> Tensor | None:
    """The field in a cached file; None if there is none, or if it is not what was written for this key."""
    try:
        tensors, metadata = read_tensors(file)
        if metadata.get("key") != json.dumps(key):
            raise Damaged("it holds other data")
        return tensors["u"]
    except FileNotFoundError:
        return None
    except Damaged as error:
        damaged(file, str(error))
        return None


def solve_frames(u0: Tensor, kappa: float, frames: int, time_step: float, device: torch.device) -> Tensor:
    """u0: (B, M) float64 -> (B, T, M) float32."""
    times = [frame * time_step for frame in range(frames)]
    return solve(u0.to(device, torch.float32), kappa, times).float().cpu()


def _each(solve_chunk: Callable, u0: Tensor, chunks: list[Tensor], device: torch.device) -> Iterator:
    """(chunk, its solution) as they come, from one process a core where the solver runs on the CPU."""
    workers = min(cores(), len(chunks))
    if device.type != "cpu" or workers == 1:
        for chunk in chunks:
            yield chunk, solve_chunk(u0[chunk])
        return
    # Ctrl-C and a closed terminal reach the whole group; the parent ends its workers, which are born deaf to both.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    resource_tracker.ensure_running()  # the pool's helper, which the pool would start, and then unblock SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool = get_context("spawn").Pool(workers, initializer=_start_worker)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        # The slowest chunk first, so that no core waits for it at the end. NumPy arrays cross processes by value.
        work = [(index, u0[chunks[index]].numpy()) for index in reversed(range(len(chunks)))]
        alive = set(active_children())
        solutions = pool.imap_unordered(partial(_solve_array, solve_chunk), work)
        for _ in work:
            while (solution := _next(solutions)) is None:
                if set(active_children()) != alive:  # the pool starts another and waits for the lost work for ever
                    raise UserError("a process that generates data was killed (out of memory?): free some, start again")
            yield chunks[solution[0]], torch.from_numpy(solution[1])


def _next(solutions) -> tuple | None:
    """None if there is none within a second."""
    try:
        return solutions.next(timeout=1)
    except TimeoutError:
        return None


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also of one that the pool starts later


def _solve_array(solve_chunk: Callable, numbered: tuple) -> tuple:
    index, u0 = numbered
    return index, solve_chunk(torch.from_numpy(u0)).numpy()
