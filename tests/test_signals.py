"""A training that is told to stop: saved and ended within seconds, whoever tells it and whatever it does."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, clean_environment, workers_of
from machines import steps_of, wait_for
from terminal import READERS

from ups.callbacks.callback import Callback
from ups.errors import Interrupted
from ups.signals import interruption, stop_after, stopped_once, stopping
from ups.training.state import read_state

pytestmark = pytest.mark.slow

LONG = ["logger=none", *SMALL, "budget.operator=40000", "stage.validations=1"]  # many minutes
SOON = 30  # seconds; on an idle machine it takes one or two
POINTS = "outputs/*/*/metrics.csv"


class Training:
    """train.py in a process group of its own."""

    def __init__(self, folder: Path, *overrides: str):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *LONG, *overrides], cwd=folder, text=True, start_new_session=True,
            env=clean_environment(folder) | {"PYTHONPATH": str(ROOT / "tests")},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, pattern: str, size: int) -> None:
        """Until there is such a file of at least `size` bytes."""
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size >= size for path in self.folder.glob(pattern)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate(timeout=10)
            time.sleep(0.02)

    def end(self) -> tuple[int, str, float]:
        """Exit code, stderr, seconds until it ended."""
        started = time.monotonic()
        error = self.process.communicate(timeout=90)[1]
        return self.process.returncode, error, time.monotonic() - started

    def points(self) -> list[float]:
        """The steps in the newest metrics.csv."""
        with open(max(self.folder.glob(POINTS)), newline="") as file:
            return steps_of(list(csv.DictReader(file)))

    def saved_step(self) -> int:
        (state,) = self.folder.glob("store/operator-*/state.safetensors")
        return read_state(state).facts["step"]


@pytest.fixture
def start(tmp_path, cache):
    started = []

    def run(*overrides: str) -> Training:
        started.append(Training(tmp_path, f"cache={cache}", *overrides))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_while_data_is_generated(number, start, tmp_path):
    """The generator's own processes get it too."""
    run = start("cache=own", "dataset.train=1000", "dataset.solver_points=1024")
    workers_of(run.process)
    os.killpg(run.process.pid, number)
    code, error, seconds = run.end()
    assert code == 128 + number and seconds < SOON and "Traceback" not in error, error
    assert {path.suffix for path in tmp_path.glob("own/burgers/*")} == {".lock"}


def test_a_second_signal_that_comes_at_once_does_not_stop_a_clean_up():
    def interrupt(number, frame):
        raise interruption(number, "stopped")

    done = []
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted), stopped_once():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                done.append("cleaned up")
        assert done and signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_under_nohup_a_closed_terminal_asks_for_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stopping() and signal.SIGTERM in stopping()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_at_once_and_what_was_saved_stands(start):
    """The first is answered at a step's end, and a step that hangs has none."""
    run = start("callbacks.checkpoint.every=5", "+callbacks.hang._target_=test_signals.Hang", "+callbacks.hang.step=50")
    run.wait_for("hangs", 0)
    os.kill(run.process.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert run.process.poll() is None
    os.kill(run.process.pid, signal.SIGTERM)
    code, error, seconds = run.end()
    assert code == 143 and seconds < SOON and "SIGTERM again: ended at once" in error
    assert run.saved_step() == 45


class Hang(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_step(self, training) -> None:
        if training.step == self.step:
            Path("hangs").touch()
            time.sleep(100)


@pytest.mark.parametrize("kind", READERS)
def test_a_closed_terminal_stops_and_saves(kind, start, tmp_path, cache):
    """No line can be printed any more."""
    reader = kind([sys.executable, str(ROOT / "train.py"), *LONG, f"cache={cache}"], tmp_path,
                  clean_environment(tmp_path))  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 500 for path in tmp_path.glob(POINTS)):
        assert reader.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    reader.close()
    assert reader.process.wait(SOON) == READERS[kind]
    (state,) = tmp_path.glob("store/operator-*/state.safetensors")
    assert read_state(state).facts["step"] > 0


def test_max_hours_stops_by_itself_as_a_signal_does_and_the_same_command_goes_on(start):
    run = start("runtime.max_hours=0.002")
    code, error, seconds = run.end()
    assert code == 143 and 7.2 < seconds < 7.2 + SOON, error
    (line,) = [line for line in error.splitlines() if line.startswith("runtime.max_hours: ")]
    assert f"stopped operator at step {run.saved_step()} of 40000" in line and "Traceback" not in error

    first = run.saved_step()
    run = start("runtime.max_hours=0.002")
    wait_for(lambda: max(run.points(), default=0) > first or run.process.poll() is not None)
    run.process.send_signal(signal.SIGTERM)  # the timer needs no second proof
    code, error, _ = run.end()
    assert code == 143 and "resume  operator-" in error and run.saved_step() > first
    steps = run.points()  # of both starts, each step once
    assert steps == sorted(set(steps)) and steps[:2] == [1, 2] and steps[-1] > first
    assert set(steps) >= set(range(2, first, 2))


def test_the_hours_of_a_sweep_run_from_its_first_job():
    """Each job sets them, in one process."""
    try:
        for hours in (1, 2):
            stop_after(hours)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(3600, abs=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_max_hours_ends_a_generation_too(start):
    code, error, seconds = start("cache=own", "dataset.train=20000", "runtime.max_hours=0.001").end()
    assert code == 143 and seconds < 3.6 + SOON, error
    assert error.splitlines()[-1].startswith("runtime.max_hours: stopped; ")
