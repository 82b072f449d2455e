"""What stages 2 and 3 add to an operator, beside controls that were trained as long as all three together.

Of the time three quarters are the operator's, a twentieth is stage 2's and a fifth stage 3's, where --shares does not
say otherwise. Two of the controls say where a gain comes from: stage 3 without its noise, what its loss alone is worth;
the longer trained operator with validation errors drawn at random around it, what any spread of about the right size is
worth.

    python benchmarks/stages.py --minutes 20 --seeds 3
    python benchmarks/stages.py --minutes 6 --seeds 3 --points 64
    python benchmarks/stages.py --minutes 42 --shares 20 2 20 --seeds 1

Trainings are `python train.py` of one thread, as many at a time as --workers; short trials before them determine how
many steps fit into the time. The second command is a harder setting: four times fewer points, so that much of the next
field cannot be determined from the given one. An ensemble has 19 members, for its mean and the coverage; its CRPS and
spread/skill are those of the first 8. Results are kept in cache/ and store/, so an interrupted benchmark resumes where
it stopped. Writes outputs/benchmarks/points*.json, .md (the table) and .png; the published ones are in
docs/stages/.
"""

import argparse
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from omegaconf import OmegaConf

from benchmarks.controls.error_dressing import dressed
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
from ups.data.batches import generator_of
from ups.data.trajectories import Trajectories
from ups.evaluation.bootstrap import interval, paired_ratio, paired_root_ratio
from ups.evaluation.metrics import ensemble_metrics, field_metrics, rollout_nrmse
from ups.evaluation.rollout import ensemble, one_step, persistence, rollout
from ups.files import nulled, read_json, with_nan, write_json
from ups.paths import ROOT
from ups.provenance import git_commit
from ups.stages.stage import Stage
from ups.training.store import Entry

CPU = torch.device("cpu")
MEMBERS, ALL_MEMBERS = 8, 19  # of CRPS and spread/skill; of the mean and the coverage, whose 90 % take 19
SCORES = 3  # raise it when a row's scores hold something else
LONGER, DETERMINISTIC = "operator, full time", "deterministic corrector, full time"


@dataclass(frozen=True)
class Row:
    """One line of the table: a trained stage, and how many evaluations of its network a step takes if it says so."""

    title: str
    training: str  # of TRAININGS
    evaluations: int | None = None
    dressed: bool = False  # with the errors of its validation rollouts


@dataclass(frozen=True)
class Recipe:
    """How a training is made: of which stage, and on top of which others of TRAININGS."""

    stage: str
    of: tuple[int, ...]  # the stages whose time its own steps have
    budget: str  # the key in the config's `budget` of those
    requires: tuple[str, ...] = ()


