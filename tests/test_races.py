"""Runs that want the same thing at once: one makes it, the others wait or find it, also when the one is killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, clean_environment, wait_for_line, workers_of
from machines import wait_for
from test_data import generator_settings

from ups.data.generator import Burgers
from ups.files import locked
from ups.tensors import read_tensors


@pytest.mark.slow
def test_four_jobs_on_one_prerequisite_train_it_once(tmp_path, cache):
    """Each trains a diffusion of its own, of one operator."""
    shared = [override for override in SMALL if not override.startswith("stage.")]
    runs = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "stage=diffusion_residual", f"stage.optimizer.lr={job + 1}e-3",
             f"hydra.run.dir=run{job}", "stage.validations=1", "logger=none", *shared, f"cache={cache}",
             "stage.requires.validations=1", "stage.evaluations_per_step=1", "stage.members=1",
             "dataset.rollout_steps=2"],
            cwd=tmp_path, env=clean_environment(tmp_path), stderr=subprocess.PIPE, text=True,
        )
        for job in range(4)
    ]  # fmt: skip
    errors = [run.communicate(timeout=200)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, errors
    plans = [json.loads((tmp_path / f"run{job}" / "result.json").read_text())["plan"] for job in range(4)]
    assert sorted(plan[0]["action"] for plan in plans) == ["found"] * 3 + ["trained"]
    assert [plan[1]["action"] for plan in plans] == ["trained"] * 4
    assert len(list((tmp_path / "store").glob("operator-*/"))) == 1
    assert len(list((tmp_path / "store").glob("diffusion_residual-*/result.json"))) == 4
    assert not list((tmp_path / "store").rglob("*.partial"))


def hold(path: Path, held) -> None:
    with locked(path):
        (path / "figures").mkdir(parents=True)
        (path / ".state.safetensors.4711.partial").write_text("half")
        (path / "figures" / ".a.png.4711.partial").write_text("half")
        (path.parent / f".{path.name}.4711.partial").write_text("half")
        (path.parent / ".other.4711.partial").write_text("another's")
        held.set()
        time.sleep(100)


def test_the_lock_of_a_killed_process_is_free_and_its_partial_files_go(tmp_path):
    context = get_context("spawn")
    held, path = context.Event(), tmp_path / "operator-0"
    owner = context.Process(target=hold, args=(path, held))
    owner.start()
    assert held.wait(60)
    with open(tmp_path / "operator-0.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    started = time.monotonic()
    with locked(path):
        assert time.monotonic() - started < 10
        assert {file.name for file in tmp_path.rglob("*.partial")} == {".other.4711.partial"}


DATA = generator_settings(train=64, frames=3)  # two chunks of training data, one for each of two processes
GENERATE = f"""
    import sys
    from pathlib import Path

    import torch
    from ups.data.generator import Burgers

    if __name__ == "__main__":
        Burgers(**{DATA}).load(Path(sys.argv[1]))
"""


def generate(tmp_path: Path, cache: str, code: str = GENERATE) -> subprocess.Popen:
    script = tmp_path / "generate.py"
    script.write_text(textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(script), cache], cwd=tmp_path, text=True, start_new_session=True,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_generator_takes_over_from_one_that_is_killed(tmp_path, monkeypatch):
    """In the middle of its work, while the other waits; its processes end with it."""
    first = generate(tmp_path, "cache")
    workers = workers_of(first)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # so that it is in the middle until it is killed
    try:
        second = generate(tmp_path, "cache")
        wait_for_line("waiting for it", second)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    error = second.communicate(timeout=60)[1]
    assert second.returncode == 0, error
    assert first.wait() == -signal.SIGKILL

    monkeypatch.setattr("ups.data.workers.cores", lambda: 1)  # here and now, without processes
    Burgers(**DATA).load(tmp_path / "alone")
    digests = [
        {file.name: read_tensors(file)[1]["sha256"] for file in tmp_path.glob(f"{cache}/burgers/*.safetensors")}
        for cache in ("cache", "alone")
    ]
    assert len(digests[0]) == 3 and digests[0] == digests[1]
    assert not list(tmp_path.rglob("*.partial"))
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


@pytest.mark.slow
def test_a_script_that_lacks_its_guard_is_told_so(tmp_path):
    """The generator's processes import it again, and would each wait for the lock of the one that started them."""
    run = generate(tmp_path, "cache", GENERATE.replace('if __name__ == "__main__":', "if True:"))
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 1 and "if __name__ == '__main__':" in error


@pytest.mark.slow
def test_a_generator_whose_worker_is_killed_says_so(tmp_path):
    """As the system does where memory runs out; the pool alone would wait for ever."""
    run = generate(tmp_path, "cache", GENERATE.replace("'frames': 3", "'frames': 3000"))  # more than it can do before
    for pid in workers_of(run):
        os.kill(pid, signal.SIGKILL)
    error = run.communicate(timeout=60)[1]
    assert "UserError: a process that generates data was killed (out of memory?): free some, start again" in error
    assert not list(tmp_path.rglob("*.safetensors"))
