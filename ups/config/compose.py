"""The config as Hydra composes it."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ups.paths import CONFIG_FOLDER


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """conf/NAME.yaml, as its script has it; outside of a run, and in one thread at a time."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        return compose(name, overrides=list(overrides))


def typed_overrides() -> list[str]:
    """Of this job, as they were typed: an interpolation in them may have no value, which `check` tells."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)


def plain(node: DictConfig) -> dict:
    """The node as dicts, lists and values, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)