TRAININGS = {
    "operator": Recipe("operator", (1,), "operator"),
    "longer": Recipe("operator", (1, 2, 3), "operator"),
    "deterministic": Recipe("deterministic_corrector", (2, 3), "diffusion_residual", ("operator",)),
    "unrolled": Recipe("unrolled_operator", (2, 3), "consistency_distill", ("operator",)),
    "diffusion": Recipe("diffusion_residual", (2,), "diffusion_residual", ("operator",)),
    "noiseless": Recipe("student_without_noise", (3,), "consistency_distill", ("operator", "diffusion")),
    "student": Recipe("consistency_distill", (3,), "consistency_distill", ("operator", "diffusion")),
}
PHASES = [  # the longest first
    ["longer", "operator"],
    ["deterministic", "unrolled", "diffusion"],
    ["student", "noiseless"],
]
ROWS = [
    Row("operator (stage 1)", "operator"),
    Row(LONGER, "longer"),
    Row("operator, full time, dressed with its errors", "longer", dressed=True),
    Row(DETERMINISTIC, "deterministic"),
    Row("operator fine-tuned on rollouts, full time", "unrolled"),
    Row("student without noise, full time", "noiseless"),
    Row("diffusion (stage 2)", "diffusion"),
    Row("diffusion, 2 evaluations", "diffusion", 2),
    Row("diffusion, 1 evaluation", "diffusion", 1),
    Row("student, 2 evaluations", "student", 2),
    Row("student (stage 3), 1 evaluation", "student", 1),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, all three stages together")
    parser.add_argument("--shares", type=float, nargs=3, default=[15, 1, 4], help="of stages 1, 2 and 3 in that time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=128, help="of the test, which nothing else has seen")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmarks", help="of the report")
    asked = parser.parse_args()
    asked.output = asked.output.resolve()
    os.chdir(ROOT)
    torch.set_num_threads(1)

    shared = [SEARCH_PATH, f"dataset.points={asked.points}"]
    node = checked(shared).dataset
    dataset = build(node, "dataset")
    splits = dataset.load(Path("cache"))  # here, before the workers want it
    validation = splits.validation.window(dataset.initial_frame, dataset.rollout_steps)
    unseen = build(OmegaConf.merge(node, {"seed": 1, "test": asked.trajectories}), "dataset")
    window = unseen.load_test(Path("cache")).window(dataset.initial_frame, dataset.rollout_steps)

    seconds = [asked.minutes * 60 * share / sum(asked.shares) for share in asked.shares]  # of each stage
    steps = {name: fitting_steps(name, seconds, shared) for name in TRAININGS}
    runs: list[dict[str, dict]] = [{} for _ in range(asked.seeds)]
    one_thread = dict(initializer=torch.set_num_threads, initargs=(1,))  # what is set above is the main thread's
    with ThreadPoolExecutor(asked.workers, **one_thread) as pool:

        def train_one(seed: int, name: str) -> None:
            runs[seed][name] = trained_as(name, steps, [*shared, f"seed={seed}"])

        for names in PHASES:
            jobs = [(seed, name) for name in names for seed in range(asked.seeds)]
            list(pool.map(lambda job: train_one(*job), jobs))
        jobs = [(row, run[row.training]) for run in runs for row in ROWS]
        scores = list(pool.map(lambda job: scores_of(*job, window, validation), jobs))

    report = {"minutes": asked.minutes, "shares": asked.shares, "points": asked.points, "trajectories": len(window)}
    report |= {"machine": machine(), "commit": git_commit(), "members": MEMBERS, "members_of_mean": ALL_MEMBERS}
    report["persistence"] = plain_scores(window)
    report["commands"] = [run[name]["command"] for run in runs for name in TRAININGS]
    report["rows"] = {
        row.title: summary(scores[k :: len(ROWS)])
        | {
            "milliseconds": milliseconds_of(row, runs[0][row.training], window),
            "rollouts": MEMBERS if runs[0][row.training]["stage"].stochastic else 1,
        }
        for k, row in enumerate(ROWS)
    }
    for row in report["rows"].values():
        for control in (LONGER, DETERMINISTIC):
            other = report["rows"][control]
            row[f"versus {control}"] = {
                measure: paired_ratio(row[f"{measure}_per_trajectory"], other[f"{measure}_per_trajectory"])
                for measure in ("nrmse", "crps")
            } | {
                f"{measure}_of_seeds": [
                    mine / theirs
                    for mine, theirs in zip(row[f"{measure}_of_seeds"], other[f"{measure}_of_seeds"], strict=True)
                ]
                for measure in ("nrmse", "crps")
            }

    write_report(asked.output / f"points{asked.points}.json", report, table(report), picture(report))


# --- Trainings ---


def fitting_steps(name: str, seconds: list[float], shared: list[str]) -> int:
    """Of one of TRAININGS: the same number for every seed. `seconds`: of each of the three stages."""
    recipe = TRAININGS[name]
    budgets = [f"budget.{TRAININGS[each].budget}" for each in (*recipe.requires, name)]
    return steps_for(sum(seconds[stage - 1] for stage in recipe.of), [*shared, f"stage={recipe.stage}"], budgets)


def trained_as(name: str, steps: dict[str, int], shared: list[str]) -> dict:
    """One of TRAININGS -> its stage, entry, command and seconds."""
    recipe = TRAININGS[name]
    budgets = [f"budget.{TRAININGS[each].budget}={steps[each]}" for each in (*recipe.requires, name)]
    chosen = [*shared, f"stage={recipe.stage}", *budgets]
    stage, entry = trained(chosen)
    return {
        "stage": stage,
        "entry": entry,
        "command": "python train.py " + " ".join(chosen),
        "seconds": sum(
            Entry(Path("store"), identity).result()["seconds"]["training"] for identity in entry.identity.chain()
        ),  # its prerequisites' too
    }


# --- Scores ---


def scores_of(row: Row, run: dict, window: Trajectories, validation: Trajectories) -> dict:
    """Of one training; kept in the cache, since an ensemble of rollouts takes minutes."""
    kind = "dressed" if row.dressed else row.evaluations
    weights = run["entry"].result()["sha256"][:12]
    name = f"scores{SCORES}-{run['entry'].path.name}-{weights}-{kind}-{len(window)}.json"
    kept = Path("cache") / "stages" / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, nulled(fresh_scores(row, run["stage"], window, validation)))
    return with_nan(read_json(kept)) | {"seconds": run["seconds"]}


def fresh_scores(row: Row, stage: Stage, window: Trajectories, validation: Trajectories) -> dict:
    stage = stage.with_evaluations(row.evaluations) if row.evaluations else stage
    truth = window.u[:, 1:]
    fields = ensemble(stage.step, window, ALL_MEMBERS if stage.stochastic else 1)
    if row.dressed:
        past = rollout(stage.step, validation)
        fields = dressed(fields[0], past, validation.u[:, 1:], ALL_MEMBERS, generator_of(CPU, 0))
    few = fields[:MEMBERS]
    scores = field_metrics(fields.mean(0), truth) | ensemble_metrics(few, truth) | {
        "nrmse_one_member": rollout_nrmse(few[0], truth),
        "one_step_nrmse": rollout_nrmse(one_step(stage.step, window), truth),
    }  # fmt: skip
    many = ensemble_metrics(fields, truth)
    return scores | {name: many[name] for name in ("coverage_50", "coverage_90") if name in many}


