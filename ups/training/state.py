"""What an unfinished training resumes from, as one file of tensors; the rest is JSON, as bytes in one of them.

`tensors` are grouped by what they belong to: {"network": {name: tensor}, ...}; `facts` are of JSON's types.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
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
    facts = torch.frombuffer(bytearray(json.dumps(state.facts).encode()), dtype=torch.uint8)
    write_tensors(file, tensors | {"facts": facts}, {"version": VERSION}, keep_as)


def read_state(file: Path) -> State:
    """On the CPU; raises `Damaged`, or an `OSError` of the disk."""
    tensors, metadata = read_tensors(file)
    if metadata.get("version") != VERSION:
        raise Damaged(f"its version is {metadata.get('version')}, this code reads {VERSION}")
    facts = json.loads(tensors.pop("facts").numpy().tobytes())
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, own = name.partition("/")
        grouped.setdefault(group, {})[own] = tensor
    return State(facts, grouped)
