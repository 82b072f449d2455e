"""What this machine gives this process, and its place among those that torchrun started together."""

import os


def cores() -> int:
    """Those the process may use, where the system tells (Linux), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """On all machines; 1 without torchrun."""
    return _from_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """0 is the first or only process: the one that writes and speaks."""
    return _from_torchrun("RANK", 0)


def under_torchrun() -> bool:
    """Of one process too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_processes() -> int:
    """On this machine."""
    return _from_torchrun("LOCAL_WORLD_SIZE", 1)


def local_rank() -> int:
    """Among those on this machine."""
    return _from_torchrun("LOCAL_RANK", 0)


def _from_torchrun(name: str, alone: int) -> int:
    """The names are common ones, so they count only where torchrun says that it was there."""
    return int(os.environ[name]) if under_torchrun() else alone
