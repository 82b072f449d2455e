"""Pictures of a trained stage's validation rollouts, in the run's folder and in every logger."""

from collections.abc import Iterable
from pathlib import Path

from ups.callbacks.callback import Callback
from ups.evaluation.plots import save_figures
from ups.evaluation.rollout import classical_solver, ensemble, persistence, rollout
from ups.loggers.logger import Logger


class Figures(Callback):
    """space_time, error, spectrum and, of several members, ensemble, for each stage at its end."""

    def __init__(self, loggers: Iterable[Logger], folder: Path):
        self.loggers = list(loggers)
        self.folder = folder / "figures"

    def on_end(self, training) -> None:
        stage, name, window = training.stage, training.settings.name, training.data.validation
        truth = window.u[:, 1:]
        members = ensemble(stage.step, window, stage.members)
        baselines = {"persistence": persistence, "solver": classical_solver}
        fields = {label: rollout(step, window) for label, step in baselines.items()}
        for kind, path in save_figures(self.folder, name, members, truth, window.time_step, fields).items():
            for logger in self.loggers:
                logger.log_figure(f"figures/{name}/{kind}", path)
