"""Hands each stage that was trained to the loggers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback
from ups.loggers.logger import Logger

if TYPE_CHECKING:
    from ups.training.loop import Training


class Upload(Callback):
    def __init__(self, loggers: Iterable[Logger]):
        self.loggers = list(loggers)

    def on_trained(self, training: "Training") -> None:
        entry = training.entry
        for logger in self.loggers:
            logger.log_checkpoint(entry.artifact, entry.files())