def milliseconds_of(row: Row, run: dict, window: Trajectories) -> float:
    """Of one step of one trajectory, in a batch of 64 on one thread."""
    stage, part, noise = run["stage"], window.split(64)[0], generator_of(CPU, 0)
    stage = stage.with_evaluations(row.evaluations) if row.evaluations else stage
    with torch.no_grad():
        return milliseconds(lambda: stage.step(part.u[:, 0], part.nu, part.time_step, noise)) / len(part)


def plain_scores(window: Trajectories) -> dict:
    """Persistence's."""
    truth = window.u[:, 1:]
    fields = ensemble(persistence, window, 1)
    return {"nrmse": field_metrics(fields[0], truth)["nrmse"], "crps": ensemble_metrics(fields, truth)["crps"]}


def summary(runs: list[dict]) -> dict:
    """Means over the seeds, of lists too; the spread/skill is the root of the mean variance over the mean square."""
    means = {}
    for name, first in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(first, list):
            means[name] = [statistics.mean(each) for each in zip(*values, strict=True)]
        else:
            means[name] = statistics.mean(values)
    means["nrmse_of_seeds"], means["crps_of_seeds"] = [run["nrmse"] for run in runs], [run["crps"] for run in runs]
    means["nrmse_interval"] = interval(means["nrmse_per_trajectory"])
    if "spread_skill" in means:
        squares = (means["variance_per_trajectory"], means["square_error_per_trajectory"])
        means["spread_skill"], low, high = paired_root_ratio(*squares)
        means["spread_skill_interval"] = [low, high]
    return means


# --- Table and picture ---


def table(report: dict) -> str:
    columns = [
        "", "training [s]", "ms/step of one member", "nRMSE [95 %]", "of one member", "CRPS",
        "CRPS / full-time operator's [95 %]", "of each seed", "nRMSE / full-time operator's [95 %]", "of each seed",
        "high-wavenumber error", "spread/skill [95 %]", "coverage of 50 %, 90 %",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    known = {"nRMSE [95 %]": "nrmse", "CRPS": "crps"}
    persistence = {column: f"{report['persistence'][name]:.2e}" for column, name in known.items()}
    lines.append("| persistence | " + " | ".join(persistence.get(column, "") for column in columns[1:]) + " |")
    for title, row in report["rows"].items():
        versus, stochastic = row[f"versus {LONGER}"], "spread_skill" in row
        cells = [title, f"{row['seconds']:.0f}", significant(row["milliseconds"])]
        cells.append(f"{row['nrmse']:.2e} [{row['nrmse_interval'][0]:.1e}, {row['nrmse_interval'][1]:.1e}]")
        cells += [f"{row['nrmse_one_member']:.2e}" if stochastic else "", f"{row['crps']:.2e}"]
        for measure in ("crps", "nrmse"):
            ratio, low, high = versus[measure]
            # A single trajectory that one of the two lost leaves no ratio.
            finite = 0.01 < low <= high < 100
            cells.append(f"{ratio:.2f} [{low:.2f}, {high:.2f}]" if finite else "")
            cells.append(" ".join(f"{each:.2f}" for each in versus[f"{measure}_of_seeds"]) if finite else "")
        cells.append(f"{row['frmse_high']:.2e}")
        if stochastic:
            low, high = row["spread_skill_interval"]
            cells.append(f"{row['spread_skill']:.2f} [{low:.2f}, {high:.2f}]")
            cells.append(f"{row['coverage_50']:.0%}, {row['coverage_90']:.0%}")
        else:
            cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("e-0", "e-") + "\n"


def picture(report: dict) -> Figure:
    """CRPS over the time of a step; spread over skill in time."""
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = (
        "#222222", "#777777", "#d35fb7", "#2e7d32", "#c28f00", "#8e44ad", "#1668b5", "#4f9bd9", "#9cc7ea", "#c0392b",
        "#e08a80",
    )  # fmt: skip
    for (title, row), colour in zip(report["rows"].items(), colours, strict=True):
        left.loglog(row["milliseconds"] * row["rollouts"], row["crps"], "o", color=colour, label=title)
        if "spread_skill_per_frame" in row:
            calibration = row["spread_skill_per_frame"]
            right.plot(range(1, len(calibration) + 1), calibration, color=colour, label=title)
    left.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
    left.yaxis.set(major_formatter="{x:.2g}", minor_formatter="{x:.2g}")
    left.set(xlabel=f"time [ms] per step, of all {MEMBERS} members where there are some", ylabel="CRPS")
    left.set(title="accuracy and cost")
    right.axhline(1, color="#222222", linestyle="--", linewidth=1)
    right.set(xlabel="steps since the given frame", ylabel="spread / skill", title="calibration")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
    left.margins(0.1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"Burgers' equation, nu 0.001, 31 steps from one frame, {report['points']} points")
    return figure


if __name__ == "__main__":
    main()
