"""Faults of the machine: each becomes a one-line error that names the file and the remedy.

Anything else is a bug, and stays a traceback.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_ROOM, _LEAVE, _DISK, _WAY, _LOCKS, _HANDLES, _MEMORY = (
    "make room there", "make it writable", "see to that disk", "move away what is in the way",
    "use a file system that has locks", "raise the limit (ulimit -n 1024)", "free memory",
)  # fmt: skip
MENDS = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: _ROOM,
    errno.EROFS: _LEAVE, errno.EACCES: _LEAVE, errno.EPERM: _LEAVE,
    errno.EIO: _DISK, errno.ESTALE: _DISK, errno.ENODEV: _DISK, errno.ENXIO: _DISK,
    errno.ENOTCONN: _DISK, errno.EBUSY: _DISK,
    errno.ENOTDIR: _WAY, errno.EISDIR: _WAY, errno.EEXIST: _WAY, errno.ENOTEMPTY: _WAY,
    errno.ENAMETOOLONG: "choose shorter names", errno.ELOOP: "mend that link",
    errno.ENOSYS: _LOCKS, errno.ENOLCK: _LOCKS, errno.EOPNOTSUPP: _LOCKS,
    errno.EMFILE: _HANDLES, errno.ENFILE: _HANDLES, errno.ENOMEM: _MEMORY,
}  # fmt: skip
OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the process, not of a file's place

MEMORY_SIGNS = (  # in PyTorch's errors, most of which are plain `RuntimeError`s
    "DefaultCPUAllocator", "CUDA error: out of memory", "Storage size calculation overflowed",
)  # fmt: skip


def fault_line(error: BaseException, folders: Mapping[str, Path]) -> str | None:
    """The line about a fault of the machine; None for anything else. `folders`: by the key that sets each."""
    if is_out_of_memory(error):
        return "out of memory: lower what the config asks for, and start again; what was saved is kept"
    for each in _with_causes(error):
        number = _number(each)
        if number in OWN_LIMITS:
            return f"{_at(each)}{os.strerror(number)}: {MENDS[number]} and start again; what was saved is kept"
    if not isinstance(error, OSError):
        return None
    file = _file(error)
    mend = MENDS.get(error.errno)
    if error.errno == errno.ENOENT and file and not file.parent.exists():
        mend = "its folder is gone: bring it back"
    if not mend:
        return None
    elsewhere = "".join(f", or set {key}=FOLDER" for key in _keys_of(file, folders))
    return f"{_at(error)}{os.strerror(error.errno)}: {mend}{elsewhere}, and start again; what was saved is kept"


def is_out_of_memory(error: BaseException) -> bool:
    """Python's, NumPy's, and PyTorch's on the CPU and on a GPU; also a size beyond all numbers."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY_SIGNS)


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, ImportError):  # of a compiled module: the system's reason stands in its text
        return next((number for number in OWN_LIMITS if os.strerror(number) in str(error)), None)
    return None


def _file(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None


def _at(error: BaseException) -> str:
    return f"{file}: " if (file := _file(error)) else ""


def _keys_of(file: Path | None, folders: Mapping[str, Path]) -> list[str]:
    """The key of the innermost folder that holds the file; all of them where no file is known."""
    if file is None:
        return list(folders)
    absolute = {key: folder.absolute() for key, folder in folders.items()}
    holding = [key for key, folder in absolute.items() if file.absolute().is_relative_to(folder)]
    return [max(holding, key=lambda key: len(absolute[key].parts))] if holding else []


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
