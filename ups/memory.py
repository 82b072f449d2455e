"""Out of memory, as one line: what was held and asked for, which key to lower to what, and what that will take."""

import math
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ups.errors import UserError
from ups.faults import is_out_of_memory

SPARE = 0.8  # of the room, for what an estimate does not see
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) (\w+)")
SIZES = re.compile(r"overflowed with sizes=\[([\d, ]+)\]")
FLOAT = 4  # bytes
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Lever:
    """A key of the config that memory grows with, as its value to the `power`; it goes in multiples of `least`."""

    key: str
    value: int
    least: int = 1
    power: int = 1

    def lowered(self, needed: int, room: int) -> tuple[int, int] | None:
        """The largest of value/2, value/4, ... whose need fits into the room, and its need; None if none does."""
        value = self.value
        while (value := value // 2 // self.least * self.least) > 0:
            need = math.ceil(needed * (value / self.value) ** self.power)
            if need <= room:
                return value, need
        return None


class Memory:
    """`with memory: ...`, which may be used again; what the block holds is counted from where this was made.

    Of the levers, which are looked up when they are needed, the first that helps is the one that is named.
    """

    def __init__(self, doing: str, levers: Callable[[], list[Lever]], device: torch.device):
        self.doing, self.levers, self.device = doing, levers, device
        self.before = {each: held(each) for each in {device, CPU}}

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        # What the block made is still held: the error's frames hold it.
        if error is not None and is_out_of_memory(error):
            device = self.device if "CUDA" in str(error) else CPU  # whose it was: data for a GPU begin on the CPU
            raise UserError(self._line(asked_by(error), device)) from error

    def _line(self, asked: int, device: torch.device) -> str:
        now, left = held(device), free(device)
        grown = max(now - self.before[device], 0)
        line = (
            f"{self.doing}: out of memory ({device.type}); {_size(now)} were held and "
            f"{_size(asked) if asked else 'some'} more asked for, with {_size(left)} free"
        )
        levers = self.levers()
        for lever in levers:
            if lowered := lever.lowered(grown + asked, int(SPARE * (grown + left))):
                value, need = lowered
                return (
                    f"{line}. {lever.key}={lever.value} is too much: try {lever.key}={value}, "
                    f"about {_size(self.before[device] + need)} in all"
                )
        tried = " or ".join(f"{lever.key}={lever.value}" for lever in levers)
        remedy = "a smaller model, or more memory"
        return f"{line}. Less of {tried} alone does not help: it takes {remedy}" if tried else f"{line}: use {remedy}"


def asked_by(error: BaseException) -> int:
    """Bytes that could not be had, as the error tells; 0 if it does not."""
    text = str(error)
    if found := SIZES.search(text):
        return math.prod(map(int, found[1].split(","))) * FLOAT
    found = ASKED.search(text)
    return int(float(found[1]) * 1024 ** UNITS.index(found[2])) if found and found[2] in UNITS else 0


def held(device: torch.device) -> int:
    """Bytes that this process has."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def free(device: torch.device) -> int:
    """Bytes that it may still have."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = min(psutil.virtual_memory().available, left_to_container())
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return available if limit < 0 else max(min(available, limit - psutil.Process().memory_info().vms), 0)


def left_to_container(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes, by the limit of a container (cgroup v2); infinite where there is none."""
    limit, used = group / "memory.max", group / "memory.current"
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return math.inf
    return int(limit.read_text()) - int(used.read_text())


def _size(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f"{count / 1024**power:.3g} {UNITS[power]}"
