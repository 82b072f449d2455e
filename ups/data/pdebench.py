"""`dataset=pdebench_burgers`: the published HDF5 files (DOI 10.18419/darus-2986), read with strides.

A file has `tensor` (S, T, N) float32, `x-coordinate` (N,), `t-coordinate` (T or T + 1,) and the attribute `Nu`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ups.data.darus import PUBLISHED, fetch
from ups.data.trajectories import Dataset, Splits, Trajectories
from ups.errors import UserError, first_line
from ups.memory import Lever, Memory

CPU = torch.device("cpu")
ROWS = 64  # trajectories read at a time: the reader's memory beside the strided data (53 MB at full resolution)


class PDEBenchBurgers(Dataset):
    """The first `test` trajectories of each file are the test set, the next `validation` and `train` follow.

    `download`: fetch a published file that `path` names and that is not there, before it is first read. It has a
    default because a stage's identity, of which evaluate.py builds the dataset again, lacks it.
    """

    def __init__(
        self, path: str, test: int, validation: int, train: int | None, space_stride: int, time_stride: int,
        shifts: int, initial_frame: int, rollout_steps: int, download: bool = False,
    ):  # fmt: skip
        self.files, self.download = _files_of(Path(path), download), download
        self.test, self.validation, self.train = test, validation, train
        self.space_stride, self.time_stride, self.shifts = space_stride, time_stride, shifts
        self.initial_frame, self.rollout_steps = initial_frame, rollout_steps
        if shifts > space_stride:
            raise UserError(f"dataset.shifts={shifts}: at most dataset.space_stride={space_stride}")

    def load(self, cache: Path) -> Splits:
        parts = {"test": [], "validation": [], "train": []}
        for path in self.files:
            with self._open(path) as file:
                first_train = self.test + self.validation
                last_train = file.samples if self.train is None else first_train + self.train
                if not first_train < last_train <= file.samples:
                    raise UserError(
                        f"{path} has {file.samples} trajectories: dataset.test={self.test}, "
                        f"dataset.validation={self.validation} and dataset.train={self.train} want "
                        f"{max(last_train, first_train + 1)}; choose smaller ones"
                    )
                read = lambda first, last, shifts, file=file: self._read(file, first, last, shifts)
                for split, *rows in (
                    ("test", 0, self.test, 1), ("validation", self.test, first_train, 1),
                    ("train", first_train, last_train, self.shifts),
                ):  # fmt: skip
                    lever = Lever(f"dataset.{split}", rows[1] - rows[0])
                    with Memory(f"reading {path}", lambda lever=lever: [lever], CPU):
                        parts[split].append(read(*rows))
        return Splits(**{split: _joined(each) for split, each in parts.items()})

    def load_test(self, cache: Path) -> Trajectories:
        """The test set alone; a file that holds fewer trajectories is a test set as a whole."""
        parts = []
        for path in self.files:
            with self._open(path) as file:
                parts.append(self._read(file, 0, min(self.test, file.samples), 1))
        return _joined(parts)

    def example(self) -> Trajectories | None:
        """The first of the first file, if that is there."""
        if not self.files[0].exists():
            return None
        with self._open(self.files[0]) as file:
            trajectory = self._read(file, 0, 1, 1)
            if (frames := trajectory.u.shape[1]) < self.initial_frame + 2:
                raise UserError(
                    f"dataset.initial_frame={self.initial_frame}: no frame is left to predict of the {frames} that "
                    f"dataset.time_stride={self.time_stride} leaves of the {file.frames} in {file.path}; lower either"
                )
            return trajectory

    def _open(self, path: Path) -> "_File":
        if self.download and not path.exists():
            fetch(path)
        file = _File(path)
        if file.points % self.space_stride:
            raise UserError(f"dataset.space_stride={self.space_stride} must divide the {file.points} points of {path}")
        return file

    def _read(self, file: "_File", first: int, last: int, shifts: int) -> Trajectories:
        frames = range(0, file.frames, self.time_stride)
        points = file.points // self.space_stride
        u = np.empty((shifts, last - first, len(frames), points), np.float32)
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            rows = slice(start - first, stop - first)
            for shift in range(shifts):
                strided = np.s_[start:stop, :: self.time_stride, shift :: self.space_stride]
                u[shift, rows] = file.read(strided)
        finite = np.isfinite(u).all(axis=(0, 2, 3))
        if not finite.all():
            bad = first + int(np.argmin(finite))
            raise UserError(f"{file.path}: trajectory {bad} holds NaN or infinite values; the file is damaged")
        zero = (~u.any(axis=3)).any(axis=(0, 2))  # no error is relative to it; HDF5 reads so what was never written
        if zero.any():
            bad = first + int(np.argmax(zero))
            raise UserError(f"{file.path}: trajectory {bad} holds a field of zeros; the file is damaged or incomplete")
        nu = torch.full((shifts * (last - first),), file.nu)
        return Trajectories(torch.from_numpy(u).flatten(0, 1), nu, file.time_step * self.time_stride)


class _File:
    """An open file whose layout has been checked: everything wrong with it is one `UserError`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            open(path, "rb").close()  # the system's own reason, before HDF5's
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}") from error
        self.handle = self._ask(lambda: h5py.File(path, "r"))
        try:
            self._check()
        except BaseException:
            self.handle.close()
            raise

    def _check(self) -> None:
        present = self._ask(lambda: list(self.handle))
        missing = [key for key in ("tensor", "x-coordinate", "t-coordinate") if key not in present]
        if missing:
            raise UserError(f"{self.path} lacks {', '.join(missing)}: it has {', '.join(present)[:80] or 'nothing'}")
        self.tensor, x, t = (self._dataset(key) for key in ("tensor", "x-coordinate", "t-coordinate"))
        if self.tensor.ndim != 3 or self.tensor.dtype.kind != "f":
            raise UserError(
                f"{self.path}: `tensor` must be (samples, frames, points) of floats, "
                f"it is {self.tensor.shape} of {self.tensor.dtype}"
            )
        self.samples, self.frames, self.points = self.tensor.shape
        if x.shape != (self.points,) or t.ndim != 1 or not self.frames <= len(t) <= self.frames + 1:
            raise UserError(
                f"{self.path}: coordinates of shapes {x.shape} and {t.shape} do not fit `tensor` {self.tensor.shape}"
            )
        if min(self.samples, self.frames - 1, self.points - 1) < 1:
            raise UserError(f"{self.path}: `tensor` {self.tensor.shape} holds no rollout")
        if not self._ask(lambda: "Nu" in self.handle.attrs):
            raise UserError(f"{self.path} lacks the attribute Nu, the viscosity times pi")
        nu = np.asarray(self._ask(lambda: self.handle.attrs["Nu"]))
        if nu.dtype.kind not in "fiu" or nu.size != 1:
            raise UserError(f"{self.path}: the attribute Nu must be one number, it is {nu.shape} of {nu.dtype}")
        self.nu = float(nu.item())
        x, t = self._coordinate("x-coordinate", x), self._coordinate("t-coordinate", t)
        self.time_step = t[1] - t[0]
        length = (x[-1] - x[0]) * self.points / (self.points - 1)
        if not (0 < self.nu < np.inf and self.time_step > 0 and abs(length - 1) < 1e-3):
            raise UserError(
                f"{self.path}: Nu={self.nu:g}, time step {self.time_step:g}, length {length:g}: "
                "the first two must be positive, the length 1"
            )
        for key, steps in (("x-coordinate", np.diff(x)), ("t-coordinate", np.diff(t[: self.frames]))):
            if not np.allclose(steps, steps.mean(), rtol=1e-2, atol=0):
                raise UserError(f"{self.path}: `{key}` does not rise in equal steps")

    def read(self, selection: tuple) -> np.ndarray:
        """Of `tensor`, as float32; what float32 cannot hold becomes infinite and is refused by the caller."""
        with np.errstate(over="ignore"):
            # Its size is checked: that there is no memory for it is no damage.
            values = self._ask(lambda: self.tensor[selection], unreadable=())
            return values.astype(np.float32)

    def _dataset(self, key: str) -> h5py.Dataset:
        node = self._ask(lambda: self.handle[key])
        if not isinstance(node, h5py.Dataset) or self._ask(lambda: node.is_virtual or node.external or not node.shape):
            raise UserError(f"{self.path}: `{key}` must be an array that the file itself holds")
        self._ask(lambda: node.dtype)
        return node

    def _coordinate(self, key: str, node: h5py.Dataset) -> np.ndarray:
        values = self._ask(lambda: node[:])
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise UserError(f"{self.path}: `{key}` must be finite numbers, it is {values.dtype}")
        return values.astype(np.float64)

    def _ask(self, question: Callable[[], Any], unreadable: tuple = (MemoryError,)) -> Any:
        """A damaged file makes h5py raise almost anything; only its own calls stand inside."""
        try:
            return question()
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, *unreadable) as error:
            told = f"{self.path} is not a readable HDF5 file ({first_line(error)[:120]})"
            raise UserError(f"{told}; remove it and download it again") from error

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_) -> None:
        self.handle.close()


