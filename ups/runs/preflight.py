"""Builds the dataset and the networks of a chain, takes a step and forgets them, and looks at callbacks and loggers:
the check of what only they know, before a machine is rented. Prints the files of the repository that were imported for
it, one a line.

    python -m ups.runs.preflight GPUS stage=diffusion_residual model.width=64
"""

import inspect
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ups.cli import run
from ups.config.build import build, keyed
from ups.config.check import check
from ups.config.compose import composed
from ups.data.darus import PUBLISHED
from ups.errors import UserError
from ups.paths import ROOT
from ups.training.build import try_out
from ups.training.identity import identity_of
from ups.training.plan import check_batch_sizes
from ups.training.runtime import set_up


def main() -> None:
    cfg = composed("train", sys.argv[2:])
    check(cfg)
    dataset = build(cfg.dataset, "dataset")
    if cfg.dataset.get("download") and Path(cfg.dataset.path).name not in PUBLISHED:
        names = ", ".join(PUBLISHED)
        raise UserError(f"dataset.path={cfg.dataset.path}: a rented machine fetches what is published, {names}")
    check_batch_sizes(identity_of(cfg).chain(), int(sys.argv[1]))
    try_out(identity_of(cfg), dataset, set_up(device="cpu", threads=1))
    check_watchers(cfg)
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())} - {None}
    print(*sorted(file for file in files if Path(file).is_relative_to(ROOT)), sep="\n", flush=True)
    os._exit(0)  # at once: the launcher waits, and torch takes its time to leave


def check_watchers(cfg: DictConfig) -> None:
    """Raise a `UserError` for a callback or logger that is not there or does not take its keys. None is made: a logger
    would start a run."""
    keys = [f"{group}.{name}" for group in ("callbacks", "logger") for name in cfg[group]]
    for key in keys:
        node = OmegaConf.select(cfg, key)
        signature = inspect.signature(build(node, key, partial=True))
        of_run = {"folder", "config"} if key.startswith("logger.") else {"loggers", "folder"} & {*signature.parameters}
        try:
            signature.bind(**dict.fromkeys(of_run | {name for name in node if not name.startswith("_")}))
        except TypeError as error:
            raise UserError(keyed(str(error), key, node)) from error


if __name__ == "__main__":
    run(main, "train")
