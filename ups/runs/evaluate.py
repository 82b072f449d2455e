"""One run of evaluate.py: a table on the screen, metrics.json and figures in the run's folder."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor

from ups.config.build import build
from ups.config.check import check, window_keys
from ups.config.compose import plain
from ups.console import console, screen
from ups.data.batches import generator_of
from ups.data.darus import PUBLISHED
from ups.data.trajectories import Trajectories
from ups.errors import UserError
from ups.evaluation.bootstrap import interval, paired_ratio, paired_root_ratio
from ups.evaluation.metrics import diverged, energy_excess, ensemble_metrics, field_metrics, rollout_nrmse
from ups.evaluation.plots import save_figures
from ups.evaluation.rollout import Predictor, classical_solver, ensemble, one_step, persistence
from ups.files import alone_in, nulled, write_json
from ups.memory import Lever, Memory
from ups.stages.sampled_correction import SampledCorrection
from ups.stages.stage import Stage
from ups.training.identity import differences
from ups.training.load import Obtained, load_checkpoint
from ups.training.runtime import Runtime, choose_threads, set_up

SHOWN = (
    "worst_over_mean", "one_step_nrmse", "rmse", "mae", "crmse", "max_error", "brmse", "frmse_low", "frmse_mid",
    "frmse_high", "energy_excess", "diverged", "crps", "spread_skill", "coverage_50", "coverage_90",
)  # fmt: skip
TRAINED_FOR = ("nu", "points", "time_step", "initial_condition")  # keys of a dataset
MANY = 10  # nus: more of them have no line each


def run_evaluation(cfg: DictConfig) -> float:
    """The rollout nRMSE of the checkpoint on the chosen test set."""
    started = time.monotonic()
    check(cfg, "evaluate")
    folder = Path(HydraConfig.get().runtime.output_dir)
    with alone_in(folder):
        return score_checkpoint(cfg, folder, started)


def score_checkpoint(cfg: DictConfig, folder: Path, started: float) -> float:
    runtime = set_up(**plain(cfg.runtime))
    given = {key: cfg[key] for key in ("checkpoint", "compare") if cfg[key] is not None}
    stages = {key: load_checkpoint(Path(path), runtime, key) for key, path in given.items()}
    if cfg.evaluations_per_step is not None:
        stages["checkpoint"] = with_evaluations(stages["checkpoint"], cfg.evaluations_per_step)
    chosen = chosen_dataset(cfg, stages)
    window = scored_window(cfg, chosen, runtime)
    note_other_data(stages, chosen, window)
    fields, scores = roll_out(cfg, stages, window, runtime)
    versus = {name: ratio_of(scores["surrogate"], scores[name]) for name in scores if name != "surrogate"}
    metrics = metrics_of(cfg, scores, versus) | {"dataset": chosen, "trajectories": len(window)}
    metrics["seconds"] = round(time.monotonic() - started, 1)

    write_json(folder / "metrics.json", nulled(metrics))
    name, members = stages["checkpoint"].entry.identity.name, fields.pop("surrogate")
    save_figures(folder / "figures", name, members, window.u[:, 1:], window.time_step, fields)
    screen.print(table_of(title_of(stages, window), scores, versus))
    screen.print(f"metrics.json and figures in {folder}")
    return metrics["nrmse"]


def with_evaluations(obtained: Obtained, count: int) -> Obtained:
    """The same stage, whose step takes so many evaluations of its flow."""
    if not isinstance(obtained.stage, SampledCorrection):
        raise UserError(f"evaluations_per_step={count}: {obtained.entry.identity.name} has no flow to evaluate")
    try:
        return replace(obtained, stage=obtained.stage.with_evaluations(count))
    except ValueError as error:
        raise UserError(str(error)) from error


def chosen_dataset(cfg: DictConfig, stages: dict[str, Obtained]) -> dict:
    """The node of the dataset to score on; a `UserError` for what the stages cannot be scored on, or with."""
    if cfg.members is not None and not any(each.stage.stochastic for each in stages.values()):
        name = stages["checkpoint"].entry.identity.name
        raise UserError(f"members={cfg.members}: {name} is deterministic, it has no ensemble")
    own = {key: each.entry.identity.content["dataset"] for key, each in stages.items()}
    chosen = plain(cfg.dataset) if "dataset" in cfg else own["checkpoint"]  # null leaves no key
    for key, dataset in own.items():
        refuse_seen(chosen, dataset, key)
    return chosen


def note_other_data(stages: dict[str, Obtained], chosen: dict, window: Trajectories) -> None:
    """Where a stage is scored on what it was not trained for. Of one that was trained on files, nothing is told."""
    nus = sorted({float(f"{nu:.6g}") for nu in window.nu.tolist()})
    of_file = {"points": window.u.shape[-1], "time_step": round(window.time_step, 6)}
    scored = {key: chosen[key] for key in TRAINED_FOR if key in chosen} or of_file
    for name, each in stages.items():
        dataset = each.entry.identity.content["dataset"]
        if "nu" not in dataset:
            continue
        keys = (scored.keys() & dataset.keys()) - {"nu"}
        trained, now = ({key: node[key] for key in keys} for node in (dataset, scored))
        if not covers(dataset, nus):
            trained["nu"], now["nu"] = dataset.get("nu_range") or dataset["nu"], nus if len(nus) > 1 else nus[0]
        if others := differences(now, trained):
            console.print(f"note: {name} is scored on other data than it was trained on ({', '.join(others)})")


def covers(dataset: dict, nus: list[float]) -> bool:
    """Whether a stage that was trained on the dataset has seen the like of all of them."""
    if dataset.get("nu_range"):
        low, high = dataset["nu_range"]
        return low <= nus[0] and nus[-1] <= high
    trained = dataset["nu"] if isinstance(dataset["nu"], list) else [dataset["nu"]]
    return set(nus) <= {float(f"{nu:.6g}") for nu in trained}


def roll_out(
    cfg: DictConfig, stages: dict[str, Obtained], window: Trajectories, runtime: Runtime
) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """By each predictor's name its rollouts, and their scores.

    The surrogate's rollouts are (M, S, T, N), the others' the means over their members, (S, T, N).
    """
    stage = stages["checkpoint"].stage
    baselines = {"persistence": (persistence, 1), "solver": (classical_solver, 1)}
    predictors = {"surrogate": predictor_of(stage, cfg)} | baselines
    if "compare" in stages:
        predictors["compare"] = predictor_of(stages["compare"].stage, cfg)
    members = predictors["surrogate"][1]
    noise = generator_of(runtime.device, 0)
    part = window.split(cfg.batch_size)[0]
    kept = [Lever("members", members), Lever("dataset.test", len(window))]
    rolling = Memory("the rollouts", lambda: [Lever("batch_size", cfg.batch_size), *kept], runtime.device)
    scoring = Memory("the scores", lambda: kept, runtime.device)
    fields, scores = {}, {}
    with rolling:
        choose_threads(runtime, lambda: stage.step(part.u[:, 0], part.nu, part.time_step, noise))
    for name, (step, count) in predictors.items():
        with rolling:
            rollouts, steps = ensemble(step, window, count, cfg.batch_size), one_step(step, window, cfg.batch_size)
        with scoring:
            scores[name] = scores_of(rollouts, steps, window)
            fields[name] = rollouts if name == "surrogate" else rollouts.mean(0)
    if stage.stochastic:
        scores["surrogate"] |= {"members": members, "evaluations_per_step": stage.evaluations_per_step}
    return fields, scores


def metrics_of(cfg: DictConfig, scores: dict[str, dict], versus: dict[str, dict]) -> dict:
    """The scores as metrics.json has them."""
    metrics = scores["surrogate"] | {"baselines": {name: scores[name] for name in ("persistence", "solver")}}
    metrics |= {f"versus_{name}": ratio for name, ratio in versus.items()}
    if "compare" in scores:
        facts = {"checkpoint": str(cfg.compare)} | {name: scores["compare"][name] for name in ("nrmse", "crps")}
        metrics["versus_compare"] = facts | versus["compare"]
    return metrics | {"checkpoint": str(cfg.checkpoint)}


def title_of(stages: dict[str, Obtained], window: Trajectories) -> str:
    samples, frames, points = window.u.shape
    nus = [f"{value:g}" for value in window.nu.unique().tolist()]
    nu = ", ".join(nus) if len(nus) <= MANY else f"{nus[0]} to {nus[-1]}"
    checkpoint, *compared = (each.entry.identity.folder for each in stages.values())
    title = f"{checkpoint}: nu {nu}, {points} points, {frames - 1} steps, {samples} trajectories"
    return title + "".join(f"; compare: {folder}" for folder in compared)


def refuse_seen(chosen: dict, own: dict, key: str) -> None:
    """Raise if what is to be scored are trajectories of a file that the stage of `key` was trained or selected by."""
    if "path" not in chosen or "path" not in own:
        return  # generated splits share no initial condition
    paths = {Path(node["path"]).resolve() for node in (chosen, own)}
    same = len(paths) == 1 or any(path in other.parents for path in paths for other in paths)
    names = {path.name for path in paths}
    same |= len(names) == 1 and names <= PUBLISHED.keys()  # a published file is the same wherever it lies
    if same and chosen["test"] > own["test"]:
        raise UserError(
            f"dataset.test={chosen['test']}: the stage of {key} has seen all but the first {own['test']} trajectories "
            f"of {own['path']} in its training; use dataset.test={own['test']}"
        )


def scored_window(cfg: DictConfig, chosen: dict, runtime: Runtime) -> Trajectories:
    """The given frame and those to predict, of the chosen dataset's test split."""
    dataset = build(OmegaConf.create(chosen), "dataset")
    initial_frame = dataset.initial_frame if cfg.initial_frame is None else cfg.initial_frame
    rollout_steps = dataset.rollout_steps if cfg.rollout_steps is None else cfg.rollout_steps
    test = dataset.load_test(Path(cfg.cache))
    return test.window(initial_frame, rollout_steps, window_keys(cfg)).to(runtime.device)


