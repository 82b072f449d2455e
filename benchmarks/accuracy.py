"""All models trained for the same wall-clock time on the same data and machine, beside baselines and a peer.

"MODEL by AdamW" is a model whose optimizer is plain AdamW: the default one to see what the optimizer does, and the
peer since that is how it is usually trained. Ratios are to the better of the two peers.

    pip install -r benchmarks/requirements.txt
    python benchmarks/accuracy.py --minutes 4 --seeds 3 --pdebench 1D_Burgers_Sols_Nu0.001.hdf5

Each training is one `python train.py` of one thread, as many at a time as --workers; a short trial under the
same conditions determines how many steps fit into the time. Results are kept in cache/ and store/, so an interrupted
benchmark resumes where it stopped. Writes outputs/benchmarks/nu*.json, .md (the table) and .png;
the published ones are in docs/accuracy/.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.trainings import (
    SEARCH_PATH,
    checked,
    machine,
    milliseconds,
    significant,
    steps_for,
    trained,
    write_report,
)
from ups.config.build import build
from ups.data.pdebench import PDEBenchBurgers
from ups.data.solver import finite_volume, spectral
from ups.data.trajectories import Trajectories
from ups.evaluation.bootstrap import interval, paired_ratio
from ups.evaluation.metrics import field_metrics
from ups.evaluation.rollout import rollout
from ups.paths import ROOT
from ups.provenance import git_commit
from ups.stages.stage import Stage
from ups.training.build import build_chain
from ups.training.identity import identity_of
from ups.training.obtain import parameter_count
from ups.training.runtime import set_up

PEER = "neuraloperator_fno"
ADAMW = " by AdamW"
MODELS = (
    "dilresnet", "solver_in_the_loop", "latent_operator", "fno", "unet", "dilresnet" + ADAMW, PEER, PEER + ADAMW,
)  # fmt: skip
CPU = torch.device("cpu")
# Of names in the picture, where others are on the right of their points: points' offset, alignment.
PLACES = {"finite volumes, 1024 points": ((0, -13), "center"), "spectral, 256 points": ((-6, -3), "right")}
PLACES_OF_ALL = {  # in the picture of all models
    "finite volumes, 512 points": ((-6, -3), "right"), "Cole-Hopf step, untrained": ((5, 4), "left"),
    "dilresnet" + ADAMW: ((-6, -5), "right"), "dilresnet": ((-5, -10), "right"), "fno": ((-6, -1), "right"),
    PEER: ((-6, -3), "right"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each model and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nu", type=float, default=0.001)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--pdebench", type=Path, help="a published file of this nu: a second test set")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmarks", help="of the report")
    asked = parser.parse_args()
    asked.output = asked.output.resolve()
    asked.pdebench = asked.pdebench and asked.pdebench.resolve()
    os.chdir(ROOT)
    torch.set_num_threads(1)

    models = asked.models.split(",")
    node = checked(overrides(asked.nu, models[0], 0)).dataset
    dataset = build(node, "dataset")
    dataset.load(Path("cache"))  # once, before the workers want it
    # Initial conditions of another seed: the models were developed while the test split of seed 0 was in sight.
    unseen = build(OmegaConf.merge(node, {"seed": 1, "test": 256}), "dataset")
    tests = {"generated": unseen.load_test(Path("cache"))}
    if asked.pdebench:
        protocol = (dataset.initial_frame, dataset.rollout_steps)
        published = PDEBenchBurgers(str(asked.pdebench), 1000, 64, None, 4, 5, 1, *protocol)
        tests["pdebench"] = published.load_test(Path("cache"))
        if abs((nu := float(tests["pdebench"].nu[0])) - asked.nu) > 1e-6:
            parser.error(f"--pdebench={asked.pdebench} has nu {nu:g}, not --nu={asked.nu:g}")

    wanted = [(model, seed) for seed in range(asked.seeds) for model in models]
    with ThreadPoolExecutor(asked.workers) as pool:
        runs = list(pool.map(lambda run: trained_for(asked.minutes * 60, asked.nu, *run), wanted))

    report = {"nu": asked.nu, "minutes": asked.minutes, "workers": asked.workers, "machine": machine()}
    report |= {"commit": git_commit(), "peer": version("neuraloperator") if any(map(is_peer, models)) else None}
    report["predictors"] = {
        name: scored([predict], tests, dataset.initial_frame, dataset.rollout_steps)
        for name, predict in baselines().items()
    } | {
        model: scored(
            [run.pop("predict") for run in runs if run["model"] == model],
            tests, dataset.initial_frame, dataset.rollout_steps,
        ) | {"trainings": [run for run in runs if run["model"] == model]}
        for model in models
    }  # fmt: skip
    for test in tests if report["peer"] else ():
        peers = [scores[test] for name, scores in report["predictors"].items() if is_peer(name)]
        peer = min(peers, key=lambda at: at["nrmse"])["nrmse_per_trajectory"]
        for scores in report["predictors"].values():
            ratio = paired_ratio(scores[test]["nrmse_per_trajectory"], peer)
            scores[test]["versus_peer"] = dict(zip(("ratio", "low", "high"), ratio, strict=True))

    write_report(asked.output / f"nu{asked.nu:g}.json", report, table(report), picture(report))


# --- Trainings ---


def is_peer(name: str) -> bool:
    return name.removesuffix(ADAMW) == PEER


def overrides(nu: float, name: str, seed: int) -> list[str]:
    model = name.removesuffix(ADAMW)
    chosen = [SEARCH_PATH, f"model={model}", f"dataset.nu={nu:g}", "dataset.test=256", f"seed={seed}"]
    adamw = ["optimizer@stage.optimizer=adamw"]
    return chosen if name == model else [*chosen, *adamw]


def trained_for(seconds: float, nu: float, model: str, seed: int) -> dict:
    """One training by train.py, or what the store has of it."""
    steps = steps_for(seconds, overrides(nu, model, seed), ["budget.operator"])
    chosen = [*overrides(nu, model, seed), f"budget.operator={steps}"]
    stage, entry = trained(chosen)
    spent = entry.result()["seconds"]["training"]
    key, step = "evaluation/operator/rollout_nrmse", "training/operator/step"
    return {
        "model": model,
        "seed": seed,
        "command": "python train.py " + " ".join(chosen),
        "parameters": parameter_count(stage.network),
        "seconds": spent,
        "validation": [(row[step] / steps * spent, row[key]) for row in entry.rows() if key in row],
        "predict": rollout_of(stage),
    }


# --- Scores ---

Predict = Callable[[Trajectories, int, int], Tensor]
"""(data, first frame, steps) -> the predicted frames first + 1 .. first + steps, (S, T, N)."""


def baselines() -> dict[str, Predict]:
    """Predictors that learn nothing."""
    return {
        "persistence": lambda data, first, steps: data.u[:, [first]].expand(-1, steps, -1),
        "linear extrapolation": linear_extrapolation,
        "finite volumes, 256 points": partial(on_a_finer_grid, solve=finite_volume, factor=1),
        "finite volumes, 512 points": partial(on_a_finer_grid, solve=finite_volume, factor=2),
        "finite volumes, 1024 points": partial(on_a_finer_grid, solve=finite_volume, factor=4),
        "spectral, 256 points": partial(on_a_finer_grid, solve=spectral, factor=1),
        "Cole-Hopf step, untrained": untrained_solver_in_the_loop(),
    }


def untrained_solver_in_the_loop() -> Predict:
    """The Cole-Hopf step between the conversions of smooth fields to cell averages and back.

    Its networks give zeros, and are evaluated: it takes as long as a trained one.
    """
    (stage,) = build_chain(identity_of(checked(["model=solver_in_the_loop"])), set_up("cpu", 1))
    return rollout_of(stage)


def rollout_of(stage: Stage) -> Predict:
    return lambda data, first, steps: rollout(stage.step, data.window(first, steps))


def linear_extrapolation(data: Trajectories, first: int, steps: int) -> Tensor:
    u, before = data.u[:, [first]], data.u[:, [first - 1]]
    return u + torch.arange(1, steps + 1)[:, None] * (u - before)


def on_a_finer_grid(data: Trajectories, first: int, steps: int, solve: Callable, factor: int) -> Tensor:
    """A classical solver from the given frame, at once to the last, on a grid `factor` times as fine.

    Between the points the frame is a monotone cubic (Fritsch and Carlson): any other overshoots at shocks.
    """
    u = data.u[:, first]
    times = [data.time_step * step for step in range(steps + 1)]
    return solve(refined(u, factor), float(data.nu[0]) / math.pi, times)[:, 1:, ::factor]


def refined(u: Tensor, factor: int) -> Tensor:
    """(S, N) -> (S, factor N), the given points among them."""
    jump = u.roll(-1, -1) - u
    before = jump.roll(1, -1)
    slope = torch.where(jump * before > 0, 2 * jump * before / (jump + before), 0.0)  # harmonic mean: monotone
    t = torch.arange(factor) / factor
    here, ahead, slope, slope_ahead = (each[..., None] for each in (u, u.roll(-1, -1), slope, slope.roll(-1, -1)))
    cubic = (2 * t**3 - 3 * t**2 + 1) * here + (3 * t**2 - 2 * t**3) * ahead
    return (cubic + (t**3 - 2 * t**2 + t) * slope + (t**3 - t**2) * slope_ahead).flatten(1)


def scored(predictors: list[Predict], tests: dict[str, Trajectories], first: int, steps: int) -> dict:
    """Of one predictor trained with several seeds: means over the seeds, and the spread between them."""
    part = tests["generated"].split(64)[0]
    spent = milliseconds(lambda: predictors[0](part, first, 4))
    scores = {"milliseconds": spent / 4 / len(part)}  # of one step of one trajectory, on one thread
    for name, data in tests.items():
        truth = data.window(first, steps).u[:, 1:]
        each = [field_metrics(predict(data, first, steps), truth) for predict in predictors]
        per_trajectory = torch.tensor([metrics["nrmse_per_trajectory"] for metrics in each]).mean(0).tolist()
        nrmse = [metrics["nrmse"] for metrics in each]
        scores[name] = {
            "nrmse": statistics.mean(nrmse),
            "nrmse_of_seeds": nrmse,
            "nrmse_interval": interval(per_trajectory),
            "worst_over_mean": statistics.mean(metrics["nrmse_worst"] / metrics["nrmse"] for metrics in each),
            "diverged": sum(metrics["diverged"] for metrics in each),
            "nrmse_per_trajectory": per_trajectory,
        }
    return scores


# --- Table and picture ---


def table(report: dict) -> str:
    tests = [name for name in ("generated", "pdebench") if name in report["predictors"]["persistence"]]
    titles = {"generated": "256 generated", "pdebench": "PDEBench's"}
    columns = ["predictor", "parameters", "training [s]", "ms/step"]
    for test in tests:
        columns += [f"nRMSE, {titles[test]} [95 %]", "of each seed", "worst/mean"]
        columns += ["ratio to peer [95 %]"] if report["peer"] else []
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for name, scores in report["predictors"].items():
        runs = scores.get("trainings")
        seconds = f"{statistics.mean(run['seconds'] for run in runs):.0f}" if runs else ""
        took = significant(scores["milliseconds"]) if scores["milliseconds"] > 0.01 else ""  # of what computes at all
        cells = [name, f"{runs[0]['parameters']:,}" if runs else "", seconds, took]
        for test in tests:
            at = scores[test]
            low, high = at["nrmse_interval"]
            cells.append(f"{at['nrmse']:.2e} [{low:.1e}, {high:.1e}]")
            cells.append(" ".join(f"{value:.2e}" for value in at["nrmse_of_seeds"]) if runs else "")
            lost = f", {at['diverged']} diverged" if runs and at["diverged"] else ""
            cells.append(f"{at['worst_over_mean']:.1f}{lost}")
            if report["peer"]:
                ratio, low, high = (significant(at["versus_peer"][name]) for name in ("ratio", "low", "high"))
                cells.append(f"{ratio} [{low}, {high}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("e-0", "e-").replace("e+00", "") + "\n"


def picture(report: dict) -> Figure:
    """Validation error over training time; test error over inference time."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = iter(("#1668b5", "#c0392b", "#2e7d32", "#d97706", "#7b3fa0", "#7fb0dd", "#222222", "#777777"))
    for name, scores in report["predictors"].items():
        runs = scores.get("trainings", [])
        colour = next(colours) if runs else "#888888"
        for run in runs:
            seconds, errors = zip(*run["validation"], strict=True)
            left.semilogy(seconds, errors, color=colour, label=name if run is runs[0] else None)
        at = scores["milliseconds"], scores["generated"]["nrmse"]
        if at[1] < 0.5:  # persistence and linear extrapolation would leave no room for the others
            right.loglog(*at, "o" if runs else "s", color=colour)
            places = PLACES | PLACES_OF_ALL if "unet" in report["predictors"] else PLACES
            place, side = places.get(name, ((5, 4), "left"))
            right.annotate(name, at, textcoords="offset points", xytext=place, ha=side, fontsize=8, color=colour)
    left.set(xlabel="training time [s], one thread", ylabel="rollout nRMSE, validation", title="training time")
    right.set(
        xlabel="inference time [ms] per step and trajectory", ylabel="rollout nRMSE, test", title="inference time"
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    left.set_ylim(top=min(1.0, left.get_ylim()[1]))  # some diverge before they have learned
    right.margins(x=0.6, y=0.1)  # for the names
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
    figure.suptitle(f"Burgers' equation, nu {report['nu']:g}, 31 steps from one frame, 256 points")
    return figure


if __name__ == "__main__":
    main()
