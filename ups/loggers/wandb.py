"""Weights & Biases: online with a key, offline by itself without one. Whatever fails in it, the training goes on."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ups.console import console
from ups.loggers.logger import Logger
from ups.wandb import artifacts
from ups.wandb.account import api_key


class WandbLogger(Logger):
    """Arguments: see conf/logger/wandb.yaml; `folder` is the run's, `config` what W&B shows beside the charts."""

    def __init__(
        self, folder: Path, config: dict, project: str, entity: str | None, name: str | None, tags: list[str],
        checkpoints: bool, init_timeout: float, finish_timeout: float,
    ):  # fmt: skip
        self.folder = folder
        self.checkpoints = checkpoints
        self.run = None
        self.sets_mode = False
        name = name or "-".join(folder.parts[-2:])  # date and time, or a sweep's time and its job
        identity = {"project": project, "entity": entity, "name": name, "tags": tags, "config": config}
        self._guarded("start", lambda: self._start(identity, init_timeout, finish_timeout))

    def _start(self, identity: dict, init_timeout: float, finish_timeout: float) -> None:
        import wandb

        if "WANDB_MODE" not in os.environ and api_key() is None:
            self._go_offline("no API key")
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = known_settings(
            wandb, init_timeout=init_timeout, finish_timeout=finish_timeout, finish_timeout_raises=False, silent=True,
            x_transaction_log_flush_interval=1.0,  # a killed run has its rows on disk
        )  # fmt: skip
        init = partial(wandb.init, dir=self.folder, settings=settings, reinit="finish_previous", **identity)
        try:
            self.run = init()
        except wandb.errors.Error as error:
            if os.environ.get("WANDB_MODE") == "offline":
                raise
            self._go_offline(_first_line(error))
            self.run = init(mode="offline")  # the client has read the environment already

    def _go_offline(self, reason: str) -> None:
        # In the environment, not as an argument: only so does the client look up no host at all.
        os.environ["WANDB_MODE"] = "offline"
        self.sets_mode = True
        console.print(
            f"wandb: offline, {reason}. The charts are in {self.folder / 'wandb'}: look with `wandb leet {self.folder}/"
            "wandb/offline-run-*`, upload with `wandb login` and `wandb sync`."
        )

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        hidden = step_metric is None  # an axis is no chart of its own
        self._guarded("define_metric", lambda: self.run.define_metric(name, step_metric=step_metric, hidden=hidden))

    def log(self, row: dict[str, float]) -> None:
        self._guarded("log", lambda: self.run.log(row))

    def log_figure(self, name: str, path: Path) -> None:
        def log() -> None:
            import wandb

            self.run.log({name: wandb.Image(str(path))})

        self._guarded("log_figure", log)

    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        if self.checkpoints:
            self._guarded("log_checkpoint", lambda: artifacts.log(self.run, name, files))

    def finish(self, exit_code: int) -> None:
        self._guarded("finish", lambda: self.run.finish(exit_code=exit_code))
        if self.sets_mode:
            del os.environ["WANDB_MODE"]  # the next job of a sweep tries, and tells, for itself

    def _guarded(self, what: str, call: Callable[[], Any]) -> None:
        """The client may raise anything, at any call (its own process died, its disk is full): one warning, then
        silence. metrics.csv has every row."""
        if what != "start" and self.run is None:
            return
        try:
            call()
        except Exception as error:
            self.run = None
            console.print(
                f"warning: wandb failed at {what} ({type(error).__name__}: {_first_line(error)}); the training goes "
                f"on without it. What it has is in {self.folder / 'wandb'}, for `wandb sync`; metrics.csv is complete."
            )


def known_settings(wandb, **wanted):
    """Versions of the client differ in their settings, and refuse one they do not know."""
    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
