"""Whatever becomes of W&B, its client or its disk: a training goes on, has every row, ends soon, and says it once."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import psutil
import pytest
import wandb_log
from conftest import ROOT, clean_environment
from machines import Machine, steps_of, wait_for

from ups.callbacks.callback import Callback
from ups.launch.rehearsal.wandb_server import WandbServer

pytestmark = pytest.mark.slow

ROWS = 12  # that W&B has before the fault
CLIENTS = "run/wandb/run-*/run-*.wandb"
STEPS, WAITS_AT = 60, 30
SOON = 20 if "PYTEST_XDIST_WORKER" in os.environ else 5  # seconds; beside other tests, all takes longer


class WaitForFault(Callback):
    """So that the training does not end before it, however fast it is."""

    def on_step(self, training) -> None:
        while training.step == WAITS_AT and not Path("broken").exists():
            time.sleep(0.02)


def client_of(training: subprocess.Popen) -> psutil.Process:
    (core,) = (each for each in psutil.Process(training.pid).children() if each.name() == "wandb-core")
    return core


def break_it(fault: str, machine: Machine, training: subprocess.Popen, server: WandbServer) -> None:
    if fault == "killed":
        client_of(training).kill()
    elif fault == "stopped":
        client_of(training).send_signal(signal.SIGSTOP)
    elif fault == "down":
        server.down = True
    elif fault == "silent":
        server.slow = 600
    (machine.folder / "broken").touch()


@pytest.fixture
def start(tmp_path, cache):
    """`start(server, "budget.operator=60")` -> (machine, training) after some rows in the client's file."""

    def start(server: WandbServer, *overrides: str) -> tuple[Machine, subprocess.Popen]:
        machine = Machine(tmp_path / "a machine", cache)
        waits = "+callbacks.wait._target_=test_trackers.WaitForFault"
        training = machine.train(server, "stage.validations=1", waits, *overrides, PYTHONPATH=str(ROOT / "tests"))
        wait_for(lambda: list(machine.folder.glob(CLIENTS)) and len(tracked(machine)) >= ROWS)
        return machine, training

    return start


def tracked(machine: Machine) -> list[float]:
    """The steps that `wandb sync` would find."""
    (file,) = machine.folder.glob(CLIENTS)
    return steps_of(wandb_log.parse(file.read_bytes()).rows)


def one_warning(error: str, what: str, wrote: bool = True) -> None:
    """One line for all that went wrong, with the way to upload what the client wrote, and none of the client's own."""
    lines = [line for line in error.splitlines() if not line.startswith("wandb: http")]
    told = [line for line in lines if line.startswith("warning: ") or "wandb" in line]
    assert len(told) == 1 and what in told[0] and ("wandb sync " in told[0]) == wrote, error
    assert "Traceback" not in error


@pytest.mark.parametrize("fault", ["killed", "stopped", "down"])
def test_a_training_goes_on_without_the_tracker_it_lost(fault, start):
    with WandbServer() as server:
        machine, training = start(server, f"budget.operator={STEPS}", "logger.wandb.finish_timeout=1")
        break_it(fault, machine, training, server)
        error = training.communicate(timeout=30)[1]
        server.down = False
        if fault == "down":
            type_what_was_told(error, machine, server)
    assert training.returncode == 0, error
    one_warning(error, "failed at log" if fault == "killed" else "failed at finish (no answer in 1 s)")
    steps = steps_of(machine.rows())
    assert fault != "down" or [steps_of(run.rows) for run in server.runs.values()] == [steps]
    assert steps == [1, *range(2, STEPS + 1, 2)]
    on_disk = tracked(machine)
    assert on_disk == steps[: len(on_disk)] and len(on_disk) >= ROWS
    assert fault != "down" or on_disk == steps


def type_what_was_told(error: str, machine: Machine, server: WandbServer) -> None:
    *words, files = shlex.split(re.search("`(wandb sync .*)`", error)[1])
    uploading = machine.start(server, "-m", *words, *glob(files))
    assert uploading.wait(30) == 0, uploading.communicate()


@pytest.mark.parametrize(("fault", "number"), [("silent", signal.SIGTERM), ("stopped", signal.SIGINT)])
def test_a_signal_does_not_wait_for_the_tracker(fault, number, start):
    with WandbServer() as server:
        machine, training = start(server, "budget.operator=4000")
        break_it(fault, machine, training, server)
        sent = time.monotonic()
        training.send_signal(number)
        error = training.communicate(timeout=30)[1]
        seconds = time.monotonic() - sent
    assert training.returncode == 128 + number and seconds < SOON, error
    assert "the same command goes on from there" in error
    one_warning(error, "failed at finish (no answer in 2.5 s)")
    on_disk, steps = tracked(machine), steps_of(machine.rows())
    assert on_disk == steps[: len(on_disk)] and len(on_disk) >= ROWS
    assert fault != "silent" or on_disk == steps


