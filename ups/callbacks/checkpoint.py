"""Saves the state to resume from."""

from ups.callbacks.callback import Callback


class Checkpoint(Callback):
    """Every `every` steps, at the last, and when the loop is told to stop."""

    def __init__(self, every: int):
        self.every = every

    def on_checkpoint(self, training, stopping: bool) -> None:
        if stopping or training.step % self.every == 0 or training.step == training.settings.steps:
            training.entry.save_state(training.state())
