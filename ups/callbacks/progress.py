"""A bar with the loss, the last score and the time left; plain lines where there is no terminal."""

from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback
from ups.console import Bar

if TYPE_CHECKING:
    from ups.training.loop import Training


class Progress(Callback):
    """Updates every `every` steps."""

    bar: Bar | None = None

    def __init__(self, every: int):
        self.every = every

    def on_start(self, training: "Training") -> None:
        self.score, self.first = "", training.step
        self.first_seconds = training.seconds
        self.bar = Bar(training.settings.name, training.settings.steps, training.step)

    def on_step(self, training: "Training") -> None:
        if training.step % self.every == 0 and training.step < training.settings.steps:
            self._show(training)

    def on_evaluate(self, training: "Training", scores: dict[str, float]) -> None:
        self.score = f"  rollout nRMSE {scores['rollout_nrmse']:.2e}"
        if "crps" in scores:
            self.score += f"  CRPS {scores['crps']:.2e}"
        if training.step == training.settings.steps:  # the last step is shown with its score
            self._show(training)

    def _show(self, training: "Training") -> None:
        rate = (training.step - self.first) / max(training.seconds - self.first_seconds, 1e-9)
        loss = float(training.values["loss"])
        self.bar.update(training.step, f"loss {loss:.2e}  {rate:.3g} steps/s{self.score}")

    def on_end(self, training: "Training") -> None:
        self.bar.close()

    def on_exception(self, training: "Training", error: BaseException) -> None:
        if self.bar:
            self.bar.close()
