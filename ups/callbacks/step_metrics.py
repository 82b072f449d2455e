"""The only callback that logs points and scores, and the rule by which charts have points in them.

For each stage S, before its first point: `training/S/step` is defined, then `training/S/*` and `evaluation/S/*` with it
as their step metric. Each point is one row that holds its step metric. The loggers' own step is never given: it only
ever rises, so a second stage that starts at 0 would lose its points.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback
from ups.loggers.logger import Logger

if TYPE_CHECKING:
    from ups.training.loop import Training
    from ups.training.store import Entry


class StepMetrics(Callback):
    """A row at the first step, every `every` steps, and at each evaluation."""

    def __init__(self, loggers: Iterable[Logger], every: int):
        self.loggers = list(loggers)
        self.every = every

    def on_found(self, entry: "Entry") -> None:
        self._replay(entry.identity.name, entry.rows())
        self._log_scores(entry)

    def on_start(self, training: "Training") -> None:
        self._replay(training.settings.name, training.rows)
        self._start_lap(training)

    def on_step(self, training: "Training") -> None:
        step, settings = training.step, training.settings
        # A step that evaluates is logged by `on_evaluate`, with its scores in the same row.
        if settings.validates_at(step):
            return
        if step % self.every == 0 or step == 1:
            self._log(training, {})

    def on_evaluate(self, training: "Training", scores: dict[str, float]) -> None:
        self._log(training, {f"evaluation/{training.settings.name}/{key}": value for key, value in scores.items()})

    def on_trained(self, training: "Training") -> None:
        self._log_scores(training.entry)

    def _log_scores(self, entry: "Entry") -> None:
        """Those of the weights that are kept, which the last point of the charts need not be of."""
        name, metrics = entry.identity.name, entry.result()["metrics"]
        scores = {f"score/{name}/{split}/{key}": value for split, of in metrics.items() for key, value in of.items()}
        for logger in self.loggers:
            logger.log_scores(scores)

    def _replay(self, name: str, rows: list[dict[str, float]]) -> None:
        for logger in self.loggers:
            logger.define_metric(f"training/{name}/step")
            for glob in (f"training/{name}/*", f"evaluation/{name}/*"):
                logger.define_metric(glob, step_metric=f"training/{name}/step")
            for row in rows:
                logger.log(row)

    def _log(self, training: "Training", scores: dict[str, float]) -> None:
        prefix = f"training/{training.settings.name}"
        row = {f"{prefix}/{key}": float(value) for key, value in training.values.items()}
        steps, seconds = training.step - self.lap_step, training.seconds - self.lap_seconds
        if steps:  # none between a resume and a validation that it begins with
            row[f"{prefix}/samples_per_second"] = steps * training.settings.batch_size / max(seconds, 1e-9)
        row |= scores | {f"{prefix}/step": training.step}
        training.rows.append(row)
        for logger in self.loggers:
            logger.log(row)
        self._start_lap(training)

    def _start_lap(self, training: "Training") -> None:
        self.lap_step, self.lap_seconds = training.step, training.seconds
