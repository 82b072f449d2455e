"""Where the key of W&B is found: as its own client, which wrote it, finds it."""

from urllib.parse import urlparse

import pytest
import wandb

from ups.config.compose import composed
from ups.wandb.account import HOSTS, api_key, server, why_not_kept

FORGE, OLD, OWN = "api.forge.coreweave.com", "api.wandb.ai", "wandb.example.com:8080"


@pytest.mark.parametrize(
    ("machines", "url", "found"),
    [
        ([FORGE], None, FORGE),
        ([OLD], None, OLD),
        ([OLD, FORGE], None, FORGE),
        ([OWN, FORGE], None, FORGE),
        ([OWN], None, None),
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
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_CONFIG_DIR", raising=False)
    assert api_key() == (found and f"key-of-{found}")


def test_a_file_that_others_may_read_has_the_key_and_a_broken_one_keeps_nothing(tmp_path, monkeypatch):
    """In its usual place, where Python is stricter than the client."""
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file, cfg = tmp_path / ".netrc", composed("train")
    assert api_key() is None and why_not_kept(cfg) == "there is no key of W&B"
    file.write_text(f"machine {FORGE}\n  login user\n  password its-key\n")
    file.chmod(0o644)
    assert api_key() == "its-key" and why_not_kept(cfg) is None
    file.write_text("no netrc\n")
    assert why_not_kept(cfg) == "the file with W&B's key (netrc) cannot be read"


def test_the_server_is_the_one_of_the_clients_settings(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert server() == ""
    (tmp_path / "settings").write_text(f"[default]\nbase_url = https://{OWN}\n")
    assert server() == f"https://{OWN}"
    (tmp_path / "settings").write_text("base_url\n")
    assert server() == ""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert server() == "http://127.0.0.1:9"


def test_the_client_writes_its_key_under_a_host_that_is_known(monkeypatch):
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert urlparse(wandb.Settings().base_url).netloc in HOSTS
