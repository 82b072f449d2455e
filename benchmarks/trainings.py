"""What the benchmarks of accuracy share: one training after the other by train.py, and what is kept of it."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from ups.config.check import check
from ups.config.compose import composed
from ups.files import nulled, read_json, write, write_json
from ups.provenance import git_commit
from ups.stages.stage import Stage
from ups.training.identity import identity_of
from ups.training.load import load_chain
from ups.training.runtime import set_up
from ups.training.store import Entry

TRIAL_STEPS = 120
COMPOSING = threading.Lock()  # Hydra composes in one thread at a time
SEARCH_PATH = "hydra.searchpath=[file://benchmarks/conf]"  # of the options that benchmarks alone need


def checked(overrides: list[str]) -> DictConfig:
    with COMPOSING:
        cfg = composed("train", overrides)
    check(cfg)
    return cfg


def train(overrides: list[str], quiet: bool = False) -> None:
    command = [sys.executable, "train.py", *overrides, "logger=none", "runtime.threads=1"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL if quiet else None)


def trained(overrides: list[str]) -> tuple[Stage, Entry]:
    """By train.py, or what the store has of it."""
    train(overrides)
    identity = identity_of(checked(overrides))
    return load_chain(identity, Path("store"), set_up(device="cpu", threads=1)).stage, Entry(Path("store"), identity)


def steps_for(seconds: float, overrides: list[str], budgets: list[str]) -> int:
    """How many steps fit into the time at the speed of the faster of two short trainings that are thrown away.

    `budgets`: the keys of the prerequisites' steps, and last of the stage's own, which are timed. The cache remembers
    the speed of the same config, by the same code on the same machine.
    """
    short = [*overrides, *(f"{budget}={TRIAL_STEPS}" for budget in budgets)]
    short += [f"stage{'.requires' * depth}.validations=1" for depth in range(len(budgets))]
    short += ["dataset.validation=8", "dataset.test=8"]  # scoring an ensemble would take longer
    identity = identity_of(checked(short))
    kept = Path("cache") / "speeds" / f"{identity.folder}.json"
    measured = read_json(kept) if kept.exists() else {}
    here = {"machine": machine(), "commit": git_commit()}
    if not here.items() <= measured.items():
        kept.parent.mkdir(parents=True, exist_ok=True)
        spent = []
        for _ in range(2):  # other work on the machine slows one of them, rarely both
            with tempfile.TemporaryDirectory() as store:
                train([*short, f"store={store}"], quiet=True)
                spent.append(Entry(Path(store), identity).result()["seconds"]["training"])
        measured = here | {"steps_per_second": TRIAL_STEPS / min(spent)}
        write_json(kept, measured)
    return round(seconds * measured["steps_per_second"])


def significant(value: float) -> str:
    """Two digits of any size: 310, 3.8, 0.10, 0.093."""
    return f"{Decimal(f'{value:.1e}'):f}"


def milliseconds(call: Callable[[], object]) -> float:
    """The median of five, after one that is not timed."""
    laps = []
    for _ in range(6):
        started = time.perf_counter()
        call()
        laps.append((time.perf_counter() - started) * 1e3)
    return statistics.median(laps[1:])


def write_report(file: Path, report: dict, table: str, picture: Figure) -> None:
    """`file`, a .json, and beside it the table as .md and the picture as .png."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, nulled(report))
    write(file.with_suffix(".md"), lambda partial: partial.write_text(table))
    write(file.with_suffix(".png"), lambda partial: picture.savefig(partial, format="png", dpi=120))
    print(table)


def machine() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {(names or [platform.processor()])[0]}, torch {torch.__version__}"
