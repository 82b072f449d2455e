"""One run of evaluate.py: a table on the screen, metrics.json and figures in the run's folder."""

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ups.config import build, check, plain
from ups.console import screen
from ups.data.batches import generator_of
from ups.errors import UserError
from ups.evaluation.metrics import ensemble_metrics, field_metrics
from ups.evaluation.plots import save_figures
from ups.evaluation.rollout import classical_solver, ensemble, one_step, persistence, rollout
from ups.files import write_json
from ups.memory import Lever, Memory
from ups.training.identity import read_identity
from ups.training.obtain import load_chain
from ups.training.runtime import choose_threads, set_up

SHOWN = ("nrmse", "nrmse_worst", "one_step_nrmse", "rmse", "crmse", "max_error", "brmse",
         "frmse_low", "frmse_mid", "frmse_high", "crps", "spread_skill")  # fmt: skip


def run_evaluation(cfg: DictConfig) -> float:
    """The rollout nRMSE of the checkpoint on the chosen test set."""
    started = time.monotonic()
    check(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    runtime = set_up(**plain(cfg.runtime))
    checkpoint = Path(cfg.checkpoint)
    file = checkpoint / "identity.json"
    if not file.exists():
        raise UserError(f"checkpoint={checkpoint}: no trained stage is there (it has no identity.json)")
    identity = read_identity(file)
    stage = load_chain(identity, checkpoint.parent, runtime).stage
    if cfg.members is not None and not stage.stochastic:
        raise UserError(f"members={cfg.members}: {identity.stage} is deterministic, it has no ensemble")
    members = cfg.members or stage.members

    # A group that is null in the defaults list leaves no key.
    node = cfg.dataset if "dataset" in cfg else OmegaConf.create(identity.content["dataset"])
    dataset = build(node, "dataset")
    initial_frame = dataset.initial_frame if cfg.initial_frame is None else cfg.initial_frame
    rollout_steps = dataset.rollout_steps if cfg.rollout_steps is None else cfg.rollout_steps
    window = dataset.load_test(Path(cfg.cache), runtime.device).window(initial_frame, rollout_steps).to(runtime.device)
    truth = window.u[:, 1:]

    noise = generator_of(runtime.device, 0)
    part = window.split(cfg.batch_size)[0]
    levers = lambda: [Lever("batch_size", cfg.batch_size), Lever("members", members)]
    memory = Memory("the rollouts", levers, runtime.device)
    with memory:
        choose_threads(runtime, lambda: stage.step(part.u[:, 0], part.nu, part.time_step, noise))
        fields = ensemble(stage.step, window, members, cfg.batch_size)
        baselines = {
            name: (step, rollout(step, window, batch_size=cfg.batch_size))
            for name, step in (("persistence", persistence), ("solver", classical_solver))
        }

    def scores(step, field) -> dict:
        return field_metrics(field, truth) | {
            "one_step_nrmse": field_metrics(one_step(step, window, cfg.batch_size), truth)["nrmse"]
        }

    with memory:
        metrics = scores(stage.step, fields.mean(0))
        if stage.stochastic:
            metrics |= ensemble_metrics(fields, truth) | {"evaluations_per_step": stage.evaluations_per_step}
        metrics["baselines"] = {name: scores(step, field) for name, (step, field) in baselines.items()}
    metrics |= {"trajectories": len(window), "seconds": round(time.monotonic() - started, 1)}

    write_json(folder / "metrics.json", metrics)
    save_figures(
        folder / "figures", identity.stage, fields.mean(0), truth, window.time_step,
        {name: field for name, (_, field) in baselines.items()},
    )  # fmt: skip
    print_table(identity.folder, metrics, rollout_steps, folder)
    return metrics["nrmse"]


def print_table(name: str, metrics: dict, steps: int, folder: Path) -> None:
    table = Table(title=f"{name}: {steps} steps, {metrics['trajectories']} trajectories", title_justify="left")
    table.add_column("measure")
    columns = {"surrogate": metrics} | metrics["baselines"]
    for column in columns:
        table.add_column(column, justify="right")
    for measure in SHOWN:
        if measure in metrics:
            cells = [f"{scores[measure]:.3g}" if measure in scores else "" for scores in columns.values()]
            table.add_row(measure, *cells)
    screen.print(table)
    screen.print(f"metrics.json and figures in {folder}")
