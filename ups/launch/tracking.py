"""W&B as the launcher sees it: where the results go, with which key, and under which address they will be seen."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from ups.errors import UserError
from ups.wandb_key import api_key

PASSED_ON = ("WANDB_BASE_URL", "WANDB_ENTITY")  # of this computer's environment


@dataclass(frozen=True)
class Tracking:
    """`proves`: the results can be proven saved; `page(label)`: the address of the run that will have that id."""

    proves: bool
    secrets: dict[str, str]
    settings: dict[str, str]
    page: Callable[[str], str | None]


def tracking(cfg: DictConfig) -> Tracking:
    """Raises `UserError` if the only copy of the results would be destroyed, or W&B refuses the key."""
    key = api_key()
    lacks = what_lacks(cfg, key)
    if lacks and cfg.auto_shutdown and not cfg.vast.allow_loss:
        raise UserError(
            f"{lacks}, so the machine would destroy the only copy of its results: {mend(lacks)}, or set "
            "vast.allow_loss=true"
        )
    settings = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if lacks:
        return Tracking(False, {"WANDB_API_KEY": key} if key else {}, settings, lambda label: None)
    entity, host = account(key)
    node = cfg.logger.wandb
    home = f"{host}/{node.entity or os.environ.get('WANDB_ENTITY') or entity}/{node.project}/runs/"
    return Tracking(True, {"WANDB_API_KEY": key}, settings, lambda label: home + label)


def what_lacks(cfg: DictConfig, key: str | None) -> str | None:
    if "wandb" not in cfg.logger:
        return "logger has no wandb"
    if not cfg.logger.wandb.checkpoints:
        return "logger.wandb.checkpoints=false"
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    return None if key else "there is no key of W&B"


def mend(lacks: str) -> str:
    if lacks.startswith("there is no key"):
        return "wandb login, or export WANDB_API_KEY=KEY"
    return "leave it out" if "=" in lacks else "logger=wandb"


def account(key: str) -> tuple[str, str]:
    """-> the account's default entity and the address of W&B's pages."""
    import wandb

    try:
        api = wandb.Api(api_key=key, timeout=10)
        return api.default_entity, api.settings["base_url"].replace("https://api.", "https://")
    except (wandb.errors.Error, ValueError, OSError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"W&B does not take the key or does not answer ({first}): wandb login --verify") from error
