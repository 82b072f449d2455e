"""run.json, by which the proof knows a run: where its stages are and what is kept of them.

Written under the lock of the run's folder, before anything is trained. Hydra's own files there are written before that
lock is asked for: they may be those of another run, which was then refused.
"""

import json
import os
from pathlib import Path

from omegaconf import DictConfig

from ups.errors import UserError
from ups.files import write_json
from ups.training.identity import identity_of

RECORD = "run.json"


def write_record(folder: Path, cfg: DictConfig) -> None:
    """`store` is relative to the run's folder; `wandb` is null where no stage is kept there.

    What an earlier run in this folder came to is removed: it would stand beside a record that it is not of.
    """
    tracker = cfg.logger.get("wandb")
    kept = tracker is not None and tracker.checkpoints
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder / RECORD, {
        "store": os.path.relpath(Path(cfg.store).resolve(), folder.resolve()),
        "wandb": {"project": tracker.project, "entity": tracker.entity} if kept else None,
        "identity": identity_of(cfg).content,
    })  # fmt: skip


def read_record(folder: Path) -> dict | None:
    """None if the run ended before it had anything to train."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        if (folder / ".hydra").exists():
            return None
        raise UserError(f"{folder} is not the folder of a run of train.py: it has no {RECORD}") from None
