"""By what a result was made."""

import subprocess

import torch

from ups.paths import ROOT


def provenance(device: torch.device, precision: str) -> dict[str, str | None]:
    """What a stage's weights depend on beside its config: they are equal only up to rounding on another."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"git_commit": git_commit(), "torch": torch.__version__, "device": name, "precision": precision}


def git_commit() -> str | None:
    """The repo's commit, with "-dirty" after it if tracked files differ from it; None outside of a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
