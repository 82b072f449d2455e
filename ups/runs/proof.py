"""Proves that W&B has all that a run made, after train.py ended in whatever way; a rented machine may go after it.

    python -m ups.runs.proof RUN_FOLDER [--timeout SECONDS]

What is missing there is uploaded, then everything is read back. Exit 0 and `results saved: ...`, or exit 1 and one
line that says what is not. It ends within its timeout.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ups.errors import UserError, first_line
from ups.runs.record import read_record
from ups.training.identity import Identity, from_content
from ups.training.store import Entry
from ups.wandb import artifacts
from ups.wandb.artifacts import Artifacts
from ups.wandb.settings import known_settings

RUN_FOLDER = re.compile(r"run-(?P<time>\d+_\d+)-(?P<id>.+)")
INIT_TIMEOUT = 30  # seconds for the server's answer when a run is started
NOTHING = "no stage was started, there is nothing to lose"


class OutOfTime(BaseException):
    """Not an `Exception`: the client would take it for one of its own and go on."""


@dataclass(frozen=True)
class MadeRun:
    """What a run of train.py left on this machine."""

    folder: Path
    project: str
    entity: str | None
    identity: Identity  # of the stage that was asked for
    entries: list[Entry]  # of its chain, those that have something to lose

    @classmethod
    def read(cls, folder: Path) -> "MadeRun | None":
        """None for a run that ended before it had anything to train."""
        record = read_record(folder)
        if record is None:
            return None
        if record["wandb"] is None:
            raise UserError("the run uploads no checkpoints: it needs logger=wandb with logger.wandb.checkpoints=true")
        store, identity = folder.resolve() / record["store"], from_content(record["identity"])
        entries = [Entry(store, each) for each in identity.chain()]
        return cls(folder, **record["wandb"], identity=identity, entries=[each for each in entries if each.files()])

    @property
    def is_complete(self) -> bool:
        """The last stage, the one that was asked for, is trained."""
        return any(entry.is_trained and entry.identity.digest == self.identity.digest for entry in self.entries)

    @property
    def run_id(self) -> str | None:
        """None if W&B's client was never started."""
        folders = self.wandb_folders("*run-*")
        return os.environ.get("WANDB_RUN_ID") or (RUN_FOLDER.search(folders[-1].name)["id"] if folders else None)

    def wandb_folders(self, pattern: str) -> list[Path]:
        """The client's, oldest first."""
        folders = (self.folder / "wandb").glob(pattern)
        return sorted(folders, key=lambda path: RUN_FOLDER.search(path.name)["time"])


def prove(made: MadeRun) -> str:
    """What was proven, in one line; a `UserError` for what could not be."""
    os.environ.pop("WANDB_MODE", None)  # of a run that was told to stay offline; this is the time to go online
    for folder in made.wandb_folders("offline-run-*"):
        if not any(folder.glob("*.wandb.synced")):
            sync(folder)

    server = Artifacts(made.project, made.entity)
    lacking = {}
    for entry in made.entries:
        if difference := server.difference(entry.artifact, entry.files()):
            print(f"{entry.artifact}: {difference}; uploading", flush=True)
            lacking[entry.artifact] = entry.files()
    settled = ("finished",) if made.is_complete else ("finished", "failed")
    state = server.run_state(made.run_id) if made.run_id else None
    broken = made.run_id and state not in settled
    if broken:  # the client was killed, or gave up, before it had sent everything
        starts = made.wandb_folders(f"run-*-{made.run_id}")
        for folder in starts if state == "missing" else starts[-1:]:  # a row may arrive twice, but all arrive
            sync(folder)
    if lacking or broken:
        upload(made, lacking)

    for entry in made.entries:
        if difference := server.difference(entry.artifact, entry.files()):
            raise UserError(f"{entry.artifact} {difference} after the upload")
        print(f"{entry.artifact}: on W&B, its files' sizes and digests are those here", flush=True)
    if made.run_id and (state := server.run_state(made.run_id)) not in settled:
        raise UserError(f"the run {made.run_id} is {state} after all was sent")
    names = ", ".join(entry.artifact for entry in made.entries)
    return f"{names} in {server.project}" if names else NOTHING


def sync(folder: Path) -> None:
    """Upload what the client wrote to disk."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", str(folder)]
    environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_RESUME", "WANDB_RUN_ID")}
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    if answer.returncode or not any(folder.glob("*.wandb.synced")):
        reason = (answer.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UserError(f"`wandb sync {folder}` failed: {reason}")
    print(f"{folder.name}: synced", flush=True)


def upload(made: MadeRun, lacking: dict[str, dict[str, Path]]) -> None:
    """Into the run itself, which is resumed for it and then has the state that its training deserves."""
    import wandb

    run = wandb.init(
        project=made.project, entity=made.entity, id=made.run_id, resume="allow", mode="online", dir=made.folder,
        settings=known_settings(
            wandb, silent=True, console="off", init_timeout=INIT_TIMEOUT,
            x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,  # those are the training's
        ),
    )  # fmt: skip
    for name, files in lacking.items():
        artifacts.log(run, name, files)
    run.finish(exit_code=0 if made.is_complete else 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ups.runs.proof", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--timeout", type=int, default=120, metavar="SECONDS")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, arguments.timeout, 1)  # again each second, should the client swallow it
    try:
        made = MadeRun.read(arguments.folder)
        print(f"results saved: {prove(made) if made else NOTHING}", flush=True)
        return 0
    except OutOfTime:
        reason = f"no answer from W&B in {arguments.timeout} s"
    except Exception as error:  # the client's errors have no common class, and the caller reads one line
        reason = first_line(error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"results not saved: {reason}", flush=True)
    return 1


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


if __name__ == "__main__":
    os._exit(main())  # not through the client's own end, which would wait for the server
