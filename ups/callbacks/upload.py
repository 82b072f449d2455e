"""Hands each stage of the chain to the loggers; also one that was found, for what is trained on it to be of use
elsewhere. What a tracker has already, it does not keep twice.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback
from ups.loggers.logger import Logger

if TYPE_CHECKING:
    from ups.training.loop import Training
    from ups.training.store import Entry


class Upload(Callback):
    def __init__(self, loggers: Iterable[Logger]):
        self.loggers = list(loggers)

    def on_found(self, entry: "Entry") -> None:
        self._log(entry)

    def on_trained(self, training: "Training") -> None:
        self._log(training.entry)

    def _log(self, entry: "Entry") -> None:
        for logger in self.loggers:
            logger.log_checkpoint(entry.artifact, entry.files())
