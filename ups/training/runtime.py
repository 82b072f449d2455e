"""How a training is computed: device, threads, precision. No part of a stage's identity."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ups.errors import UserError
from ups.machine import cores


@dataclass(frozen=True)
class Runtime:
    """Made by `set_up` from the node `runtime`."""

    device: torch.device
    precision: str
    compile: bool
    threads: int | None  # None: to be chosen by timing

    def autocast(self) -> AbstractContextManager:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def set_up(device: str, threads: int | str, precision: str = "float32", compile: bool = False) -> Runtime:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index, count = torch.device(device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise UserError(f"runtime.device={device}: this PyTorch sees {count} GPUs; use runtime.device=auto")
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of a flux are too few: it is differenced
    if threads != "auto":
        torch.set_num_threads(threads)
    return Runtime(torch.device(device), precision, compile, None if threads == "auto" else threads)


def choose_threads(runtime: Runtime, step: Callable[[], None]) -> None:
    """Time `step` at one thread and at all cores, and keep what is faster.

    More is not always faster: on a shared machine the barriers of small kernels can cost 20 times the kernels.
    """
    if runtime.threads is not None or runtime.device.type != "cpu":
        return
    candidates = sorted({1, cores()})
    seconds = {count: _seconds(step, count) for count in candidates} if len(candidates) > 1 else {1: 0.0}
    torch.set_num_threads(min(seconds, key=seconds.get))


def _seconds(step: Callable[[], None], threads: int) -> float:
    """The median of five, after one to warm up."""
    torch.set_num_threads(threads)
    step()
    laps = []
    for _ in range(5):
        started = time.perf_counter()
        step()
        laps.append(time.perf_counter() - started)
    return sorted(laps)[2]
