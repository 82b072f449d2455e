"""TensorBoard: each scalar over its own step metric, in the run's folder."""

import json
from pathlib import Path

from matplotlib.image import imread

from ups.files import naming
from ups.loggers.logger import Logger

FLUSH_SECONDS = 10  # that the page is behind the training, and that a kill may cost it


class TensorBoardLogger(Logger):
    """`folder` is the run's, `config` what the page of texts shows. A full disk ends the run, as metrics.csv's does."""

    def __init__(self, folder: Path, config: dict):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        self.step_metrics: dict[str, str] = {}  # prefix of names -> theirs
        with naming(self.folder):
            self.writer = SummaryWriter(str(self.folder), flush_secs=FLUSH_SECONDS)
            self.writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        if step_metric:
            self.step_metrics[name.removesuffix("*")] = step_metric

    def log(self, row: dict[str, float]) -> None:
        with naming(self.folder):
            for name, value in row.items():
                axis = next(axis for prefix, axis in self.step_metrics.items() if name.startswith(prefix))
                if name != axis:
                    self.writer.add_scalar(name, value, row[axis])

    def log_figure(self, name: str, path: Path) -> None:
        with naming(self.folder):
            self.writer.add_image(name, imread(path), dataformats="HWC")

    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        """Checkpoints lie in the store."""

    def finish(self, exit_code: int) -> None:
        with naming(self.folder):
            self.writer.close()
