"""One run of launch_vast.py: check everything that costs nothing, rent, watch."""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ups.config.check import check
from ups.console import console, screen
from ups.errors import UserError, first_line
from ups.files import write, write_json
from ups.launch.actions import destroy, follow, logs, reap, status, table_of_rentals
from ups.launch.job import Job
from ups.launch.ledger import Ledger, Rental
from ups.launch.offers import Offer, reason, table
from ups.launch.provision import offers_for, rent, still_billed
from ups.launch.repository import is_tracked, pushed_source, refuse_untracked
from ups.launch.vast_api import Vast
from ups.paths import ROOT
from ups.wandb.account import api_key, server, why_not_kept, writable_project

HERE_ONLY = ("auto_shutdown", "vast", "store", "cache")  # overrides that say nothing to the machine
# Of those of Hydra itself; what a sweeper makes of its own is passed on as a job's.
HYDRAS_HERE = re.compile(r"hydra[./](run|sweep|mode|sweeper|launcher|(job|hydra)_logging|verbose|help|output_subdir)\b")
ACTIONS = {"status": status, "logs": logs, "destroy": destroy, "reap": reap}


@dataclass
class Outcome:
    """Of one job of a sweep."""

    overrides: list[str]
    rental: Rental | None = None
    error: str = ""


def run_launch(cfg: DictConfig, outcomes: list[Outcome]) -> None:
    """Adds to `outcomes` what a job of a sweep came to."""
    check(cfg, "launch")
    if cfg.vast.action != "launch":
        vast = Vast(cfg.vast.pause, cfg.vast.request_timeout)
        return ACTIONS[cfg.vast.action](cfg.vast, vast, Ledger(Path(cfg.vast.ledger)))
    if not cfg.vast.rehearse:
        return launch(cfg, outcomes)
    from ups.launch.rehearsal.local import rehearsed

    with rehearsed(cfg, Path(HydraConfig.get().runtime.output_dir)) as here:
        return launch(here, outcomes)


def launch(cfg: DictConfig, outcomes: list[Outcome]) -> None:
    """Rent, and follow if that is wanted."""
    started, folder = time.time(), Path(HydraConfig.get().runtime.output_dir)
    ledger, outcome = Ledger(Path(cfg.vast.ledger)), Outcome(passed_on())
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        outcomes.append(outcome)
    rental = None
    try:
        rental = rented(cfg)
        if rental and cfg.vast.follow:
            follow(Vast(cfg.vast.pause, cfg.vast.request_timeout), ledger, rental, cfg.vast.poll_seconds)
    except BaseException as error:
        outcome.error = first_line(error)
        raise
    finally:  # by the ledger, which knows it whatever came after the rental
        outcome.rental = still_open(ledger, folder, started)
        untold = rental is None and outcome.rental and "STILL BILLED" not in outcome.error
        if untold and outcome.error and not cfg.vast.rehearse:
            console.print(still_billed(outcome.rental))


def still_open(ledger: Ledger, folder: Path, started: float) -> Rental | None:
    """The latest rental of the run in that folder, which may have had others before, if nothing has ended it."""
    mine = [
        rental for rental in ledger.rentals()
        if rental.is_open and rental.run_folder == str(folder) and rental.asked >= started
    ]  # fmt: skip
    return mine[-1] if mine else None


def rented(cfg: DictConfig) -> Rental | None:
    """None after a dry run."""
    settings, folder, ledger = cfg.vast, Path(HydraConfig.get().runtime.output_dir), Ledger(Path(cfg.vast.ledger))
    preflight = start_preflight(settings.offer.gpus, passed_on())  # takes as long as all until its answer is needed
    try:
        vast = Vast(settings.pause, settings.request_timeout)
        job = job_of(cfg)
        write(folder / "onstart.sh", lambda file: file.write_text(job.script))
        money = min(settings.max_cost, money_left(ledger, folder, settings.max_total_cost))
        offers = offers_for(vast, settings, money, ledger.failed_machines(), set())
        screen.print(table(offers))
        finish_preflight(preflight)
    finally:
        preflight.kill()
    if settings.dry_run:
        show_plan(job, offers, settings, folder)
        return None
    rental = rent(vast, job, settings, ledger, money, folder, offers)
    try:
        announce(rental, job, hints=not settings.rehearse)
        write_json(folder / "launch.json", asdict(rental))
    except OSError as error:  # the advice of other faults, to start again, would rent a second machine
        raise UserError(f"{first_line(error)}. {still_billed(rental)}") from error
    return rental


