"""Where the key of W&B is found: as its own client, which wrote it, finds it."""

from urllib.parse import urlparse

import pytest
import wandb

from ups.wandb.account import HOSTS, api_key

FORGE, OLD, OWN = "api.forge.coreweave.com", "api.wandb.ai", "wandb.example.com:8080"


@pytest.mark.parametrize(
    ("machines", "url", "found"),
    [
        ([FORGE], None, FORGE),
        ([OLD], None, OLD),
        ([OLD, FORGE], None, FORGE),
        ([OWN, FORGE], None, FORGE),
        ([OWN], None, OWN),
        (["github.com"], None, None),
        ([FORGE, OWN], f"https://{OWN}", OWN),
        ([FORGE], f"https://{OWN}", None),
        ([OLD], f"https://{FORGE}", OLD),
        ([FORGE], f"https://{OLD}", None),
    ],
)
def test_the_key_is_the_one_of_the_server(machines, url, found, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("".join(f"machine {name}\n  login user\n  password key-of-{name}\n" for name in machines))
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url) if url else monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert api_key() == (found and f"key-of-{found}")


def test_the_client_writes_its_key_under_a_host_that_is_known(monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert urlparse(wandb.Settings().base_url).netloc in HOSTS
