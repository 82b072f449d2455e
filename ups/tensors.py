"""safetensors files, through Python's own reading and writing: an error of the disk stays an `OSError` of its kind.

The library's own raises its `SafetensorError` for a full disk, calls a file that it may not open a missing one, and a
disk that fails under a mapped file ends the process.
"""

import json
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from ups.files import write


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, keep_as: Path | None = None
) -> None:  # fmt: skip
    write(path, lambda partial: partial.write_bytes(save(tensors, metadata)), keep_as)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; `SafetensorError` for a file that is none."""
    content = path.read_bytes()
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__", {})
