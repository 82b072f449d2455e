"""One run of launch_vast.py: check everything that costs nothing, rent, watch."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.table import Table

from ups.config import check
from ups.errors import UserError
from ups.files import write, write_json
from ups.launch.job import Job
from ups.launch.ledger import Ledger, Rental
from ups.launch.offers import Offer, reason, table
from ups.launch.renting import offers_for, rent
from ups.launch.repository import is_tracked, pushed_source
from ups.launch.service import Vast
from ups.launch.tracking import tracking
from ups.paths import ROOT
from ups.runs.rentals import destroy, follow, logs, reap, screen, status

HERE_ONLY = ("auto_shutdown", "vast", "store", "cache")  # overrides that say nothing to the machine
ACTIONS = {"status": status, "logs": logs, "destroy": destroy, "reap": reap}


@dataclass(frozen=True)
class Outcome:
    """Of one job of a sweep."""

    overrides: list[str]
    rental: Rental | None
    error: str = ""


def run_launch(cfg: DictConfig, outcomes: list[Outcome]) -> None:
    """Adds to `outcomes` what a job of a sweep came to."""
    check(cfg)
    vast = Vast(cfg.vast.pause, cfg.vast.request_timeout) if not cfg.vast.rehearse else None
    if cfg.vast.action != "launch":
        return ACTIONS[cfg.vast.action](cfg.vast, vast, Ledger(Path(cfg.vast.ledger)))
    try:
        if cfg.vast.rehearse:
            from ups.launch.rehearsal.local import rehearsed

            with rehearsed(cfg, Path(HydraConfig.get().runtime.output_dir)) as here:
                rental = launch(here)
        else:
            rental = launch(cfg)
    except UserError as error:
        outcomes.append(Outcome(passed_on(), None, str(error)))
        raise
    outcomes.append(Outcome(passed_on(), rental))
    return None


def launch(cfg: DictConfig) -> Rental | None:
    """None after a dry run."""
    settings, folder, ledger = cfg.vast, Path(HydraConfig.get().runtime.output_dir), Ledger(Path(cfg.vast.ledger))
    building = start_building(passed_on())  # takes as long as all that follows until it is asked for
    try:
        vast = Vast(settings.pause, settings.request_timeout)
        job = job_of(cfg)
        write(folder / "onstart.sh", lambda file: file.write_text(job.script))
        money = min(settings.max_cost, money_left(folder, settings.max_total_cost))
        offers = offers_for(vast, settings, money, ledger.failed_machines(), set())
        screen.print(table(offers))
        finish_building(building)
    finally:
        building.kill()
    if settings.dry_run:
        show_plan(job, offers, settings, folder)
        return None
    rental = rent(vast, job, settings, ledger, money, folder, offers)
    write_json(folder / "launch.json", asdict(rental))
    announce(rental, job)
    if settings.follow:
        follow(vast, ledger, rental, settings.poll_seconds)
    return rental


def job_of(cfg: DictConfig) -> Job:
    """All that can be checked without Vast is checked here."""
    path = cfg.dataset.get("path")
    if path and not is_tracked(ROOT, path):
        raise UserError(f"dataset.path={path}: a rented machine has only what the repository has: use dataset=burgers")
    tracks = tracking(cfg)
    source = pushed_source(ROOT, os.environ.get("GIT_TOKEN"), local=cfg.vast.rehearse)
    service = {"VAST_URL": os.environ["VAST_URL"]} if os.environ.get("VAST_URL") else {}
    return Job(
        source=source, overrides=tuple(passed_on()), gpus=cfg.vast.offer.gpus, auto_shutdown=bool(cfg.auto_shutdown),
        prove=tracks.proves and not cfg.vast.allow_loss, on_failure=cfg.vast.on_failure, page=tracks.page,
        settings=tracks.settings | service,
        secrets=tracks.secrets | ({"GIT_TOKEN": source.token} if source.token else {}),
    )  # fmt: skip


def passed_on() -> list[str]:
    """This job's overrides, without those that are about the launch itself or folders of this computer."""
    task = HydraConfig.get().overrides.task
    key = lambda override: override.lstrip("+~").partition("=")[0]
    return [override for override in task if key(override).partition(".")[0] not in HERE_ONLY]


def start_building(overrides: list[str]) -> subprocess.Popen:
    """train.py's own check of what only the networks know, in a process of its own: the launcher has no torch."""
    return subprocess.Popen(
        [sys.executable, "-m", "ups.runs.building", *overrides], cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish_building(process: subprocess.Popen) -> None:
    error = process.communicate()[1]
    if process.returncode:
        raise UserError((error.strip().splitlines() or ["the config cannot be built"])[-1].removeprefix("error: "))


def money_left(folder: Path, total: float) -> float:
    """Dollars that a sweep's earlier jobs leave of `vast.max_total_cost`; all of it outside of a sweep."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return total
    sweep = folder.parent
    promised = sum(rental.cost_limit for rental in launched(sweep))
    if promised >= total:
        raise UserError(f"vast.max_total_cost={total:g}: the sweep's earlier runs may cost ${promised:.2f} already")
    return total - promised


def launched(folder: Path) -> Iterator[Rental]:
    """What the runs in a sweep's folder have rented."""
    for file in sorted(folder.glob("*/launch.json")):
        yield Rental(**json.loads(file.read_text()))


def show_plan(job: Job, offers: list[Offer], settings: DictConfig, folder: Path) -> None:
    screen.print(reason(offers, settings))
    screen.print(f"commit  {job.source.commit[:9]} of {job.source.branch}, {job.source.url}")
    screen.print(f"trains  python train.py {shlex.join(job.overrides)}")
    screen.print(f"script  {folder / 'onstart.sh'}, {len(job.script.encode())} bytes")
    screen.print("dry run: nothing was rented")


def announce(rental: Rental, job: Job) -> None:
    until = datetime.fromtimestamp(rental.deadline)
    ending = "it destroys itself when it is done" if job.auto_shutdown else "it stays until then"
    screen.print(
        f"instance {rental.instance_id}: {rental.gpu}, ${rental.price_per_hour:.3f} an hour, at most "
        f"${rental.cost_limit:.2f}; deadline {until:%Y-%m-%d %H:%M:%S}, {ending}"
    )
    if rental.wandb_url:
        screen.print(f"charts  {rental.wandb_url}")
    screen.print(f"log     python launch_vast.py vast.action=logs vast.follow=true vast.instance={rental.instance_id}")
    screen.print(f"end it  python launch_vast.py vast.action=destroy vast.instance={rental.instance_id}")


def print_sweep(outcomes: list[Outcome]) -> None:
    """What all jobs of a sweep came to."""
    picture = Table(title="Rented by this sweep", title_justify="left")
    for column in ("overrides", "instance", "GPU", "$ at most", "deadline", "error"):
        picture.add_column(column)
    for outcome in outcomes:
        rental = outcome.rental
        cells = ("", "", "", "") if rental is None else (
            str(rental.instance_id), rental.gpu, f"{rental.cost_limit:.2f}",
            f"{datetime.fromtimestamp(rental.deadline):%m-%d %H:%M}",
        )  # fmt: skip
        picture.add_row(" ".join(outcome.overrides), *cells, outcome.error)
    screen.print(picture)