def predictor_of(stage: Stage, cfg: DictConfig) -> tuple[Predictor, int]:
    """A stage's step, and of how many members it is asked."""
    return stage.step, (cfg.members or stage.members) if stage.stochastic else 1


def scores_of(fields: Tensor, steps: Tensor, window: Trajectories) -> dict:
    """`fields` (M, S, T, N): a predictor's rollouts over the window, one if it is deterministic; `steps` (S, T, N):
    each of its steps from the true frame before. The errors are those of the members' mean; `diverged` counts, and
    `energy_excess` is the largest, over all rollouts.
    """
    truth = window.u[:, 1:]
    metrics = field_metrics(fields.mean(0), truth) | ensemble_metrics(fields, truth)
    metrics["diverged"] = sum(int(diverged(each, truth).sum()) for each in fields)
    metrics["energy_excess"] = float(torch.tensor([energy_excess(each, truth) for each in fields]).max())  # or nan
    if len(fields) > 1:
        _, low, high = paired_root_ratio(metrics["variance_per_trajectory"], metrics["square_error_per_trajectory"])
        metrics["spread_skill_interval"] = [low, high]
    nus, errors = window.nu.unique(), torch.tensor(metrics["nrmse_per_trajectory"])
    if 1 < len(nus) <= MANY:
        metrics["nrmse_of_nu"] = {f"{nu:g}": float(errors[window.nu.cpu() == nu.cpu()].mean()) for nu in nus}
    return metrics | {
        "nrmse_interval": interval(metrics["nrmse_per_trajectory"]),
        "one_step_nrmse": rollout_nrmse(steps, truth),
    }


