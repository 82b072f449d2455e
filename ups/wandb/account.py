"""The account of W&B: where its key is, whether runs keep their stages there, and under which address."""

import netrc
import os
from urllib.parse import urlparse

from omegaconf import DictConfig

HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")  # W&B's own: the client looks for its key in this order


def api_key() -> str | None:
    """Of WANDB_API_KEY or ~/.netrc, where `wandb login` puts it. Asks nobody, needs no network.

    A file that cannot be read counts as a key "", which nobody takes.
    """
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError):
        return ""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "")).netloc  # with the port, as `wandb login` writes it
    if host in HOSTS:
        names = HOSTS[HOSTS.index(host) :]
    else:
        names = (host,) if host else (*HOSTS, *(name for name in hosts if "wandb" in name))
    return next((hosts[name][2] for name in names if name in hosts), None)


def why_not_kept(cfg: DictConfig) -> str | None:
    """Why a run of this config keeps no trained stage on W&B; None if it does."""
    if "wandb" not in cfg.logger:
        return "logger has no wandb"
    if not cfg.logger.wandb.checkpoints:
        return "logger.wandb.checkpoints=false"
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    return None if api_key() is not None else "there is no key of W&B"


def project_path(api, project: str, entity: str | None) -> str:
    """`api`: the client's wandb.Api, which knows WANDB_ENTITY and the account's default."""
    return f"{entity or api.settings['entity'] or api.default_entity}/{project}"


def server_and_page(cfg: DictConfig) -> tuple[str, str]:
    """The addresses of the server, which the client's own settings may name, and of the project's page.

    Asks the server, so it also tells whether that takes the key.
    """
    import wandb

    api = wandb.Api(api_key=api_key(), timeout=10)
    server, project = api.settings["base_url"], project_path(api, cfg.logger.wandb.project, cfg.logger.wandb.entity)
    return server, f"{wandb.util.app_url(server)}/{project}"
