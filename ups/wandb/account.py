"""The account of W&B: where its key is, whether runs keep their stages there, and under which address."""

import netrc
import os
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from urllib.parse import urlparse

from omegaconf import DictConfig

from ups.errors import UserError

HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's own: the client looks for its key in this order


def api_key() -> str | None:
    """Of WANDB_API_KEY or ~/.netrc, where `wandb login` puts it. Asks nobody, needs no network.

    A file that cannot be read counts as a key "", which nobody takes.
    """
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        # By its path, as the client does: so Python does not ask who else may read it.
        hosts = netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).hosts
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError):
        return ""
    host = urlparse(server()).netloc or HOSTS[0]  # with the port, as `wandb login` writes it
    names = HOSTS[HOSTS.index(host) :] if host in HOSTS else (host,)
    return next((hosts[name][2] for name in names if name in hosts), None)


def server() -> str:
    """The address in WANDB_BASE_URL, or in the client's settings, where `wandb login --host` puts it; "" for W&B's."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder) / "settings")
        return settings.get("default", "base_url", fallback="")
    except (ConfigError, UnicodeDecodeError):
        return ""


def why_not_kept(cfg: DictConfig) -> str | None:
    """Why a run of this config keeps no trained stage on W&B; None if it does."""
    if "wandb" not in cfg.logger:
        return "logger has no wandb"
    if not cfg.logger.wandb.checkpoints:
        return "logger.wandb.checkpoints=false"
    if (mode := os.environ.get("WANDB_MODE") or "online") not in ("online", "shared"):
        return f"WANDB_MODE={mode}"
    key = api_key()
    if key == "":
        return "the file with W&B's key (netrc) cannot be read"
    return "there is no key of W&B" if key is None else None


def project_path(api, project: str, entity: str | None) -> str:
    """`api`: the client's wandb.Api, which knows WANDB_ENTITY and the account's default."""
    return f"{entity or api.settings['entity'] or api.default_entity}/{project}"


def writable_project(cfg: DictConfig) -> tuple[str, str]:
    """The entity and the address of the project's page. Asks the server, so it also tells whether that takes the key.

    Raises `UserError` for an entity that the account is no member of: a run there would go on offline.
    """
    import wandb

    api = wandb.Api(api_key=api_key(), timeout=10)
    path = project_path(api, cfg.logger.wandb.project, cfg.logger.wandb.entity)
    entity, account = path.partition("/")[0], api.viewer
    members = sorted({name for name in (account.entity, account.username, *account.teams) if name})
    if entity not in members:
        raise UserError(
            f"W&B's entity {entity} (of logger.wandb.entity, WANDB_ENTITY or the client's settings) is none of this "
            f"account's, so its runs would stay offline: use logger.wandb.entity={'|'.join(members)}"
        )
    return entity, f"{wandb.util.app_url(api.settings['base_url'])}/{path}"
