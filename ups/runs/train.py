"""One run of train.py: check, plan, obtain, and result.json."""

import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ups.callbacks.callback import Callback
from ups.config.build import build
from ups.config.check import check, window_keys
from ups.config.compose import plain, typed_overrides
from ups.console import console
from ups.data.trajectories import Splits
from ups.errors import Interrupted
from ups.files import alone_in, nulled, write_json
from ups.loggers.csv import CSVLogger
from ups.loggers.logger import Logger
from ups.machine import rank
from ups.memory import Lever, Memory
from ups.provenance import git_commit
from ups.runs.lookup import fetch_missing
from ups.runs.record import write_record
from ups.runs.sweep import Job
from ups.signals import end_at_once_from_now_on
from ups.training.build import try_out
from ups.training.distributed import by_first, first_ahead, process_group
from ups.training.identity import identity_of
from ups.training.load import Obtained
from ups.training.obtain import obtain
from ups.training.plan import Planned, make_plan, print_plan
from ups.training.runtime import check_compiler, set_up


def run_training(cfg: DictConfig, jobs: list[Job]) -> float:
    """The score of the stage asked for: its validation rollout nRMSE. A sweep's job is added to `jobs`."""
    started = time.monotonic()
    hydra = HydraConfig.get()
    folder, job = Path(hydra.runtime.output_dir), Job(typed_overrides())
    if hydra.mode == RunMode.MULTIRUN:
        jobs.append(job)
    loggers: list[Logger] = []
    exit_code = 1
    with alone_in(folder) if rank() == 0 else nullcontext():
        try:
            with process_group():
                result = train_chain(cfg, folder, loggers, started)
            exit_code = 0
        except Interrupted as interruption:
            exit_code = interruption.exit_code
            end_at_once_from_now_on()
            raise
        finally:
            with ExitStack() as finishing:  # each, whatever becomes of the others
                for logger in loggers:
                    finishing.callback(logger.finish, exit_code)
    job.result = result
    report(result, folder)
    return result["score"]


def train_chain(cfg: DictConfig, folder: Path, loggers: list[Logger], started: float) -> dict:
    """What each process does -> result.json. The first alone fills `loggers`, has callbacks and writes."""
    check(cfg)
    if rank() == 0:
        write_record(folder, cfg)
    runtime = set_up(**plain(cfg.runtime))
    identity, store = identity_of(cfg), Path(cfg.store)
    dataset = build(cfg.dataset, "dataset")
    try_out(identity, dataset, runtime)
    origins = by_first(lambda: fetch_missing(identity, store, cfg, runtime))
    plan = make_plan(identity, store, cfg.require, origins)
    print_plan(plan)
    trains = any(planned.action != "found" for planned in plan)
    if runtime.compile and trains:
        check_compiler()

    @cache
    def data() -> Splits:
        with first_ahead():
            splits = dataset.load(Path(cfg.cache))
        protocol = (dataset.initial_frame, dataset.rollout_steps, window_keys(cfg))
        train = Lever("dataset.train", cfg.dataset.train or len(splits.train))
        with Memory("the data", lambda: [train], runtime.device):
            return Splits(
                splits.train, splits.validation.window(*protocol), splits.test.window(*protocol)
            ).to(runtime.device)

    callbacks: list[Callback] = []
    if rank() == 0:
        for logger in make_loggers(cfg, folder, trains):
            loggers.append(logger)  # one by one: those that started are finished, even if the next cannot start
        callbacks = make_callbacks(cfg, loggers, folder)
    obtained = obtain(plan, data, callbacks, runtime)
    result = result_of(obtained, plan, cfg.seed, time.monotonic() - started)
    if rank() == 0:
        write_json(folder / "result.json", nulled(result))
    return result


def result_of(obtained: Obtained, plan: list[Planned], seed: int, seconds: float) -> dict:
    """What result.json says."""
    identity = obtained.entry.identity
    return {
        "stage": identity.name,
        "digest": identity.digest,
        "checkpoint": str(obtained.entry.path),
        "score": obtained.result["score"],
        "metrics": obtained.result["metrics"],
        "plan": [planned.as_dict() for planned in plan],
        "seconds": round(seconds, 1),
        "git_commit": git_commit(),
        "made_by": obtained.result["made_by"],  # its training, which may be an earlier run's
        "seed": seed,
    }


def make_loggers(cfg: DictConfig, folder: Path, trains: bool) -> Iterator[Logger]:
    """metrics.csv, and the trackers of the group `logger` if there is something to track."""
    yield CSVLogger(folder / "metrics.csv")
    for name, node in cfg.logger.items() if trains else ():
        yield build(node, f"logger.{name}", folder=folder, config=plain(cfg))


def make_callbacks(cfg: DictConfig, loggers: list[Logger], folder: Path) -> list[Callback]:
    """Those of the node `callbacks`; each takes of the run what its constructor names."""
    offered = {"loggers": loggers, "folder": folder}
    callbacks = []
    for name, node in cfg.callbacks.items():
        factory = build(node, f"callbacks.{name}", partial=True)
        wanted = inspect.signature(factory).parameters
        callbacks.append(factory(**{key: value for key, value in offered.items() if key in wanted}))
    return callbacks


def report(result: dict, folder: Path) -> None:
    test = result["metrics"]["test"]
    of_mean, crps, of_member = (
        (" of the ensemble's mean", f", CRPS {test['crps']:.2e}", " of one member") if "crps" in test else ("", "", "")
    )
    figures = " and figures" if (folder / "figures").exists() else ""
    console.print(
        f"{result['stage']}: rollout nRMSE{of_mean} {result['score']:.2e} on validation, {test['rollout_nrmse']:.2e} "
        f"on test trajectories{crps}; one step{of_member} {test['one_step_nrmse']:.2e}\n"
        f"checkpoint {result['checkpoint']}\nresult{figures} in {folder}"
    )
