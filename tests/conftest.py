"""Shared by the tests: a command run as a user runs it, and the files this project did not write."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from ups.config.compose import composed
from ups.data.generator import Burgers
from ups.data.trajectories import Splits
from ups.machine import cores

ROOT = Path(__file__).resolve().parent.parent
DRAWN = [
    "experiment=smoke", "budget.operator=6", "budget.diffusion_residual=6", "budget.consistency_distill=6",
    "stage.validations=2", "callbacks.step_metrics.every=2", "runtime.threads=1", "dataset.rollout_steps=5",
]  # fmt: skip
FONTS = Path.home() / ".cache" / "matplotlib"  # a list of fonts for each new home would take seconds
SMALL = [*DRAWN, "~callbacks.figures"]  # drawing takes a third of so short a run

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and `&` have it ignored, and children inherit that


def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores: many tests wait for a clock."""
    return cores() + 1


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """The tests that share a training go to one worker: each of the others would train it too."""
    for item in items:
        for name in {"finished", "whole"} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One cache of generated data for all tests, of all workers: one of them generates, the others wait."""
    ours = tmp_path_factory.getbasetemp()
    folder = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Splits:
    """32 points, 16 trajectories, windows of five steps."""
    dataset = Burgers(nu=0.01, train=16, validation=4, test=4, seed=0, solver_points=64, points=32, shifts=1,
                      frames=8, time_step=0.05, initial_frame=2, rollout_steps=5, nu_range=None,
                      initial_condition="sinusoids")  # fmt: skip
    splits = dataset.load(tmp_path_factory.mktemp("data"))
    return Splits(splits.train, splits.validation.window(2, 5), splits.test.window(2, 5))


@pytest.fixture
def command(tmp_path, cache):
    """`command("train.py", "stage=operator")` in an empty folder, without W&B's key -> the completed process."""

    def run(script: str, *overrides: str, timeout: float = 120, **environment: str):
        # Beside other tests, an evaluation by two threads is slow.
        shared = {"train.py": {"cache": cache}, "evaluate.py": {"runtime.threads": 1}}.get(script, {})
        given = {override.partition("=")[0] for override in overrides}
        added = [f"{key}={value}" for key, value in shared.items() if not {key, "--help"} & given]
        return subprocess.run(
            [sys.executable, str(ROOT / script), *overrides, *added], cwd=tmp_path, timeout=timeout, text=True,
            capture_output=True, env=clean_environment(tmp_path) | environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


def train_config(*overrides: str) -> DictConfig:
    return composed("train", overrides)


def clean_environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HYDRA", "VAST"))}
    fast = {"MPLCONFIGDIR": str(FONTS), "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1"}
    return kept | {"HOME": str(home), "COLUMNS": "120"} | fast


def wait_for_line(words: str, process: subprocess.Popen) -> None:
    """Of its stderr. A process that has not said it in a minute is killed, so that nothing waits for ever."""
    killer = threading.Timer(60, process.kill)
    killer.start()
    said = any(words in line for line in process.stderr)
    killer.cancel()
    assert said, f"it ended, or was killed, before it said {words!r}"


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes in which a generator solves, once there are two."""
    deadline = time.monotonic() + 60
    while True:
        children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
        if len(pids := children.stdout.split()) >= 2:
            return [int(pid) for pid in pids]
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=10)
        time.sleep(0.05)


def foreign(name: str) -> Path:
    """A file of ../shared/data, or a skip that says why."""
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine: it is data the project did not write and does not ship")
    return path


def pytest_terminal_summary(terminalreporter):
    """What the soak counted."""
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        for name, value in report.user_properties:
            if name == "soak":
                terminalreporter.write_line(value)
