"""Hydra's errors of composition, as one line that says what to type instead."""

import re
import traceback
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ups.config.nearest import nearest
from ups.errors import first_line, shortened
from ups.paths import CONFIG_FOLDER


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
        group, at, place = key[1].partition("@")
        there = [known for known in known_keys if known.endswith("." + place.rpartition(".")[2])] if at else []
        if there:  # stage.network, where it is stage.requires.network
            return f"{key[1]} is not a choice of this config: did you mean {group}@{there[0]}?"
        return f"{key[1]} is not a key of the config" + nearest(key[1], known_keys)
    if option := re.search(r"Could not find '([^']+)'", text):
        group, _, name = option[1].rpartition("/")
        choices = [line for line in lines[lines.index(f"Available options in '{group}':") + 1 :] if " " not in line] \
            if f"Available options in '{group}':" in lines else []  # fmt: skip
        known = f": choose one of {', '.join(choices)}" if choices else ""
        return f"{group}={shortened(name, 80)} is not an option of the group {group}{known}"
    if option := re.search(r"Could not load '([^']+)/([^'/]+)'", text):  # of a list, whose options Hydra does not tell
        choices = ", ".join(sorted(file.stem for file in (CONFIG_FOLDER / option[1]).glob("*.yaml")))
        return f"{option[1]}={shortened(option[2], 80)} is not an option of the group {option[1]}: choose of {choices}"
    return " ".join(lines[:2])


def hydras_line(error: ValueError | TypeError) -> str | None:
    """About a mistake that Hydra leaves to a traceback of its own; None for an error from elsewhere."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if file.name == "defaults_list.py":  # `stage=null`, `stage=[3]`
        return "a group takes the name of an option, no number and not null: leave it out, or use logger=none"
    return first_line(error) if file.is_relative_to(Path(hydra.__file__).parent) else None
