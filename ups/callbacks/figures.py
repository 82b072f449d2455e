"""Pictures of a trained stage's validation rollouts, in the run's folder and in every logger."""

from collections.abc import Iterable
from pathlib import Path

from ups.callbacks.callback import Callback
from ups.evaluation.metrics import field_metrics
from ups.evaluation.plots import error_over_frames, space_time, spectrum
from ups.evaluation.rollout import classical_solver, ensemble, persistence, rollout
from ups.loggers.logger import Logger


class Figures(Callback):
    """space_time, error and spectrum, for each stage at its end."""

    def __init__(self, loggers: Iterable[Logger], folder: Path):
        self.loggers = list(loggers)
        self.folder = folder / "figures"

    def on_end(self, training) -> None:
        stage, name, window = training.stage, training.settings.name, training.data.validation
        truth = window.u[:, 1:]
        prediction = ensemble(stage.step, window, stage.members).mean(0)
        baselines = {"persistence": persistence, "solver": classical_solver}
        save_figures(self.folder, name, prediction, truth, window.time_step, {
            label: rollout(step, window) for label, step in baselines.items()
        }, self.loggers)  # fmt: skip


def save_figures(folder: Path, name: str, prediction, truth, time_step: float, baselines: dict, loggers=()) -> None:
    """The three figures of (S, T, N) rollouts as `folder/NAME_*.png`. The trajectory shown is the median one."""
    folder.mkdir(parents=True, exist_ok=True)
    error = ((prediction - truth).square().mean(-1) / truth.square().mean(-1)).sqrt().mean(-1)
    shown = int(error.argsort()[len(error) // 2])
    curves = {
        label: field_metrics(field, truth)["nrmse_per_frame"]
        for label, field in ({"surrogate": prediction} | baselines).items()
    }
    figures = {
        "space_time": space_time(
            prediction[shown], truth[shown], time_step, f"{name}: median trajectory, nRMSE {float(error[shown]):.1e}"
        ),
        "error": error_over_frames(curves, time_step, name),
        "spectrum": spectrum(prediction, truth, name),
    }
    for kind, figure in figures.items():
        path = folder / f"{name}_{kind}.png"
        figure.savefig(path, dpi=120)
        for logger in loggers:
            logger.log_figure(f"figures/{name}/{kind}", path)