# The logger alone, without the seconds that a training takes to start -------------------------------------------------


ALONE = """
import os, signal, sys, time
from pathlib import Path
import psutil
from ups.loggers.wandb import WandbLogger

rows, stop, figure = int(sys.argv[1]), sys.argv[2:] == ["stop"], sys.argv[2:] == ["figure"]
logger = WandbLogger(Path("run"), {}, "ups", None, None, [], False, init_timeout=2, finish_timeout=20)
if stop:
    (core,) = psutil.Process().children()
    core.send_signal(signal.SIGSTOP)
longest = 0.0
for step in range(rows):
    started = time.perf_counter()
    logger.log({"training/operator/step": step, "training/operator/loss": 1.0})
    longest = max(longest, time.perf_counter() - started)
    time.sleep(0 if stop else 1e-3)
if figure:
    from PIL import Image
    Image.new("RGB", (8, 8)).save("figure.png")
    logger.log_figure("figures/operator/error", Path("figure.png"))
started = time.perf_counter()
logger.finish(0)
print(longest, time.perf_counter() - started)
"""


@pytest.fixture
def alone(tmp_path):
    """`alone(server, rows)` -> ((longest log, finish) in seconds, what was printed)."""

    def run(server: WandbServer, rows: int, *words: str, shell: str = "", **environment: str):
        command = [sys.executable, "-c", ALONE, str(rows), *words]
        if shell:
            command = ["unshare", "-rm", "sh", "-c", f'{shell} && exec "$@"', "sh", *command]
        answer = subprocess.run(
            command, cwd=tmp_path, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=40,
            env=clean_environment(tmp_path) | server.environment | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        return tuple(map(float, answer.stdout.split())), answer.stderr

    return run


def test_logging_never_waits_for_a_client_that_hangs(alone):
    """More rows than its socket takes, and more than are kept for it."""
    with WandbServer() as server:
        (longest, finish), error = alone(server, 12000, "stop")
    one_warning(error, "failed at log (no answer, 10000 calls wait)")
    assert longest < 4 and finish < 10  # seconds, of half a one on a quiet machine; finish_timeout is 20


@pytest.mark.parametrize("fault", ["wrong key", "broken netrc", "no answer"])
def test_a_start_that_fails_is_an_offline_run(fault, alone, tmp_path):
    (tmp_path / "netrc").write_text("no netrc\n")
    keys = {"wrong key": {"WANDB_API_KEY": "0" * 40},
            "broken netrc": {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "netrc")}}  # fmt: skip
    told = {"wrong key": "invalid API key", "broken netrc": "(netrc) cannot be read", "no answer": "Timed out"}
    with WandbServer() as server:
        server.slow = 600 if fault == "no answer" else 0
        _, error = alone(server, 5, **keys.get(fault, {}))
    one_warning(error, told[fault])
    assert len(wandb_log.read(tmp_path / "run").rows) == 5


@pytest.mark.parametrize(("shell", "told", "wrote"), [
    ("mkdir -p run/wandb && mount -t tmpfs -o size=200k none run/wandb", "No space left on device: 'run/wandb'", True),
    ("mkdir -p run/wandb && mount -t tmpfs -o ro none run/wandb", "Read-only file system", False),
], ids=["full", "read-only"])  # fmt: skip
def test_files_that_cannot_be_written_are_one_warning(shell, told, wrote, alone):
    if not can_mount():
        pytest.skip("this system lets no user mount a file system of their own (unshare -rm), as a full disk needs")
    with WandbServer() as server:
        _, error = alone(server, 1500, shell=shell, WANDB_MODE="offline")
    one_warning(error, told, wrote)


def test_a_run_that_is_resumed_has_a_figure_once(alone):
    """A stage that an earlier start trained shows its figures again."""
    with WandbServer() as server:
        for _ in range(2):
            alone(server, 1, "figure", WANDB_RUN_ID="abc", WANDB_RESUME="allow")
        (made,) = server.runs.values()
    assert len([row for row in made.rows if any(key.startswith("figures/operator/error") for key in row)]) == 1


@pytest.mark.parametrize("mode", ["", "garbage"])
def test_a_mode_that_the_client_does_not_know(mode, alone):
    with WandbServer() as server:
        _, error = alone(server, 5, WANDB_MODE=mode)
    if mode:
        one_warning(error, "(ValidationError: mode: Input should be 'online'", wrote=False)
    else:
        assert error.startswith("wandb: http") and len(error.splitlines()) == 1


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(trial, capture_output=True).returncode == 0


def test_a_wandb_dir_that_cannot_be_written_is_not_needed(alone, tmp_path):
    """The run's folder has the client's files, whatever WANDB_DIR says."""
    with WandbServer() as server:
        _, error = alone(server, 5, WANDB_MODE="offline", WANDB_DIR=os.devnull)
    assert not error and len(wandb_log.read(Path(tmp_path, "run")).rows) == 5
