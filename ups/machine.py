"""What this machine gives this process."""

import os


def cores() -> int:
    """Those the process may use, where the system tells (Linux), else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
