"""Brings stages that the store lacks home from W&B, where an earlier run put them."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from ups.console import console
from ups.errors import UserError, first_line
from ups.paths import ROOT
from ups.tensors import Damaged
from ups.training.identity import Identity
from ups.training.load import check_foreign
from ups.training.runtime import Runtime
from ups.training.store import Entry, is_file_of_an_entry, unfinished
from ups.wandb.account import why_not_kept

ANSWER_SECONDS = 20.0  # on a busy machine the start of the client alone has taken ten
BYTES_PER_SECOND = 1e6  # a slower download is given up
DOWNLOAD = ".from-wandb-"  # beginning of the name of a folder in the store
LONGEST_DOWNLOAD = 86_400  # seconds
UNUSABLE = (  # what a file of somebody else's may raise while it is read
    UserError, Damaged, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
)  # fmt: skip


class Unreachable(Exception):
    """W&B gave no answer, or none in time."""


def fetch_missing(identity: Identity, store: Path, cfg: DictConfig, runtime: Runtime) -> dict[str, str]:
    """Put what W&B has of the chain into the store; -> the W&B path of each folder that came.

    A trained stage comes for one that is not trained here, an unfinished one only for one that is not started here.
    W&B that cannot be reached costs seconds and a warning, and the training goes on.
    """
    entries = [Entry(store, each) for each in identity.chain()]
    missing = [entry for entry in entries if not entry.is_trained]
    if not missing or why_not_kept(cfg):
        return {}
    origins = {}
    try:
        found = find(cfg.logger.wandb, missing)
        for entry in missing:
            if entry.identity.requires and entry.required_sha256() is None:
                break  # its prerequisite is neither here nor there: trained anew, it will have other weights
            folder = entry.identity.folder
            for name in [folder] if entry.is_started else [folder, unfinished(entry.identity)]:
                if name in found and fetch(entry, found[name], runtime):
                    origins[folder] = found[name]["path"]
                    break
    except Unreachable as error:
        console.print(f"warning: no look at W&B's checkpoints ({error}); the training goes on with those of {store}")
    return origins


def find(logger: DictConfig, entries: list[Entry]) -> dict[str, dict]:
    names = [name for entry in entries for name in (entry.identity.folder, unfinished(entry.identity))]
    answer = _ask(ANSWER_SECONDS, "find", logger.project, logger.entity or "", *names)
    try:
        return json.loads(answer.splitlines()[-1])  # whatever the client has to say comes before it
    except (ValueError, IndexError):
        raise Unreachable("its client gave no answer that can be read") from None


def fetch(entry: Entry, artifact: dict, runtime: Runtime) -> bool:
    """Download, check, and rename into the store; False, with a warning, if it is not what its name says."""
    entry.root.mkdir(parents=True, exist_ok=True)
    for old in entry.root.glob(f"{DOWNLOAD}*"):
        with suppress(FileNotFoundError):  # it is another run's, which has just finished
            if time.time() - old.stat().st_mtime > LONGEST_DOWNLOAD:  # its process was killed
                rmtree(old)
    with TemporaryDirectory(dir=entry.root, prefix=DOWNLOAD) as folder:
        foreign = Entry(Path(folder), entry.identity)
        foreign.path.mkdir()
        seconds = ANSWER_SECONDS + artifact["size"] / BYTES_PER_SECOND
        files = filter(is_file_of_an_entry, artifact["files"])
        _ask(seconds, "download", artifact["path"], str(foreign.path.resolve()), *files)
        try:
            check_foreign(foreign, entry.required_sha256(), runtime)
        except UNUSABLE as error:
            console.print(f"warning: {artifact['path']} is not used ({type(error).__name__}: {first_line(error)})")
            return False
        entry.adopt(foreign)
    return True


def _ask(seconds: float, *arguments: str) -> str:
    """The answer of ups/wandb/artifacts.py, as a process of its own, which is killed with all it started."""
    command = [sys.executable, "-m", "ups.wandb.artifacts", *arguments]
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        answer, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"no answer in {seconds:.0f} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        raise Unreachable((error.strip().splitlines() or ["no answer"])[-1])
    return answer
