"""Hydra's errors of composition, as one line that says what to type instead."""

import difflib
import re
import traceback
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ups.config.check import GROUPS
from ups.errors import first_line, shortened


def one_line(error: HydraException | OmegaConfBaseException, known_keys: list[str]) -> str:
    """What a person needs of an error of composition, which Hydra tells in several lines."""
    text = str(error)
    if several := re.search(r"Ambiguous value for argument '(.+)'", text):
        key = several[1].partition("=")[0]
        return f"{several[1]}: several values are a sweep, for which -m is missing; one list is {key}=[...]"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if key := re.search(r"Could not override '([^']+)'", text):
        if group := re.search(r"Did you mean to override (\S+)\?", text):
            return f"{key[1]} is not a group of this config: did you mean {group[1]}?"
        return f"{key[1]} is not a key of the config" + _nearest(key[1], known_keys)
    if option := re.search(r"Could not find '([^']+)'", text):
        group, _, name = option[1].rpartition("/")
        choices = [line for line in lines[lines.index(f"Available options in '{group}':") + 1 :] if " " not in line] \
            if f"Available options in '{group}':" in lines else []  # fmt: skip
        known = f": choose one of {', '.join(choices)}" if choices else ""
        return f"{group}={shortened(name, 80)} is not an option of the group {group}{known}"
    return " ".join(lines[:2])


def hydras_line(error: ValueError | TypeError) -> str | None:
    """About a mistake that Hydra leaves to a traceback of its own; None for an error from elsewhere."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if file.name == "defaults_list.py":  # `stage=null`, `stage=[3]`
        return "a group takes the name of an option, no number and not null: leave it out, or use logger=none"
    return first_line(error) if file.is_relative_to(Path(hydra.__file__).parent) else None


def _nearest(key: str, known_keys: list[str]) -> str:
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
