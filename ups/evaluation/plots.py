"""The figures of a trained stage. Nothing here opens a window."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ups.evaluation.metrics import diverged, mode_amplitudes, relative_error
from ups.files import write

COLOURS = {
    "surrogate": "#1668b5", "persistence": "#999999", "solver": "#d97706", "compare": "#2f9e44", "truth": "#222222",
    "error": "#c0392b",
}  # fmt: skip


def space_time(prediction: Tensor, truth: Tensor, time_step: float, title: str) -> Figure:
    """One trajectory, both (T, N): truth, prediction, and their difference on its own scale, at most the truth's."""
    limit = float(truth.abs().max())
    error = (prediction - truth).clamp(-2 * limit, 2 * limit)  # of one that blew up: what can be drawn
    prediction = truth + error
    worst = min(max(float(error.nan_to_num().abs().max()), 1e-12), limit)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (("truth", truth, limit), ("prediction", prediction, limit), ("prediction − truth", error, worst))
    for axis, (name, field, scale) in zip(axes, panels, strict=True):
        image = axis.imshow(
            field.cpu().numpy(), origin="lower", aspect="auto", cmap="RdBu_r", vmin=-scale, vmax=scale,
            extent=(0, 1, time_step / 2, (len(field) + 0.5) * time_step), interpolation="nearest",
        )  # fmt: skip
        figure.colorbar(image, ax=axis)
        axis.set(title=name, xlabel="x", facecolor="#bbbbbb")  # which shows where a value is not finite
    axes[0].set_ylabel("time since the given frame")
    figure.suptitle(title)
    return figure


def error_over_frames(curves: dict[str, Tensor], time_step: float, title: str) -> Figure:
    """nRMSE of each predictor at each frame (T,), logarithmic; what is above 10 times the truth is cut off."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, values in curves.items():
        time = np.arange(1, len(values) + 1) * time_step
        axis.semilogy(time, values.cpu().clamp(1e-12, 10), label=name, color=COLOURS[name])
    axis.set(title=title, xlabel="time since the given frame", ylabel="nRMSE")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def spectrum(prediction: Tensor, truth: Tensor, title: str) -> Figure:
    """Mean amplitude of each wave number at the last frame, of the truth, the prediction and the error; (S, T, N)."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    fields = {"truth": truth, "surrogate": prediction, "error": prediction - truth}
    for name, field in fields.items():
        amplitude = mode_amplitudes(field[:, -1]).cpu()
        style = {"linestyle": "--"} if name == "surrogate" else {}
        axis.loglog(np.arange(1, len(amplitude)), amplitude[1:], label=name, color=COLOURS[name], **style)
    axis.set(title=title, xlabel="wave number", ylabel="amplitude at the last frame")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return figure


def save_figures(
    folder: Path, name: str, prediction: Tensor, truth: Tensor, time_step: float, others: dict[str, Tensor]
) -> dict[str, Path]:  # fmt: skip
    """The three figures of (S, T, N) rollouts as `folder/NAME_*.png`. The trajectory shown is the median one."""
    folder.mkdir(parents=True, exist_ok=True)
    error = relative_error(prediction, truth).mean(1)
    shown = int(error.argsort()[len(error) // 2])
    curves = {
        label: relative_error(field, truth).mean(0) for label, field in ({"surrogate": prediction} | others).items()
    }
    lost = int(diverged(prediction, truth).sum())
    title = f"{name}, {lost} of {len(truth)} trajectories diverged" if lost else name
    figures = {
        "space_time": space_time(
            prediction[shown], truth[shown], time_step, f"{name}: median trajectory, nRMSE {float(error[shown]):.1e}"
        ),
        "error": error_over_frames(curves, time_step, title),
        "spectrum": spectrum(prediction, truth, title),
    }
    paths = {kind: folder / f"{name}_{kind}.png" for kind in figures}
    for kind, figure in figures.items():
        write(paths[kind], lambda partial, figure=figure: figure.savefig(partial, format="png", dpi=120))
    return paths
