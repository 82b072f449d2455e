"""`python -m pytest -m soak`: kill -9 at random moments, the same command again, and nothing tells the difference."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import wandb_log
from conftest import ROOT, SMALL, clean_environment

pytestmark = [pytest.mark.soak, pytest.mark.slow]

STAGES = ("operator", "diffusion_residual", "consistency_distill")
CHAIN = [
    "stage=consistency_distill", *SMALL, "runtime.threads=1", "callbacks.checkpoint.every=3",
    "budget.operator=150", "budget.diffusion_residual=100", "budget.consistency_distill=100", "stage.validations=5",
    "stage.requires.validations=5", "stage.requires.requires.validations=5",
]  # fmt: skip
KILLS, MINUTES = 60, 12
MOMENTS = ("early", "step", "checkpoint", "between stages")


def start(folder: Path, cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *CHAIN, f"cache={cache}"], cwd=folder, start_new_session=True,
        env=clean_environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def last_run(folder: Path) -> Path:
    return max(folder.glob("outputs/*/*"))


def rows_of(file: Path) -> list[dict]:
    """Without the one column that tells how fast the machine was."""
    with open(file, newline="") as lines:
        return [
            {name: cell for name, cell in row.items() if cell and not name.endswith("samples_per_second")}
            for row in csv.DictReader(lines)
        ]  # fmt: skip


def traces(folder: Path) -> dict:
    """All by which two finished chains could differ."""
    found = {}
    for name in STAGES:
        (entry,) = folder.glob(f"store/{name}-*/")
        assert {path.name for path in entry.iterdir()} == {
            "identity.json", "weights.safetensors", "metrics.csv", "result.json"
        }, list(entry.iterdir())  # fmt: skip
        found[f"{name}: weights"] = (entry / "weights.safetensors").read_bytes()
        found[f"{name}: points"] = rows_of(entry / "metrics.csv")
    found["metrics.csv"] = rows_of(last_run(folder) / "metrics.csv")
    if not (last_run(folder) / "wandb").exists():
        return found  # the last kill came after the last stage: the run after it had nothing to train, and no tracker
    charts = wandb_log.read(last_run(folder))
    for name in STAGES:
        for metric in (f"training/{name}/loss", f"evaluation/{name}/rollout_nrmse"):
            found[f"chart of {metric}"] = charts.points(metric)
    return found


def wait_for(moment: str, run: subprocess.Popen, folder: Path, luck: random.Random) -> None:
    """Until the moment of the kill, or the end of the run."""

    end = time.monotonic() + 60

    def until(holds) -> None:
        while run.poll() is None and not holds() and time.monotonic() < end:
            time.sleep(0.0005)

    def count(pattern: str) -> int:
        return len(list(folder.glob(pattern)))

    if moment == "early":
        pause = time.monotonic() + luck.uniform(0, 5)
        until(lambda: time.monotonic() > pause)
    elif moment == "between stages":
        trained = count("store/*/result.json")
        until(lambda: count("store/*/result.json") > trained)
        time.sleep(luck.uniform(0, 0.05))
    else:
        states = {path: path.stat().st_mtime_ns for path in folder.glob("store/*/state.safetensors")}
        until(lambda: any(
            path.stat().st_mtime_ns != states.get(path) for path in folder.glob("store/*/state.safetensors")
        ) if not count("store/*/.state*") else False)  # fmt: skip
        pause = time.monotonic() + luck.uniform(0, 1.5)
        until(lambda: time.monotonic() > pause)
        if moment == "checkpoint":
            until(lambda: count("store/*/.state*.partial") > 0)


def stage_under_way(folder: Path) -> str:
    return STAGES[min(len(list(folder.glob("store/*/result.json"))), 2)]


def test_killed_anywhere_it_ends_in_the_same_weights(tmp_path, cache, record_property):
    seed = int(os.environ.get("SOAK_SEED", time.time()))
    luck, deadline = random.Random(seed), time.monotonic() + 60 * MINUTES
    whole = tmp_path / "whole"
    whole.mkdir()
    run = start(whole, cache)
    assert run.wait(timeout=200) == 0, run.stderr.read()
    expected = traces(whole)
    steps = [int(row["training/operator/step"]) for row in expected["metrics.csv"] if "training/operator/step" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 150 and len(steps) > 50

    kills, resumes, chains, charts, damaged = 0, 0, 0, 0, 0
    where, mismatches = Counter(), []
    # Of some chains the last kill comes after the last stage, and the run after it makes no chart.
    while (kills < KILLS or not charts) and time.monotonic() < deadline:
        folder = tmp_path / f"chain{chains}"
        folder.mkdir()
        killed = 0
        while True:
            run = start(folder, cache)
            resumes += bool(list(folder.glob("store/*/state*.safetensors")))
            if killed < 15:
                moment = luck.choice(MOMENTS)
                wait_for(moment, run, folder, luck)
            if killed == 15 or run.poll() is not None:
                error = run.communicate(timeout=200)[1]
                assert run.returncode == 0, f"seed {seed}: {error}"
                damaged += "damaged" in error
                break
            os.killpg(run.pid, signal.SIGKILL)
            damaged += "damaged" in run.communicate()[1]
            killed += 1
            half_written = list(folder.glob("store/*/.state*.partial"))
            where["checkpoint" if half_written else "step" if moment == "checkpoint" else moment] += 1
            where[stage_under_way(folder)] += moment != "early"
        kills, chains = kills + killed, chains + 1
        found = traces(folder)
        charts += len(found) == len(expected)
        mismatches += [f"chain {chains}: {name}" for name in found if found[name] != expected[name]]
    told = ", ".join(f"{where[name]} {name}" for name in (*MOMENTS, *STAGES))
    record_property(
        "soak",
        f"soak (seed {seed}): {kills} kills ({told}), {resumes} resumes of a state, {chains} chains, "
        f"{damaged} damaged states, {len(mismatches)} mismatches",
    )
    assert not mismatches, f"seed {seed}: {mismatches}"
    assert kills >= 30 and charts and all(where[name] for name in (*MOMENTS, *STAGES)) and not damaged