def job_of(cfg: DictConfig) -> Job:
    """All that can be checked without Vast is checked here."""
    path, download = cfg.dataset.get("path"), cfg.dataset.get("download")
    if path and not download and (Path(path).is_absolute() or not is_tracked(ROOT, path)):
        has = "a rented machine has only what the repository has, at paths relative to it"
        raise UserError(f"dataset.path={path}: {has}: use dataset=burgers, or dataset.download=true")
    if download and (cfg.vast.disk < 30 or cfg.vast.traffic < 18):
        raise UserError("dataset.download=true brings 8.2 GB to the machine: use vast.disk=40 vast.traffic=20")
    if cfg.runtime.compile and cfg.vast.image.endswith("-runtime"):
        devel = cfg.vast.image.removesuffix("-runtime") + "-devel"
        raise UserError(f"runtime.compile=true needs a C++ compiler, which this image lacks: use vast.image={devel}")
    if cfg.runtime.max_hours is not None:
        raise UserError(f"runtime.max_hours={cfg.runtime.max_hours}: on a rented machine the limit is vast.max_hours")
    settings, secrets = environment_of(cfg)
    keeps_nothing = why_not_kept(cfg)
    if keeps_nothing and not cfg.vast.allow_loss:
        raise UserError(
            f"{keeps_nothing}, so the deadline would destroy the only copy of the results: use logger=wandb and "
            "`wandb login` (or export WANDB_API_KEY), or set vast.allow_loss=true"
        )
    if not keeps_nothing and is_here(server()) and not is_here(os.environ.get("VAST_URL", "")):
        raise UserError(
            f"W&B's server {server()} is this computer's, which a rented machine cannot reach: wandb login --host URL "
            "(or export WANDB_BASE_URL=URL) of one that it can"
        )
    source = pushed_source(ROOT, os.environ.get("GIT_TOKEN"), local=cfg.vast.rehearse)
    if source.token:
        secrets["GIT_TOKEN"] = source.token
    wandb_page = None
    if not keeps_nothing:
        settings["WANDB_ENTITY"], wandb_page = answering_project(cfg)
    return Job(
        source=source, overrides=tuple(passed_on()), gpus=cfg.vast.offer.gpus, auto_shutdown=bool(cfg.auto_shutdown),
        prove="" if keeps_nothing else "try" if cfg.vast.allow_loss else "insist", on_failure=cfg.vast.on_failure,
        settings=settings, secrets=secrets, wandb_page=wandb_page,
    )  # fmt: skip


