"""Where the key of W&B is, without asking anybody."""

import netrc
import os
from urllib.parse import urlparse


def api_key() -> str | None:
    """Of WANDB_API_KEY or ~/.netrc, where `wandb login` puts it. Needs no network.

    A file that cannot be read counts as a key "": the client then says what is wrong with it.
    """
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    host = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError):
        return ""
    return next((hosts[name][2] for name in hosts if name == host or (host is None and "wandb" in name)), None)
