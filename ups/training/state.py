"""What an unfinished training resumes from, as one safetensors file of which no byte can change unnoticed.

`tensors` are grouped by what they belong to: {"network": {name: tensor}, ...}; `facts` are of JSON's types. The file's
metadata hold the facts, a version, and a SHA-256 of everything. There is no pickle in it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ups.tensors import read_tensors, write_tensors

VERSION = "1"  # of the file's layout


@dataclass(frozen=True)
class State:
    facts: dict
    tensors: dict[str, dict[str, Tensor]]


class Damaged(Exception):
    """The file is torn, changed, or not what its place says; the message says which."""


def write_state(file: Path, state: State, keep_as: Path | None = None) -> None:
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, named in state.tensors.items() for name, tensor in named.items()
    }  # fmt: skip
    metadata = {"version": VERSION, "facts": json.dumps(state.facts)}
    metadata["sha256"] = _digest(metadata["facts"], tensors)
    write_tensors(file, tensors, metadata, keep_as)


def read_state(file: Path) -> State:
    """On the CPU; raises `Damaged`, or an `OSError` of the disk."""
    try:
        tensors, metadata = read_tensors(file)
    except SafetensorError as error:
        raise Damaged(str(error).splitlines()[0]) from error
    if metadata.get("version") != VERSION:
        raise Damaged(f"its version is {metadata.get('version')}, this code reads {VERSION}")
    if metadata.get("sha256") != _digest(metadata.get("facts", ""), tensors):
        raise Damaged("its checksum does not fit")
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, own = name.partition("/")
        grouped.setdefault(group, {})[own] = tensor
    return State(json.loads(metadata["facts"]), grouped)


def _digest(facts: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
