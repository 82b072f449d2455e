"""One model for several nu, beside a model for each nu and beside predictors that learn nothing.

    python benchmarks/several_nu.py

Each training is one `python train.py` of one thread with the steps of its option, as many at a time as --workers. They
are scored on 128 trajectories of `dataset.seed=1` for each nu, which no training has seen; "times" is the error divided
by that of the model of this nu alone, paired. What was trained is kept in store/, so an interrupted benchmark resumes
where it stopped. Writes outputs/benchmarks/several_nu.json, .md (the table) and .png; the published ones are in
docs/accuracy/.
"""

import argparse
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from benchmarks.accuracy import Predict, on_a_finer_grid, rollout_of, untrained_solver_in_the_loop
from benchmarks.trainings import checked, machine, significant, trained, write_report
from ups.config.build import build
from ups.data.solver import finite_volume, spectral
from ups.data.trajectories import Trajectories
from ups.evaluation.bootstrap import interval, paired_ratio
from ups.evaluation.metrics import relative_error
from ups.paths import ROOT
from ups.provenance import git_commit

ALONE = (0.001, 0.01, 0.1)  # each with a model of its own
TESTED = (0.001, 0.002, 0.003, 0.01, 0.03, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="of three_nu")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmarks", help="of the report")
    asked = parser.parse_args()
    asked.output = asked.output.resolve()
    os.chdir(ROOT)
    torch.set_num_threads(1)

    wanted = {
        "three_nu": [["experiment=three_nu", f"seed={seed}"] for seed in range(asked.seeds)],
        "nu_range": [["experiment=nu_range"]],
    } | {alone(nu): [["model=solver_in_the_loop", f"dataset.nu={nu:g}"]] for nu in ALONE}
    for trainings in wanted.values():
        build(checked(trainings[0]).dataset, "dataset").load(Path("cache"))  # once, before the workers want it
    with ThreadPoolExecutor(asked.workers) as pool:
        submitted = {name: [pool.submit(trained, each) for each in trainings] for name, trainings in wanted.items()}
    runs = {name: [future.result() for future in futures] for name, futures in submitted.items()}

    settings = checked(["model=solver_in_the_loop", "dataset.seed=1", "dataset.test=128"]).dataset
    tests = [build(OmegaConf.merge(settings, {"nu": nu}), "dataset").load_test(Path("cache")) for nu in TESTED]
    score = partial(scored, tests=tests, first=settings.initial_frame, steps=settings.rollout_steps)
    predictors = {
        name: {
            "commands": ["python train.py " + " ".join(words) for words in wanted[name]],
            "seconds": [entry.result()["seconds"]["training"] for _, entry in of_name],
            "at": score([rollout_of(stage) for stage, _ in of_name]),
        }
        for name, of_name in runs.items()
    } | {name: {"at": score([predict])} for name, predict in baselines().items()}  # fmt: skip
    for nu in map("{:g}".format, ALONE):
        single = predictors[alone(nu)]["at"][nu]["nrmse_per_trajectory"]
        for name in wanted.keys() - {alone(nu)}:
            at = predictors[name]["at"][nu]
            at["versus_alone"] = paired_ratio(at["nrmse_per_trajectory"], single)
            at["versus_alone_of_seeds"] = [each / statistics.mean(single) for each in at["nrmse_of_seeds"]]
    report = {"machine": machine(), "commit": git_commit(), "trajectories": settings.test, "predictors": predictors}
    write_report(asked.output / "several_nu.json", report, table(report), picture(report))


def alone(nu: float | str) -> str:
    return f"trained at {nu} alone"


def baselines() -> dict[str, Predict]:
    return {
        "untrained": untrained_solver_in_the_loop(),
        "finite volumes": partial(on_a_finer_grid, solve=finite_volume, factor=1),
        "spectral": partial(on_a_finer_grid, solve=spectral, factor=1),
    }


def scored(predictors: list[Predict], tests: list[Trajectories], first: int, steps: int) -> dict:
    """Of one predictor trained with several seeds, for each nu of TESTED: means over the seeds."""
    scores = {}
    for nu, data in zip(TESTED, tests, strict=True):
        truth = data.window(first, steps).u[:, 1:]
        errors = torch.stack([relative_error(predict(data, first, steps), truth).mean(1) for predict in predictors])
        per_trajectory = errors.mean(0).tolist()
        scores[f"{nu:g}"] = {
            "nrmse": statistics.mean(per_trajectory),
            "nrmse_of_seeds": errors.mean(1).tolist(),
            "nrmse_interval": interval(per_trajectory),
            "nrmse_per_trajectory": per_trajectory,
        }
    return scores


def table(report: dict) -> str:
    """A row for each nu; the model of a row's nu alone has one column for all rows."""
    predictors = report["predictors"]
    shown = [name for name in predictors if name not in map(alone, ALONE[1:])]
    lines = ["| nu | its own model | " + " | ".join(shown) + " |", "|" + " --- |" * (len(shown) + 2)]
    for nu in TESTED:
        own = cell(predictors[alone(nu)]["at"][f"{nu:g}"]) if nu in ALONE else ""
        cells = [f"{nu:g}", own, *(cell(predictors[name]["at"][f"{nu:g}"]) for name in shown)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("e-0", "e-") + "\n"


def cell(at: dict) -> str:
    low, high = at["nrmse_interval"]
    text = f"{at['nrmse']:.2e} [{low:.1e}, {high:.1e}]"
    if "versus_alone" in at:
        ratio, low, high = map(significant, at["versus_alone"])
        text += f", {ratio} [{low}, {high}] times"
    return text


def picture(report: dict) -> Figure:
    """The error over nu."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    colours = {"three_nu": "#1668b5", "nu_range": "#c0392b", alone(ALONE[0]): "#2e7d32"}
    own = [report["predictors"][alone(nu)]["at"][f"{nu:g}"]["nrmse"] for nu in ALONE]
    axis.loglog(ALONE, own, "*", color="#222222", markersize=12, label="its own model", zorder=3)
    for name, scores in report["predictors"].items():
        if name not in map(alone, ALONE[1:]):
            errors = [scores["at"][f"{nu:g}"]["nrmse"] for nu in TESTED]
            style = {"color": colours[name], "marker": "o"} if name in colours else {"linestyle": "--"}
            axis.loglog(TESTED, errors, label=name, **style)
    axis.set(xlabel="nu", ylabel="rollout nRMSE, test", title="31 steps from one frame, 256 points")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