def environment_of(cfg: DictConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What the machine gets of this computer's environment: (settings, secrets)."""
    settings, secrets = {"VAST_URL": os.environ.get("VAST_URL")}, {}
    if "wandb" in cfg.logger:
        settings |= {name: os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_MODE")}
        settings["WANDB_BASE_URL"], secrets["WANDB_API_KEY"] = server(), api_key()
    return tuple({name: value for name, value in each.items() if value} for each in (settings, secrets))


def is_here(url: str) -> bool:
    """Whether it is an address of this computer, which on another one is that other's."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


def answering_project(cfg: DictConfig) -> tuple[str, str]:
    """W&B's entity and page of the project, once W&B has taken the key."""
    try:
        return writable_project(cfg)
    except UserError:
        raise
    except Exception as error:  # the client's errors have no common class
        raise UserError(
            f"W&B does not take the key or does not answer ({first_line(error)}): wandb login --verify"
        ) from error


def passed_on() -> list[str]:
    """This job's overrides, without those that are about the launch itself or folders of this computer."""
    task = [each for each in HydraConfig.get().overrides.task if key_of(each).partition(".")[0] not in HERE_ONLY]
    return hydras_passed_on() + task


def hydras_passed_on() -> list[str]:
    """Of the overrides of Hydra itself the folders with more of the config, if the machine will have them."""
    passed = [each for each in HydraConfig.get().overrides.hydra if not HYDRAS_HERE.match(key_of(each))]
    for override in passed:
        if key_of(override) != "hydra.searchpath":
            raise UserError(f"{override}: is not passed on to a rented machine: leave it out")
        for place in HydraConfig.get().searchpath:
            path = str(place).removeprefix("file://")
            if path == place or Path(path).is_absolute() or not is_tracked(ROOT, path):
                has = "a rented machine has only what the repository has, at paths relative to it"
                raise UserError(f"{override}: {has}: use hydra.searchpath=[file://FOLDER]")
            refuse_untracked(ROOT, [path])
    return passed


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def start_preflight(gpus: int, overrides: list[str]) -> subprocess.Popen:
    """train.py's own check of what only the networks know, in a process of its own: the launcher has no torch."""
    return subprocess.Popen(
        [sys.executable, "-m", "ups.runs.preflight", str(gpus), *overrides], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish_preflight(process: subprocess.Popen) -> None:
    """Raises `UserError` for a config that cannot be built, and for code that the machine would lack."""
    imported, error = process.communicate()
    if process.returncode:
        raise UserError((error.strip().splitlines() or ["the config cannot be built"])[-1].removeprefix("error: "))
    refuse_untracked(ROOT, imported.splitlines())


def money_left(ledger: Ledger, folder: Path, total: float) -> float:
    """Dollars that a sweep's earlier jobs and their failed tries leave of `vast.max_total_cost`; else all of it."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return total
    mine = [rental for rental in ledger.rentals() if Path(rental.run_folder).parent == folder.parent]
    return max(total - sum(rental.cost_limit if rental.is_open else rental.cost for rental in mine), 0.0)


def show_plan(job: Job, offers: list[Offer], settings: DictConfig, folder: Path) -> None:
    screen.print(reason(offers, settings))
    screen.print(f"commit  {job.source.commit[:9]} of {job.source.branch}, {job.source.url}")
    screen.print(f"trains  python train.py {shlex.join(job.overrides)}")
    screen.print(f"script  {folder / 'onstart.sh'}, {len(job.script.encode())} bytes")
    screen.print("dry run: nothing was rented")


def announce(rental: Rental, job: Job, hints: bool) -> None:
    until = datetime.fromtimestamp(rental.deadline)
    ending = "it destroys itself when it is done" if job.auto_shutdown else "it stays until then"
    screen.print(
        f"instance {rental.instance_id}: {rental.gpu}, ${rental.price_per_hour:.3f} an hour, at most "
        f"${rental.cost_limit:.2f}; deadline {until:%Y-%m-%d %H:%M:%S}, {ending}"
    )
    if rental.wandb_url:
        screen.print(f"charts  {rental.wandb_url}")
    if not hints:
        return
    screen.print(f"log     python launch_vast.py vast.action=logs vast.follow=true vast.instance={rental.instance_id}")
    screen.print(f"end it  python launch_vast.py vast.action=destroy vast.instance={rental.instance_id}")


def print_sweep(outcomes: list[Outcome]) -> None:
    """What all jobs of a sweep came to."""
    summary = table_of_rentals("Rented by this sweep", "overrides", "instance", "GPU", "$ at most", "deadline", "error")
    for outcome in outcomes:
        rental = outcome.rental
        cells = ("", "", "", "") if rental is None else (
            str(rental.instance_id or rental.label), rental.gpu, f"{rental.cost_limit:.2f}",
            f"{datetime.fromtimestamp(rental.deadline):%m-%d %H:%M}",
        )  # fmt: skip
        summary.add_row(" ".join(outcome.overrides), *cells, outcome.error)
    screen.print(summary)
