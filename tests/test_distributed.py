"""One training by two processes of torchrun, on the CPU: the same stage, written once, and every end is clean."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, clean_environment
from safetensors.torch import load_file

from ups.errors import UserError
from ups.training.runtime import set_up
from ups.training.state import read_state

pytestmark = pytest.mark.slow

# By plain AdamW: the eigenbases of SOAP are of rounding where there was no gradient yet, and rounding grows at once.
QUICK = [
    "logger=none", *SMALL, "dataset.initial_frame=2", "dataset.rollout_steps=5", "model.width=8",
    "stage.optimizer.basis_interval=null",
]  # fmt: skip


@pytest.fixture
def start(tmp_path, cache):
    """`start("stage=operator", processes=2)` in an empty folder -> the running command."""
    running = []

    def run(*overrides: str, processes: int = 2) -> subprocess.Popen:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        arguments = [*(launcher if processes > 1 else []), str(ROOT / "train.py"), *overrides, f"cache={cache}"]
        running.append(subprocess.Popen(
            [sys.executable, *arguments], cwd=tmp_path, env=clean_environment(tmp_path), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        ))  # fmt: skip
        return running[-1]

    yield run
    for each in running:
        if each.poll() is None:
            each.send_signal(signal.SIGTERM)  # torchrun takes its processes along
            each.communicate(timeout=60)


def finished(run: subprocess.Popen, code: int = 0) -> str:
    error = run.communicate(timeout=100)[1]
    assert run.returncode == code, error
    return error


def the_result(folder: Path) -> dict:
    """Of the one run in the folder, whose files one process wrote."""
    (file,) = folder.glob("outputs/*/*/result.json")
    assert list(folder.glob("outputs/*/*")) == [file.parent]
    assert {path.name for path in folder.iterdir()} <= {"outputs", "store", "other", ".cache", ".config"}
    return json.loads(file.read_text())


def rows_of(folder: Path) -> list[dict]:
    (file,) = folder.glob("outputs/*/*/metrics.csv")
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def wait_for_steps(run: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob("outputs/*/*/metrics.csv")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate(timeout=10)[1]
        time.sleep(0.05)


def process_of(run: subprocess.Popen, rank: int) -> int:
    """Its number, from what Linux tells of torchrun's children."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    (number,) = (
        number for number in children if f"\0RANK={rank}\0" in Path(f"/proc/{number}/environ").read_text()
    )  # fmt: skip
    return int(number)


def weights_differ_by(folder: Path, stage: str) -> float:
    """The largest difference between the stage in `store` and the one in `other`.

    But for a flux's bias: a constant flux is differenced away, and of a gradient of rounding Adam makes full steps.
    """
    null = ("network.project.bias", "moments_network.project.bias")
    one, two = (load_file(next(folder.glob(f"{store}/{stage}-*/weights.safetensors"))) for store in ("store", "other"))
    return max(float((one[key] - two[key]).abs().max()) for key in one.keys() - null)


def test_two_processes_train_the_chain_as_one_does(start, tmp_path):
    chain = [
        "stage=diffusion_residual", *QUICK, "stage.requires.validations=2",
        "stage.requires.optimizer.basis_interval=null",
    ]  # fmt: skip
    finished(start(*chain))
    result, rows = the_result(tmp_path), rows_of(tmp_path)
    assert [(line["stage"], line["action"]) for line in result["plan"]] == [
        ("operator", "trained"), ("diffusion_residual", "trained")
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "outputs")

    finished(start(*chain, "store=other", processes=1))
    single, single_rows = the_result(tmp_path), rows_of(tmp_path)
    assert result["digest"] == single["digest"]
    assert result["score"] == pytest.approx(single["score"], rel=1e-3)
    for row, single_row in zip(rows, single_rows, strict=True):
        for name in ("operator", "diffusion_residual"):
            assert row[f"training/{name}/step"] == single_row[f"training/{name}/step"]
            if loss := row[f"training/{name}/loss"]:
                assert float(loss) == pytest.approx(float(single_row[f"training/{name}/loss"]), rel=1e-4)
    for stage in ("operator", "diffusion_residual"):
        # Rounding (2.4e-5 was seen), in weights of about 0.1; Laplace's likelihood turns some of it into a gradient of
        # the other sign.
        assert weights_differ_by(tmp_path, stage) < {"operator": 5e-5, "diffusion_residual": 2e-4}[stage]


