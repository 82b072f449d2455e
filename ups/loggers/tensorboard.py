"""TensorBoard: each scalar over its own step metric, in the run's folder."""

import json
import os
import struct
import time
from pathlib import Path

from ups.files import naming
from ups.loggers.logger import Logger

RGBA = 4  # TensorBoard's number of it


class TensorBoardLogger(Logger):
    """`folder` is the run's, `config` what the page of texts shows.

    Events are written at once, record by record: the writer that comes with TensorBoard has a thread, which tells of a
    full disk by a traceback. Here that ends the run with one line, as metrics.csv does.
    """

    def __init__(self, folder: Path, config: dict):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import text

        self.event, self.summary = Event, Summary
        self.step_metrics: dict[str, str] = {}  # prefix of names -> theirs
        self.path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with naming(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self.records = RecordWriter(open(self.path, "wb", buffering=0))  # noqa: SIM115 (closed by `finish`)
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))  # what an earlier start wrote is replaced
        self._write(summary=text("config", f"```\n{json.dumps(config, indent=2)}\n```"))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        if step_metric:
            self.step_metrics[name.removesuffix("*")] = step_metric

    def log(self, row: dict[str, float]) -> None:
        for prefix, axis in self.step_metrics.items():
            for name, value in row.items():
                if name.startswith(prefix) and name != axis:
                    self._add(name, step=int(row[axis]), simple_value=value)

    def log_figure(self, name: str, path: Path) -> None:
        """The PNG as it is."""
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        image = self.summary.Image(width=width, height=height, colorspace=RGBA, encoded_image_string=content)
        self._add(name, step=0, image=image)

    def log_checkpoint(self, name: str, files: dict[str, Path]) -> None:
        """Checkpoints lie in the store."""

    def finish(self, exit_code: int) -> None:
        self.records.close()

    def _add(self, name: str, step: int, **value) -> None:
        self._write(step=step, summary=self.summary(value=[self.summary.Value(tag=name, **value)]))

    def _write(self, **fields) -> None:
        with naming(self.path):
            self.records.write(self.event(wall_time=time.time(), **fields).SerializeToString())
