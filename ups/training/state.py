"""What an unfinished training resumes from, as one file of tensors with the rest as JSON in its metadata.

`tensors` are grouped by what they belong to: {"network": {name: tensor}, ...}; `facts` are of JSON's types.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ups.tensors import Damaged, read_tensors, write_tensors

VERSION = "1"  # of the file's layout


@dataclass(frozen=True)
class State:
    facts: dict
    tensors: dict[str, dict[str, Tensor]]


def write_state(file: Path, state: State, keep_as: Path | None = None) -> None:
    tensors = {
        f"{group}/{name}": tensor for group, named in state.tensors.items() for name, tensor in named.items()
    }  # fmt: skip
    write_tensors(file, tensors, {"version": VERSION, "facts": json.dumps(state.facts)}, keep_as)


def read_state(file: Path) -> State:
    """On the CPU; raises `Damaged`, or an `OSError` of the disk."""
    tensors, metadata = read_tensors(file)
    if metadata.get("version") != VERSION:
        raise Damaged(f"its version is {metadata.get('version')}, this code reads {VERSION}")
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, own = name.partition("/")
        grouped.setdefault(group, {})[own] = tensor
    return State(json.loads(metadata["facts"]), grouped)