def test_the_optimizer_of_each_process_ends_with_the_same_weights(tmp_path):
    """Bit by bit, its eigenbases too: nothing but the gradients is exchanged."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(ROOT / "tests" / "weights_of_ranks.py"), str(tmp_path)]
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=100)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert any(name.endswith("rows") for name in first) and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sigterm_saves_once_and_any_number_of_processes_goes_on(start, tmp_path):
    """A scheduler tells all processes of a job, and torchrun tells its own again: that costs nothing."""
    # At the default rate rounding grows to 1e-2 within these steps: of one process too, from weights 1e-7 apart.
    long = [*QUICK, "budget.operator=100", "stage.validations=1", "stage.optimizer.lr=1e-4"]
    run = start(*long)
    wait_for_steps(run, tmp_path)
    workers = [process_of(run, rank) for rank in (0, 1)]
    run.send_signal(signal.SIGTERM)
    for _ in range(3):
        for worker in workers:
            with suppress(ProcessLookupError):  # it has ended by now
                os.kill(worker, signal.SIGTERM)
        time.sleep(0.01)
    error = finished(run, code=1)  # torchrun's own
    assert error.count("SIGTERM: stopped operator at step") == 1 and "ended at once" not in error
    assert not list(tmp_path.glob("outputs/*/*/result.json"))
    (state,) = tmp_path.glob("store/operator-*/state.safetensors")
    step = read_state(state).facts["step"]
    assert 0 < step < 100 and f"at step {step} of" in error

    shutil.rmtree(tmp_path / "outputs")
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    finished(start(*long))
    result = the_result(tmp_path)
    assert result["plan"][0]["action"] == "resumed"
    shutil.rmtree(tmp_path / "outputs")
    finished(start(*long, "store=other", processes=1))
    single = the_result(tmp_path)
    assert single["plan"][0]["action"] == "resumed" and single["digest"] == result["digest"]
    assert weights_differ_by(tmp_path, "operator") < 1e-5
    assert result["score"] == pytest.approx(single["score"], rel=1e-3)


def test_two_commands_at_once_train_once(start, tmp_path):
    runs = [start(*QUICK, "budget.operator=10") for _ in range(2)]
    for run in runs:
        finished(run)
    plans = [json.loads(file.read_text())["plan"] for file in tmp_path.glob("outputs/*/*/result.json")]
    assert sorted(line["action"] for plan in plans for line in plan) == ["found", "trained"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stage.batch_size=15"], "stage.batch_size=15: 2 processes need equal parts of a batch"),
        (["-m", "seed=0,1"], "a sweep is no work for torchrun"),
    ],
    ids=["batch", "sweep"],
)
def test_a_mistake_is_told_once(overrides, words, start, tmp_path):
    error = finished(start(*overrides, *QUICK), code=1)
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert words in line and "train.py\", line" not in error
    assert not (tmp_path / "store").exists() and not (tmp_path / "multirun").exists()


@pytest.mark.parametrize("script", ["evaluate.py", "launch_vast.py"])
def test_torchrun_is_refused_where_it_is_of_no_use(script, command):
    """By what it sets for the first of its processes."""
    answer = command(script, TORCHELASTIC_RUN_ID="any", WORLD_SIZE="2", RANK="0")
    assert answer.returncode == 1 and not answer.stdout
    assert answer.stderr == f"error: torchrun is for train.py: start {ROOT / script} with python\n"


@pytest.mark.parametrize(
    ("number", "saved", "report"), [(signal.SIGTERM, True, "143"), (signal.SIGKILL, False, "-9")], ids=["term", "kill"]
)
def test_the_end_of_one_process_is_the_end_of_all(number, saved, report, start, tmp_path):
    run = start(*QUICK, "budget.operator=4000", "stage.validations=1")
    wait_for_steps(run, tmp_path)
    os.kill(process_of(run, rank=1), number)
    started = time.monotonic()
    error = finished(run, code=1)
    assert time.monotonic() - started < 25 and f"exitcode  : {report}" in error
    states = list(tmp_path.glob("store/*/state.safetensors"))
    assert error.count("SIGTERM: stopped operator at step") == len(states) == saved


def test_each_process_has_its_own_gpu(monkeypatch):
    counts = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in ({"TORCHELASTIC_RUN_ID": "any"} | counts).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert set_up("cuda", 1).device == torch.device("cuda:1")
    with pytest.raises(UserError, match="gives each process its own GPU"):
        set_up("cuda:1", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes for 1 GPUs"):
        set_up("cuda", 1)
