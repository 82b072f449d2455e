"""A trained stage's identity: what determines its weights and its scores, and the hash that names its folder.

It is the stage's subtree with its `requires`, the model, the dataset and the seed. Device, threads, logging, folders
live in other nodes of the config, so nothing has to be left out by a list; but for `dataset.download`, whose place is
beside `dataset.path`: a file is the same, however it came. A file of data counts by its path, not by its content: a
changed one needs another name. Two keys of `runtime` do change weights and do not count: in bfloat16, or where a step
is skipped, they are other weights of the same stage.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ups.config.compose import plain
from ups.config.origin import check_origin
from ups.errors import UserError
from ups.files import read_json

FORMAT = 7  # raise it when the same config comes to train something else, or a key to be called otherwise


@dataclass(frozen=True)
class Identity:
    """One stage of a chain. `content` is what is hashed, `requires` the identity of its prerequisite."""

    content: dict
    requires: "Identity | None"

    @property
    def name(self) -> str:
        return self.content["stage"]["name"]

    @property
    def digest(self) -> str:
        text = json.dumps(canonical(self.content), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.digest}"

    def chain(self) -> "list[Identity]":
        """From the first prerequisite to this stage."""
        return [*(self.requires.chain() if self.requires else []), self]


def identity_of(cfg: DictConfig) -> Identity:
    """Of the stage that a composed config of train.py asks for."""
    content = {"format": FORMAT} | {key: plain(cfg)[key] for key in ("stage", "model", "dataset", "seed")}
    content["dataset"].pop("download", None)
    return from_content(content)


def from_content(content: dict) -> Identity:
    required = content["stage"]["requires"]
    below = from_content(content | {"stage": required}) if required else None
    return Identity(content, below)


def read_identity(file: Path, searchpath: Sequence[Path] = ()) -> Identity:
    """Of a checkpoint's folder, which may be anybody's: it builds what conf/ names, and calls nothing else.

    Its hash is the folder's name, so a damaged one is noticed. `searchpath`: folders of options of the caller's own.
    """
    content = read_json(file)
    try:
        identity = from_content(content)
        intact = file.absolute().parent.name == identity.folder
    except (KeyError, TypeError):  # keys are missing, or what should have some has none
        intact = False
    if not intact:
        raise UserError(f"{file} is damaged, or not of the folder it is in: copy the folder again, or train it again")
    if content.get("format") != FORMAT:
        raise UserError(f"{file} is of version {content.get('format')}, this code makes {FORMAT}: train it again")
    check_origin(content, file, searchpath)
    for each in identity.chain():
        name = each.content["stage"]["name"]
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise UserError(f"{file}: {name} is no stage's name, it would leave the store")
    return identity


def canonical(value: Any) -> Any:
    """1 and 1.0 are one value: whole floats become integers."""
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def differences(wanted: dict, found: dict) -> list[str]:
    """`key: found -> wanted` for each leaf that differs."""
    a, b = dict(flatten(canonical(found))), dict(flatten(canonical(wanted)))
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...))
    return [f"{key}: {typed(a.get(key, 'absent'))} -> {typed(b.get(key, 'absent'))}" for key in keys]


def typed(value: Any) -> str:
    """A value as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def flatten(node: dict, prefix: str = ""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
