"""Pictures of a trained stage's validation rollouts: in the store, in the run's folder and in every logger."""

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ups.callbacks.callback import Callback
from ups.evaluation.plots import save_figures
from ups.evaluation.rollout import classical_solver, ensemble, persistence, rollout
from ups.files import write
from ups.loggers.logger import Logger

if TYPE_CHECKING:
    from ups.training.loop import Training
    from ups.training.store import Entry


class Figures(Callback):
    """space_time, error, spectrum and, of several members, ensemble, for each stage at its end, or as it was found."""

    def __init__(self, loggers: Iterable[Logger], folder: Path):
        self.loggers = list(loggers)
        self.folder = folder / "figures"

    def on_found(self, entry: "Entry") -> None:
        self._show(entry)

    def on_end(self, training: "Training") -> None:
        stage, window = training.stage, training.data.validation
        truth = window.u[:, 1:]
        members = ensemble(stage.step, window, stage.members)
        baselines = {"persistence": persistence, "solver": classical_solver}
        fields = {label: rollout(step, window) for label, step in baselines.items()}
        save_figures(training.entry.figures, training.settings.name, members, truth, window.time_step, fields)
        self._show(training.entry)

    def _show(self, entry: "Entry") -> None:
        name = entry.identity.name
        for kept in sorted(entry.figures.glob("*.png")):
            self.folder.mkdir(exist_ok=True)
            path = self.folder / kept.name
            write(path, partial(shutil.copyfile, kept))
            for logger in self.loggers:
                logger.log_figure(f"figures/{name}/{kept.stem.removeprefix(f'{name}_')}", path)
