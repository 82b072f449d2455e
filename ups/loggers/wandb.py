"""Weights & Biases: online with a key, offline by itself without one. Whatever fails in it, the training goes on."""

import logging
import math
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENOSPC
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Lock, Thread
from typing import Any

import psutil

from ups.console import console
from ups.errors import first_line
from ups.loggers.logger import Logger
from ups.wandb import artifacts
from ups.wandb.account import api_key
from ups.wandb.settings import known_settings

LEAST_ROOM = 1 << 16  # bytes on the disk
MOST_WAITING = 10_000  # calls, a kilobyte each
FULL_SECONDS = 0.5  # that a call waits once so many do; a client that works has taken thousands by then
SERVICE_SECONDS = 60.0  # for the client's own process to come up, beside the server's answer
INTERRUPTED_SECONDS = 2.5  # for the end of a run that was told to stop


class WandbLogger(Logger):
    """Arguments: see conf/logger/wandb.yaml; `folder` is the run's, `config` what W&B shows beside the charts.

    The client works in a thread of its own, call after call: it may wait for its server, its process or its disk as
    long as it likes, and the training does not. What cannot be done in time is given up, with one warning.
    """

    def __init__(
        self, folder: Path, config: dict, project: str, entity: str | None, name: str | None, tags: list[str],
        checkpoints: bool, init_timeout: float, finish_timeout: float,
    ):  # fmt: skip
        self.folder = folder
        self.checkpoints = checkpoints
        self.finish_timeout = finish_timeout
        self.run = None
        self.reached: dict[str, float] = {}  # of each axis, by earlier starts of a run that is resumed
        self.sets_mode = False
        self.given_up = False
        self.lock = Lock()
        self.calls: Queue[tuple[str, Callable[[], Any]]] = Queue(MOST_WAITING)
        self.started = Event()
        # A rented run has the rental's label; another its date and time, or its sweep's and its job.
        name = name or os.environ.get("WANDB_NAME") or os.environ.get("WANDB_RUN_ID") or "-".join(folder.parts[-2:])
        identity = {"project": project, "entity": entity, "name": name, "tags": tags, "config": config}
        self.thread = Thread(target=self._work, args=(partial(self._start, identity, init_timeout),), daemon=True)
        self.thread.start()
        with self._ended_if_interrupted():
            if not self.started.wait(init_timeout + SERVICE_SECONDS):
                self._give_up("start", "no answer")

    def _start(self, identity: dict, init_timeout: float) -> None:
        import wandb

        logging.getLogger("asyncio").setLevel(logging.ERROR)  # of the client's connection: one warning tells its end
        if not os.environ.get("WANDB_MODE"):
            os.environ.pop("WANDB_MODE", None)  # the client takes an empty one for a mistake
            if not api_key():
                self._go_offline("no API key" if api_key() is None else "the file with its key (netrc) cannot be read")
        self.folder.mkdir(parents=True, exist_ok=True)
        wandb.setup(known_settings(wandb, silent=True))  # what a person must know is said here, once
        settings = known_settings(
            wandb, init_timeout=init_timeout,
            x_transaction_log_flush_interval=0.1,  # seconds: a killed run or client has its rows on disk
        )  # fmt: skip
        init = partial(wandb.init, dir=self.folder, settings=settings, reinit="finish_previous", **identity)
        try:
            self.run = init()
        except wandb.errors.Error as error:
            if self.given_up or os.environ.get("WANDB_MODE") == "offline":
                raise
            self._go_offline(first_line(error).rstrip("."))
            self.run = init(mode="offline")  # the client has read the environment already
        if not self.run.offline and self.run.url:
            console.print(f"wandb: {self.run.url}")

    def _go_offline(self, reason: str) -> None:
        # In the environment, not as an argument: only so does the client look up no host at all.
        os.environ["WANDB_MODE"] = "offline"
        self.sets_mode = True
        written = f"{shlex.quote(str(self.folder))}/wandb/offline-run-*"
        console.print(
            f"wandb: offline, {reason}. The charts are in {self.folder / 'wandb'}: look with `wandb leet {written}`, "
            f"upload with `wandb login` and `wandb sync {written}`."
        )

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        hidden = step_metric is None  # an axis is no chart of its own

        def define() -> None:
            if hidden and self.run.resumed:
                self.reached[name] = self.run.summary.get(name, -math.inf)
            self.run.define_metric(name, step_metric=step_metric, hidden=hidden)

        self._call("define_metric", define)

    def log(self, row: dict[str, float]) -> None:
        """But for what a run that is resumed has from its earlier starts: it would be there twice."""

        def log() -> None:
            if not any(row[axis] <= reached for axis, reached in self.reached.items() if axis in row):
                self.run.log(row)

        self._call("log", log)

    def log_figure(self, name: str, path: Path) -> None:
        def log() -> None:
            import wandb

            if not (self.run.resumed and name in self.run.summary):  # an earlier start has logged it
                self.run.log({name: wandb.Image(str(path))})

        self._call("log_figure", log)

    def log_scores(self, scores: dict[str, float]) -> None:
        """In the summary, by which W&B's tables of runs sort; what it has there of a chart is the last point's."""
        self._call("log_scores", lambda: self.run.summary.update(scores))

    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        if self.checkpoints:
            self._call("log_checkpoint", lambda: artifacts.log(self.run, name, files))

    def finish(self, exit_code: int) -> None:
        interrupted = exit_code > 128
        seconds = min(self.finish_timeout, INTERRUPTED_SECONDS) if interrupted else self.finish_timeout
        with self._ended_if_interrupted():
            self._call("finish", lambda: self._finish(exit_code))
            self.thread.join(seconds)
            if self.thread.is_alive():
                self._give_up("finish", f"no answer in {seconds:g} s")
        if self.sets_mode:
            del os.environ["WANDB_MODE"]  # the next job of a sweep tries, and tells, for itself

    def _finish(self, exit_code: int) -> None:
        import wandb

        self.run.finish(exit_code=exit_code)
        wandb.teardown()  # now, within a bound: at the process's end the client waits without one

    def _call(self, what: str, call: Callable[[], Any]) -> None:
        if self.given_up:
            return
        try:
            self.calls.put((what, call), timeout=FULL_SECONDS)
        except Full:
            self._give_up(what, f"no answer, {MOST_WAITING} calls wait")

    def _work(self, start: Callable[[], None]) -> None:
        """The client's thread, from its start to its end or to what it raises first (its own process died, ...)."""
        what = "start"
        try:
            start()
            self.started.set()
            while what != "finish":
                what, call = self.calls.get()
                self._check_room()
                call()
        except (Exception, SystemExit) as error:  # the client may raise anything, at any call
            self._give_up(what, f"{type(error).__name__}: {reason_of(error)}")
        finally:
            self.started.set()

    def _check_room(self) -> None:
        """Offline the client loses rows on a full disk, and says nothing."""
        place = self.folder / "wandb"
        if self.run.offline and shutil.disk_usage(place).free < LEAST_ROOM:
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(place))

    def _give_up(self, what: str, reason: str) -> None:
        """One warning, from whichever thread is first, and then silence. metrics.csv has every row."""
        with self.lock:
            if self.given_up:
                return
            self.given_up = True
        upload = f"`wandb sync --include-online {shlex.quote(str(self.folder))}/wandb/*run-*`"
        console.print(
            f"warning: wandb failed at {what} ({reason}); the training does without it, and metrics.csv has every row."
            + (f" Upload what it wrote to disk with {upload}." if self.run else "")
        )
        self._end_client()

    @contextmanager
    def _ended_if_interrupted(self) -> Iterator[None]:
        """Around a wait: whoever ends it early wants no other wait at the process's end."""
        try:
            yield
        except BaseException:
            self.given_up = True
            self._end_client()
            raise

    def _end_client(self) -> None:
        """Its processes die, so that each of its calls returns, and its hook at the end of this process is undone."""
        tell = threading.__excepthook__  # its other threads lose their connection by this, which is nobody's error
        threading.excepthook = lambda raised: None if isinstance(raised.exc_value, ConnectionError) else tell(raised)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("wandb-"):
                    process.kill()  # not terminate: it may be stopped
        with suppress(Exception, SystemExit):  # the connection is broken, and so it says
            import wandb

            wandb.teardown()


def reason_of(error: BaseException) -> str:
    """On one line; of a setting that the client refuses, which one and why."""
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return first_line(error)
