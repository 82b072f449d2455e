"""The processes that solve trajectories: one a core, ended with the run however that ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import TimeoutError, active_children, get_context, resource_tracker
from multiprocessing.pool import Pool

import numpy as np
import torch
from torch import Tensor

from ups.errors import UserError
from ups.machine import cores


def each_solved(solve_chunk: Callable, chunks: list[tuple]) -> Iterator:
    """Of chunks (rows, u0, kappa): (rows, their solution) as they come, from one process a core."""
    workers = min(cores(), len(chunks))
    if workers == 1:
        with one_thread():
            for rows, u0, kappa in chunks:
                yield rows, solve_chunk(u0, kappa)
        return
    with _pool(workers) as pool:
        # The slowest chunk first, so that no core waits for it at the end. NumPy arrays cross processes by value.
        work = [(index, *map(_as_array, chunks[index][1:])) for index in reversed(range(len(chunks)))]
        alive = set(active_children())
        solutions = pool.imap_unordered(partial(_solve_array, solve_chunk), work)
        for _ in work:
            while (solution := _next(solutions)) is None:
                if set(active_children()) != alive:  # the pool starts another and waits for the lost work forever
                    raise UserError("a process that generates data was killed (out of memory?): free some, start again")
            yield chunks[solution[0]][0], torch.from_numpy(solution[1])


@contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    """Ctrl-C and a closed terminal reach the whole group; the parent ends its workers, which are born deaf to both.

    A SIGTERM waits until all have started: one that has half of what it is to begin with would end in a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    resource_tracker.ensure_running()  # the pool's helper, which the pool would start, and then unblock SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with get_context("spawn").Pool(workers, initializer=_start_worker) as pool:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what has waited is answered here, and ends the pool
            yield pool
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # where the pool did not start


@contextmanager
def one_thread() -> Iterator[None]:
    """A chunk's kernels are small: beside other work, two threads' barriers turned two seconds into two minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _next(solutions) -> tuple | None:
    """None if there is none within a second."""
    try:
        return solutions.next(timeout=1)
    except TimeoutError:
        return None


def _start_worker() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the pool ends its workers by it
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also of one that the pool starts later


def _as_array(value: float | Tensor) -> float | np.ndarray:
    return value.numpy() if isinstance(value, Tensor) else value


def _solve_array(solve_chunk: Callable, numbered: tuple) -> tuple:
    index, u0, kappa = numbered
    kappa = kappa if isinstance(kappa, float) else torch.from_numpy(kappa)
    return index, solve_chunk(torch.from_numpy(u0), kappa).numpy()
