"""Which key of the config was probably meant."""

import difflib
from collections.abc import Iterator

from omegaconf import DictConfig

from ups.config.rules import GROUPS


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a config, of nodes and of leaves."""
    for name in node:
        yield f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from keys(child, f"{prefix}{name}.")


def nearest(key: str, known_keys: list[str]) -> str:
    """A sibling of nearly that name, else the same name elsewhere, else nearly the same key, else all siblings."""
    parent, _, name = key.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in known_keys if known.rpartition(".")[0] == parent}
    near = [siblings[each] for each in difflib.get_close_matches(name, siblings, 1, 0.7)]
    near = near or [known for known in known_keys if known.split(".")[-1] == name and ".requires." not in known][:3]
    near = near or difflib.get_close_matches(key, known_keys, 1, 0.8)
    if near:
        return f": did you mean {' or '.join(near)}?"
    if siblings:
        return f": {parent or 'at the top'} has {', '.join(siblings)}"
    if parent in GROUPS and parent not in known_keys:
        return f" until its group has an option: give {parent}=OPTION too"
    return "; --cfg job shows them all"
