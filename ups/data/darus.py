"""Fetches PDEBench's published files from DaRUS (DOI 10.18419/darus-2986): it goes on where it stopped, and checks."""

import hashlib
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import requests

from ups.console import Bar, console
from ups.errors import UserError, first_line, shortened
from ups.files import locked, naming

SERVER = "https://darus.uni-stuttgart.de"
PUBLISHED = {  # name -> DaRUS's number of the file, MD5
    "1D_Burgers_Sols_Nu0.001.hdf5": (268190, "44cb784d5a07aa2b1c864cabdcf625f9"),
    "1D_Burgers_Sols_Nu0.002.hdf5": (268193, "edf1cd13622d151dfde3e4e5af7a95b4"),
    "1D_Burgers_Sols_Nu0.004.hdf5": (268191, "435e1fecb8a64a0b4563bb8d09f81c33"),
    "1D_Burgers_Sols_Nu0.01.hdf5": (281363, "e6d9a4f62baf9a29121a816b919e2770"),
    "1D_Burgers_Sols_Nu0.02.hdf5": (268189, "7c8c717a3a7818145877baa57106b090"),
    "1D_Burgers_Sols_Nu0.04.hdf5": (281362, "16f4c7afaf8c16238be157e54c9297c7"),
    "1D_Burgers_Sols_Nu0.1.hdf5": (268185, "660ba1008d3843bf4e28d2895eb607ce"),
    "1D_Burgers_Sols_Nu0.2.hdf5": (268187, "01d9333254dff2f3cad090b61f5cf695"),
    "1D_Burgers_Sols_Nu0.4.hdf5": (268192, "58327a6107e8f9defb5075677cc42533"),
    "1D_Burgers_Sols_Nu1.0.hdf5": (281365, "9021eba35332d127306f11ef84c1a60f"),
    "1D_Burgers_Sols_Nu2.0.hdf5": (281364, "70fe0c24d9313e70f6059e5212bdb3d7"),
    "1D_Burgers_Sols_Nu4.0.hdf5": (268188, "8af7f70166c00ffad377c80fa477d81f"),
}
SIZE = 8_232_968_312  # bytes, of each
SIGNATURE = b"\x89HDF\r\n\x1a\n"  # with which HDF5 begins
BLOCK = 1 << 20  # bytes; of one that breaks off nothing is kept
TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1, 4, 16, 64)  # seconds before each repeat of a request that brought nothing
PASSING = (408, 425, 429)  # of a server that is there and asks to come again


def fetch(path: Path) -> None:
    """The published file of this name, at `path`; `UserError` if it cannot be had. One process fetches, others wait.

    What has come stays in a hidden file beside `path`, which the next try takes up, and which gets the name once it is
    whole and has the published MD5.
    """
    number, md5 = PUBLISHED[path.name]
    with locked(path):
        if path.exists():
            return
        partial = path.with_name(f".{path.name}.part")
        _complete(partial, f"{SERVER}/api/access/datafile/{number}", path.name)
        found = _md5(partial)
        if found != md5:
            partial.unlink()
            raise UserError(f"{path}: what {SERVER} sent has the MD5 {found}, not {md5}: it is thrown away, try again")
        with naming(path):
            os.replace(partial, path)
    console.print(f"fetched {path} ({SIZE / 1e9:.1f} GB)")


def _complete(partial: Path, url: str, title: str) -> None:
    """Ask for the rest, again where the connection breaks."""
    pauses = iter(PAUSES)
    while (had := _size(partial)) < SIZE:
        try:
            _append(partial, url, title)
        except requests.RequestException as error:
            status = None if error.response is None else error.response.status_code
            if status is not None and status < 500 and status not in PASSING:
                raise UserError(f"{url}: {status} {error.response.reason}; what came is kept") from error
            if _size(partial) > had:
                pauses = iter(PAUSES)
            reason = shortened(first_line(error), 100)
            pause = next(pauses, None)
            if pause is None:
                raise UserError(f"{url} ({reason}): the same command goes on where it stopped") from error
            console.print(f"{title}: {reason}; again in {pause} s")
            time.sleep(pause)


def _append(partial: Path, url: str, title: str) -> None:
    """Raises a `RequestException` if the file is not whole after it."""
    had = _size(partial)
    free = shutil.disk_usage(partial.parent).free
    if free < SIZE - had:
        lacks = f"{free / 1e9:.1f} GB free, {title} needs {(SIZE - had) / 1e9:.1f} GB"
        raise UserError(f"{partial.parent} has {lacks}: make room, or choose another folder in dataset.path")
    ask = {"Range": f"bytes={had}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=ask, stream=True, timeout=TIMEOUT) as answer, ExitStack() as opened:
        answer.raise_for_status()
        skip = 0 if answer.status_code == requests.codes.partial_content else had  # some send all of it again
        with naming(partial):
            file = opened.enter_context(open(partial, "ab"))
        bar = opened.enter_context(Bar(f"{title}, MB", SIZE >> 20, had >> 20))
        for block in answer.iter_content(BLOCK):  # whose errors are the connection's
            if had == 0 and file.tell() == 0 and not block.startswith(SIGNATURE):
                raise requests.RequestException("the answer is no HDF5 file")
            with naming(partial):
                file.write(block[skip:])
            skip = max(skip - len(block), 0)
            bar.update(file.tell() >> 20)
    if _size(partial) < SIZE:
        raise requests.ConnectionError("the answer ended early")


def _md5(file: Path) -> str:
    """Of what is safe on the disk."""
    digest = hashlib.md5(usedforsecurity=False)
    with naming(file), open(file, "rb+") as content:
        os.fsync(content.fileno())
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
