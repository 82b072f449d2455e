"""Files that several processes may want at once: written whole or not at all, and made by one of them."""

import csv
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from ups.console import console
from ups.errors import UserError, first_line


def write(path: Path, save: Callable[[Path], object], keep_as: Path | None = None) -> None:
    """`save` to a temporary name beside `path`, sync, rename: a reader sees the old file or the new one.

    `keep_as` is where the old file goes, once the new one is safe.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            save(partial)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            if keep_as and path.exists():
                os.replace(path, keep_as)
            os.replace(partial, path)
            _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """So that a loss of power does not undo a renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, reason: str) -> None:
    """Keep a damaged file for a look, under a name that nothing reads."""
    aside = path.with_name(f"{path.name}.damaged")
    with naming(path):
        os.replace(path, aside)
    console.print(f"warning: {path} is damaged ({reason}): set aside as {aside.name}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the file system says that it was at `path`: Python's own names no file when it is a write."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, content: dict | list) -> None:
    write(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


def nulled(content: Any) -> Any:
    """A copy with null for each NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: nulled(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [nulled(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def with_nan(content: Any) -> Any:
    """The way back: nan for each null."""
    if isinstance(content, dict):
        return {key: with_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [with_nan(value) for value in content]
    return math.nan if content is None else content


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    def save(partial: Path) -> None:
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write(path, save)


def read_csv(path: Path) -> list[dict[str, float]]:
    """A row has the columns in which it is not empty. Raises `ValueError` for a row that does not fit the header."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if any(None in row for row in rows):
        raise ValueError("a row has more cells than the header")
    return [{name: _number(cell) for name, cell in row.items() if cell} for row in rows]


def _number(cell: str) -> float:
    return int(cell) if cell.isdigit() else float(cell)


def read_json(path: Path) -> dict:
    """The object in a JSON file of the store; a `UserError` if the file is damaged."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): remove its folder and train again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: remove its folder and train again")
    return content


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes `path`; the others say that they wait. The system frees a dead process's lock."""
    with ExitStack() as held:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(path.with_name(path.name + ".lock"), "a"))
            if not _take(lock):
                console.print(f"another run makes {path}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Who has the lock is alone: what is half-written is a dead process's.
            for partial in [*path.parent.glob(f".{path.name}.*.partial"), *path.rglob(".*.partial")]:
                partial.unlink()
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """For a run's folder: no other run writes there meanwhile, not even one that began at the same time stamp."""
    with ExitStack() as held:
        with naming(folder):
            lock = held.enter_context(open(folder / ".lock", "a"))
            if not _take(lock):
                raise UserError(f"another run is writing in {folder}: set hydra.run.dir=FOLDER to one of its own")
        yield


def _take(lock: TextIO) -> bool:
    """Whether nobody else had it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
