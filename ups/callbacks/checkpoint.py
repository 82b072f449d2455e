"""Saves the state to resume from."""

from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback

if TYPE_CHECKING:
    from ups.training.loop import Training


class Checkpoint(Callback):
    """Every `every` steps, at the last, and when the loop is told to stop."""

    def __init__(self, every: int):
        self.every = every

    def on_checkpoint(self, training: "Training", stopping: bool) -> None:
        if stopping or training.step % self.every == 0 or training.step == training.settings.steps:
            training.entry.save_state(training.state())
