"""Files that several processes may want at once: written whole or not at all, and made by one of them."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ups.console import console
from ups.errors import UserError, first_line


def write(path: Path, save: Callable[[Path], object]) -> None:
    """`save` to a temporary name beside `path`, sync, rename: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict | list) -> None:
    write(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    def save(partial: Path) -> None:
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write(path, save)


def read_csv(path: Path) -> list[dict[str, float]]:
    """A row has the columns in which it is not empty."""
    with open(path, newline="") as file:
        return [{name: _number(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def _number(cell: str) -> float:
    return int(cell) if cell.isdigit() else float(cell)


def read_json(path: Path) -> dict:
    """The object in a JSON file of the store; a `UserError` if the file is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): remove its folder and train again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: remove its folder and train again")
    return content


def locked(path: Path):
    """`with locked(path): ...`: one process at a time makes `path`; the others say that they wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        console.print(f"another run makes {path}: waiting for it")
        return lock.acquire()
