"""How a training is computed: device, threads, precision. No part of a stage's identity."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ups.errors import UserError
from ups.machine import cores, local_processes, local_rank, processes
from ups.provenance import git_commit
from ups.signals import stop_after
from ups.training.distributed import by_first

VARIANTS = 8  # of a compiled network: Dynamo's own limit


@dataclass(frozen=True)
class Runtime:
    """Made by `set_up` from the node `runtime`."""

    device: torch.device
    precision: str
    compile: bool
    threads: int | None  # None: to be chosen by timing
    on_nonfinite: str
    max_skipped: int

    @property
    def facts(self) -> dict[str, str | bool | None]:
        """What a training's weights depend on beside its config, and up to rounding or more."""
        made_by = {"device": self.device.type, "precision": self.precision, "compile": self.compile}
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return made_by | {"gpu": gpu, "torch": torch.__version__, "git_commit": git_commit()}

    def autocast(self) -> AbstractContextManager:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def set_up(
    device: str, threads: int | str, precision: str = "float32", compile: bool = False, on_nonfinite: str = "stop",
    max_skipped: int = 0, max_hours: float | None = None,
) -> Runtime:  # fmt: skip
    stop_after(max_hours)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index, count = torch.device(device).index or 0, torch.cuda.device_count()
        if index >= count:
            raise UserError(f"runtime.device={device}: this PyTorch sees {count} GPUs; use runtime.device=auto")
        if processes() > 1:
            device = own_gpu(device, count)
        torch.backends.cudnn.allow_tf32 = False  # 10 bits of a flux are too few: it is differenced
        torch.backends.cudnn.deterministic = True  # or two trainings of one seed differ, and a resume from its run
    if threads != "auto":
        torch.set_num_threads(threads)
    threads = None if threads == "auto" else threads
    return Runtime(torch.device(device), precision, compile, threads, on_nonfinite, max_skipped)


def own_gpu(device: str, count: int) -> str:
    """Each process of torchrun has a GPU to itself."""
    if device != "cuda":
        raise UserError(f"runtime.device={device}: torchrun gives each process its own GPU; use runtime.device=cuda")
    if local_processes() > count:
        raise UserError(
            f"runtime.device=cuda: torchrun started {local_processes()} processes for {count} GPUs; use "
            f"--nproc-per-node {count}, or runtime.device=cpu"
        )
    torch.cuda.set_device(local_rank())
    return f"cuda:{local_rank()}"


def compile_each(networks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """torch.compile, in place.

    Dynamo counts what it compiled of one `forward` for all networks of its class together: of other channels, of other
    batches, with and without gradients. Beyond its limit it would go back to eager with no more than a warning. What
    an earlier stage, or job of a sweep, has compiled is forgotten.
    """
    networks = list(networks)
    torch._dynamo.reset()
    dynamo = torch._dynamo.config
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, VARIANTS * len(networks))
    for network in networks:
        network.compile(backend=backend)


def check_compiler() -> None:
    """The one that Inductor will call."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(name):
        raise UserError(f"runtime.compile=true needs the C++ compiler {name}: install it, or leave the key false")


def choose_threads(runtime: Runtime, step: Callable[[], None]) -> None:
    """Time `step` at one thread and at all cores of this process, and keep what is faster.

    More is not always faster: on a shared machine the barriers of small kernels can cost 20 times the kernels. Then one
    step decides.
    """
    if runtime.threads is not None or runtime.device.type != "cpu":
        return
    chosen, many = 1, max_threads()
    if many > 1:
        one = _seconds(step, 1)
        if _seconds(step, many, enough=4 * one) < one:
            chosen = many
    torch.set_num_threads(by_first(lambda: chosen))  # one number: one order of sums for all


def max_threads() -> int:
    """One for each core that is this process's alone."""
    return max(1, cores() // local_processes())


def _seconds(step: Callable[[], None], threads: int, enough: float = math.inf) -> float:
    """The median of five, after one to warm up; or the first that takes longer than `enough`."""
    torch.set_num_threads(threads)
    step()
    laps = []
    for _ in range(5):
        started = time.perf_counter()
        step()
        laps.append(time.perf_counter() - started)
        if laps[-1] > enough:
            return laps[-1]
    return sorted(laps)[2]
