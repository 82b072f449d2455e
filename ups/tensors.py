"""Files of tensors, which no accident can change unnoticed: safetensors with a SHA-256 of all that they hold.

They go through Python's own reading and writing, so an error of the disk stays an `OSError` of its kind. The library's
own raises its `SafetensorError` for a full disk, calls a file that it may not open a missing one, and a disk that fails
under a mapped file ends the process.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ups.files import write


class Damaged(Exception):
    """The file is torn, changed, or not what its place says; the message says which."""


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep_as: Path | None = None
) -> str:  # fmt: skip
    """-> the digest. `keep_as` is where the file goes that was at `path`, once the new one is safe."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = metadata or {}
    digest = _digest(tensors, metadata)
    write(path, lambda partial: partial.write_bytes(save(tensors, metadata | {"sha256": digest})), keep_as)
    return digest


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata with the digest as `sha256`; raises `Damaged`, or an `OSError` of the disk."""
    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise Damaged(str(error).splitlines()[0]) from error
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    digest = _digest(tensors, {name: text for name, text in metadata.items() if name != "sha256"})
    if "sha256" not in metadata:
        raise Damaged("it has no checksum, as files of older versions")
    if metadata["sha256"] != digest:
        raise Damaged("its checksum does not fit")
    return tensors, metadata


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
