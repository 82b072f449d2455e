"""metrics.csv, which every run writes: a column for each metric, a row for each point."""

import csv
from pathlib import Path

from ups.files import naming, read_csv, write, write_csv
from ups.loggers.logger import Logger


class CSVLogger(Logger):
    """Appends and flushes row by row. New columns (a stage's first row, its first evaluation) rewrite the file."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        self.file = None
        write(path, Path.touch)  # in place of an earlier run's

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        """A file of columns needs none."""

    def log(self, row: dict[str, float]) -> None:
        new = [name for name in row if name not in self.columns]
        if new:
            self._add_columns(new)
        with naming(self.path):
            csv.DictWriter(self.file, self.columns).writerow(row)
            self.file.flush()

    def log_figure(self, name: str, path: Path) -> None:
        """Figures lie in the run's folder already."""

    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        """Checkpoints lie in the store."""

    def finish(self, exit_code: int) -> None:
        if self.file:
            with naming(self.path):  # it tries again what a full disk refused
                self.file.close()

    def _add_columns(self, new: list[str]) -> None:
        rows = []
        if self.file:
            self.finish(0)
            rows = read_csv(self.path)
        self.columns += new
        write_csv(self.path, self.columns, rows)
        self.file = open(self.path, "a", newline="")  # noqa: SIM115 (closed by `finish`)
