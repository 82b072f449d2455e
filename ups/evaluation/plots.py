"""The figures of a trained stage. Nothing here opens a window."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ups.evaluation.metrics import diverged, mode_amplitudes, rank_histogram, relative_error
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


def ensemble_panels(members: Tensor, truth: Tensor, time_step: float, title: str) -> Figure:
    """(M, S, T, N), (S, T, N): one trajectory's last frame, its steepest place; all trajectories' spread and ranks."""
    count, mean = len(members), members.mean(0)
    shown = median_trajectory(mean, truth)
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    ((bands, shock), (time, ranks)) = figure.subplots(2, 2)

    last, last_truth, center = members[:, shown, -1].cpu(), truth[shown, -1].cpu(), mean[shown, -1].cpu()
    ordered = (last - center).sort(0).values
    x = np.arange(len(center)) / len(center)
    for outside, alpha in {0: 0.25, count // 4: 0.45}.items():  # of few members the two are one
        if outside < count - 1 - outside:
            inside = (count - 1 - 2 * outside) / (count + 1)
            bands.fill_between(
                x, ordered[outside], ordered[count - 1 - outside], alpha=alpha, color=COLOURS["surrogate"], linewidth=0,
                label=f"{inside:.0%} interval",
            )  # fmt: skip
    bands.plot(x, last_truth - center, color=COLOURS["truth"], linewidth=0.9, label="truth")
    bands.set(title="median trajectory, last frame", xlabel="x", ylabel="u − mean of the members")

    steepest = int((last_truth.roll(-1) - last_truth).argmin())
    near = [(steepest + offset) % len(center) for offset in range(-5, 7)]
    place = (np.arange(steepest - 5, steepest + 7)) / len(center)
    for k, member in enumerate(last):
        label = "members" if k == 0 else None
        shock.plot(place, member[near], color=COLOURS["surrogate"], linewidth=0.8, alpha=0.6, label=label)
    shock.plot(place, last_truth[near], "o-", color=COLOURS["truth"], markersize=3, linewidth=1, label="truth")
    shock.set(title="the same at its steepest shock", xlabel="x", ylabel="u")

    seconds = np.arange(1, truth.shape[1] + 1) * time_step
    spread = (members.var(0).mean((0, 2)) * (count + 1) / count).sqrt().cpu()
    skill = (mean - truth).square().mean((0, 2)).sqrt().cpu()
    time.plot(seconds, spread, color=COLOURS["surrogate"], label="spread of the members")
    time.plot(seconds, skill, color=COLOURS["error"], label="error of their mean")
    time.set(title="root mean square over all trajectories", xlabel="time since the given frame", ylabel="u")
    time.set_ylim(bottom=0)

    ranks.bar(range(count + 1), rank_histogram(members, truth), width=0.9, color=COLOURS["surrogate"])
    ranks.axhline(1 / (count + 1), color=COLOURS["truth"], linestyle="--", linewidth=1, label="calibrated")
    ranks.xaxis.get_major_locator().set_params(integer=True)
    ranks.set(title="rank of the truth", xlabel="members below the truth", ylabel="frequency")
    for axis in (bands, shock, time, ranks):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    return figure


def median_trajectory(prediction: Tensor, truth: Tensor) -> int:
    error = relative_error(prediction, truth).mean(1)
    return int(error.argsort()[len(error) // 2])


def save_figures(
    folder: Path, name: str, members: Tensor, truth: Tensor, time_step: float, others: dict[str, Tensor]
) -> None:
    """`figures_of` as `folder/NAME_*.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, figure in figures_of(name, members, truth, time_step, others).items():
        save = lambda partial, figure=figure: figure.savefig(partial, format="png", dpi=120)
        write(folder / f"{name}_{kind}.png", save)


def figures_of(
    name: str, members: Tensor, truth: Tensor, time_step: float, others: dict[str, Tensor]
) -> dict[str, Figure]:
    """Of (M, S, T, N) rollouts and their mean; of one trajectory it is the median one.

    truth and others: (S, T, N). One member is a deterministic prediction, and has no figure of an ensemble.
    """
    prediction = members.mean(0)
    shown = median_trajectory(prediction, truth)
    error = float(relative_error(prediction[shown], truth[shown]).mean())
    curves = {
        label: relative_error(field, truth).mean(0) for label, field in ({"surrogate": prediction} | others).items()
    }
    lost = int(diverged(prediction, truth).sum())
    title = f"{name}, {lost} of {len(truth)} trajectories diverged" if lost else name
    figures = {
        "space_time": space_time(
            prediction[shown], truth[shown], time_step, f"{name}: median trajectory, nRMSE {error:.1e}"
        ),
        "error": error_over_frames(curves, time_step, title),
        "spectrum": spectrum(prediction, truth, title),
    }
    if len(members) > 1:
        figures["ensemble"] = ensemble_panels(members, truth, time_step, f"{title}: {len(members)} members")
    return figures
