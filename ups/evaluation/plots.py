"""The figures of a trained stage. Nothing here opens a window."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ups.evaluation.metrics import field_metrics
from ups.files import write

COLOURS = {"surrogate": "#1668b5", "persistence": "#999999", "solver": "#d97706", "truth": "#222222"}


def space_time(prediction: Tensor, truth: Tensor, time_step: float, title: str) -> Figure:
    """One trajectory, both (T, N): truth, prediction, and their difference on its own scale."""
    error = prediction - truth
    limit, worst = float(truth.abs().max()), max(float(error.abs().max()), 1e-12)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (("truth", truth, limit), ("prediction", prediction, limit), ("prediction − truth", error, worst))
    for axis, (name, field, scale) in zip(axes, panels, strict=True):
        image = axis.imshow(
            field.cpu().numpy(), origin="lower", aspect="auto", cmap="RdBu_r", vmin=-scale, vmax=scale,
            extent=(0, 1, time_step / 2, (len(field) + 0.5) * time_step), interpolation="nearest",
        )  # fmt: skip
        figure.colorbar(image, ax=axis)
        axis.set(title=name, xlabel="x")
    axes[0].set_ylabel("time since the given frame")
    figure.suptitle(title)
    return figure


def error_over_frames(curves: dict[str, list[float]], time_step: float, title: str) -> Figure:
    """nRMSE of each predictor at each frame, logarithmic."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, values in curves.items():
        time = np.arange(1, len(values) + 1) * time_step
        axis.semilogy(time, np.maximum(values, 1e-12), label=name, color=COLOURS.get(name))
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
        last = np.asarray(field[:, -1].cpu())
        amplitude = np.sqrt((np.abs(np.fft.rfft(last)) ** 2).mean(0)) / last.shape[-1]
        style = {"linestyle": "--"} if name == "surrogate" else {}
        colour = COLOURS.get(name, "#c0392b")
        axis.loglog(np.arange(1, len(amplitude)), amplitude[1:], label=name, color=colour, **style)
    axis.set(title=title, xlabel="wave number", ylabel="amplitude at the last frame")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return figure


def save_figures(
    folder: Path, name: str, prediction: Tensor, truth: Tensor, time_step: float, baselines: dict[str, Tensor]
) -> dict[str, Path]:  # fmt: skip
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
    paths = {kind: folder / f"{name}_{kind}.png" for kind in figures}
    for kind, figure in figures.items():
        write(paths[kind], lambda partial, figure=figure: figure.savefig(partial, format="png", dpi=120))
    return paths