def ratio_of(scored: dict, other: dict) -> dict[str, float]:
    """The ratio of two predictors' nrmse, and that of their crps, with their intervals."""
    nrmse, crps = (
        paired_ratio(scored[name], other[name]) for name in ("nrmse_per_trajectory", "crps_per_trajectory")
    )
    names = ("ratio", "low", "high", "crps_ratio", "crps_low", "crps_high")
    return dict(zip(names, (*nrmse, *crps), strict=True))


def table_of(title: str, columns: dict[str, dict], versus: dict[str, dict]) -> Table:
    """A column for each predictor's scores; below, the ratios of the surrogate's to its."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure", no_wrap=True, min_width=16)
    for name in columns:
        table.add_column(name, justify="right")
    scored = list(columns.values())
    table.add_row("nrmse", *(f"{scores['nrmse']:.3g}" for scores in scored))
    table.add_row("  95 % interval", *(span(*scores["nrmse_interval"]) for scores in scored))
    for nu in columns["surrogate"].get("nrmse_of_nu", ()):
        table.add_row(f"  of nu {nu}", *(f"{scores['nrmse_of_nu'][nu]:.3g}" for scores in scored))
    for measure in SHOWN:
        if any(measure in scores for scores in scored):
            table.add_row(measure, *(f"{scores[measure]:.3g}" if measure in scores else "" for scores in scored))
        ends = [scores.get(f"{measure}_interval") for scores in scored]
        if any(ends):
            table.add_row("  95 % interval", *(span(*each) if each else "" for each in ends))
    table.add_section()
    for measure, prefix in (("nrmse", ""), ("crps", "crps_")):
        ratio, low, high = (prefix + name for name in ("ratio", "low", "high"))
        table.add_row(f"{measure} ratio", "", *(f"{scores[ratio]:.3g}" for scores in versus.values()))
        table.add_row("  95 % interval", "", *(span(scores[low], scores[high]) for scores in versus.values()))
    return table


def span(low: float, high: float) -> str:
    return f"{low:.2g} to {high:.2g}"