def _files_of(path: Path, download: bool) -> list[Path]:
    """Each exists, or can be fetched."""
    if path.is_dir():
        files = sorted([*path.glob("[!.]*.hdf5"), *path.glob("[!.]*.h5")])  # macOS puts a ._NAME beside a copied file
        if not files:
            mend = "; dataset.download=true wants FOLDER/NAME of a published one" if download else ""
            raise UserError(f"dataset.path={path}: the folder holds no .hdf5 file{mend}")
        return files
    if not path.exists() and not (download and path.name in PUBLISHED):
        mend = ""
        if download:
            mend = f"; dataset.download=true fetches what is published, {', '.join(PUBLISHED)}"
        elif path.name in PUBLISHED:
            mend = "; with dataset=pdebench_burgers dataset.download=true it is fetched (8.2 GB)"
        raise UserError(f"dataset.path={path}: no such file or folder{mend}")
    return [path]


def _joined(parts: list[Trajectories]) -> Trajectories:
    layouts = {(part.u.shape[1:], round(part.time_step, 6)) for part in parts}
    if len(layouts) > 1:
        raise UserError(f"dataset.path: the files differ in frames, points or time step: {sorted(map(str, layouts))}")
    if len(parts) == 1:  # no second copy of one file's data, which is most of a machine's memory
        return parts[0]
    return Trajectories(
        torch.cat([part.u for part in parts]), torch.cat([part.nu for part in parts]), parts[0].time_step
    )
