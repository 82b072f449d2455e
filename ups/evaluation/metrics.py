"""PDEBench's error measures (arXiv 2210.07182, appendix B; their pdebench/models/metrics.py), in the physical field.

Shapes: S trajectories, T predicted frames, N points, M ensemble members.

On one batch these equal their function `metric_func`. Their script applies it to each batch and divides the sum by the
last batch's index; here the whole test set is one batch and every mean is a true mean. That differs where a measure is
no mean over trajectories: crmse, max_error (theirs: the largest of a batch) and frmse_*.
"""

import torch
from torch import Tensor


def field_metrics(prediction: Tensor, truth: Tensor) -> dict:
    """Both (S, T, N) -> floats, `diverged`, and the lists `nrmse_per_frame` (T) and `nrmse_per_trajectory` (S).

    PDEBench's: rmse, nrmse: means over trajectories and frames of the root mean square over points, the second relative
    to the truth's. crmse: of the conserved sum. max_error: mean over frames of the largest error of any trajectory.
    brmse: as rmse, of the two boundary cells. frmse_*: amplitude of the error's Fourier modes 0-3, 4-11 and 12-N/2.

    Ours: mae: mean absolute error, which is the CRPS of a single prediction. nrmse_worst: of the worst trajectory;
    worst_over_mean: relative to nrmse.
    energy_excess: see below.
    diverged: the number of trajectories that did, see below; where values are not finite, means are inf or nan.
    """
    error = prediction - truth
    points = error.shape[-1]
    relative = relative_error(prediction, truth)
    spectrum = mode_amplitudes(error)  # (T, N/2 + 1)
    bands = {"frmse_low": spectrum[:, :4], "frmse_mid": spectrum[:, 4:12], "frmse_high": spectrum[:, 12:]}
    return {
        "rmse": float(error.square().mean(-1).sqrt().mean()),
        "nrmse": float(relative.mean()),
        "crmse": float((error.sum(-1).square().mean(0).sqrt() / points).mean()),
        "max_error": float(error.abs().amax((0, 2)).mean()),
        "brmse": float(error[..., [0, -1]].square().mean(-1).sqrt().mean()),
        **{name: float(band.mean()) for name, band in bands.items() if band.numel()},
        "mae": float(error.abs().mean()),
        "nrmse_worst": float(relative.mean(1).max()),
        "worst_over_mean": float(relative.mean(1).max() / relative.mean()),
        "energy_excess": energy_excess(prediction, truth),
        "diverged": int(diverged(prediction, truth).sum()),
        "nrmse_per_frame": relative.mean(0).tolist(),
        "nrmse_per_trajectory": relative.mean(1).tolist(),
    }


def relative_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """(..., N) -> (...): |error| / |truth|, the nrmse of a frame."""
    return ((prediction - truth).square().mean(-1) / truth.square().mean(-1)).sqrt()


def diverged(prediction: Tensor, truth: Tensor) -> Tensor:
    """Both (S, T, N) -> (S,): whether a trajectory is not finite somewhere, or has a frame whose nrmse is above 1."""
    return (~prediction.isfinite().all(-1) | (relative_error(prediction, truth) > 1)).any(1)


def energy_excess(prediction: Tensor, truth: Tensor) -> float:
    """Both (S, T, N): the most, over trajectories and frames, by which the prediction's energy (u^2/2, mean over
    points) exceeds the truth's in the same frame, as a fraction of the truth's in the first frame here; 0 if it never
    does.
    """
    energy, true_energy = prediction.square().mean(-1) / 2, truth.square().mean(-1) / 2
    return float(((energy - true_energy) / true_energy[:, :1]).max().clamp(min=0))


def mode_amplitudes(field: Tensor) -> Tensor:
    """(S, ..., N) -> (..., N/2 + 1): root mean square over trajectories of each Fourier mode's |F| / N."""
    return torch.fft.rfft(field).abs().square().mean(0).sqrt() / field.shape[-1]


def rollout_nrmse(prediction: Tensor, truth: Tensor) -> float:
    """Both (S, T, N): mean over trajectories and frames."""
    return float(relative_error(prediction, truth).mean())


def ensemble_metrics(members: Tensor, truth: Tensor) -> dict:
    """members: (M, S, T, N), truth: (S, T, N).

    crps: the fair (unbiased in M) estimate, mean over everything, and its list `crps_per_trajectory` (S). Of one member
    it is the mean absolute error, and then there is nothing else.
    spread_skill: root of the mean variance over the root mean square error of the ensemble's mean, corrected for M;
    1 for a calibrated ensemble. spread_skill_per_frame: the same of each frame (T). Its square is the ratio of the
    means of variance_per_trajectory, which is corrected, and square_error_per_trajectory (S).
    coverage_50, coverage_90: how often the truth is inside that central interval, which needs 3 and 19 members.
    rank_histogram: how often 0 .. M members are below the truth (M + 1); all alike for a calibrated ensemble.
    """
    count = len(members)
    crps = fair_crps(members, truth).mean((1, 2))
    scores = {"crps": float(crps.mean()), "crps_per_trajectory": crps.tolist()}
    if count == 1:
        return scores
    variance, error = members.var(0) * (count + 1) / count, (members.mean(0) - truth).square()
    spread_skill = lambda *over: (variance.mean(over) / error.mean(over)).sqrt()
    scores |= {
        "spread_skill": float(spread_skill(0, 1, 2)),
        "spread_skill_per_frame": spread_skill(0, 2).tolist(),
        "variance_per_trajectory": variance.mean((1, 2)).tolist(),
        "square_error_per_trajectory": error.mean((1, 2)).tolist(),
        "rank_histogram": rank_histogram(members, truth),
    }
    ordered = members.sort(0).values
    covered = {f"coverage_{percent}": coverage(ordered, truth, percent / 100) for percent in (50, 90)}
    return scores | {name: value for name, value in covered.items() if value is not None}


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """(M, ...), (...) -> (...): mean |x - y| - half the mean |x - x'| over pairs of members, unbiased in M."""
    count = len(members)
    error = (members - truth).abs().mean(0)
    if count == 1:
        return error
    # The sum over pairs from the order statistics: the k-th smallest of M enters 2k - M + 1 times.
    weight = torch.arange(count, device=members.device, dtype=members.dtype) * 2 - (count - 1)
    pairs = members.sort(0).values * weight.view(-1, *[1] * truth.ndim)
    return error - pairs.sum(0) / (count * (count - 1))


def rank_histogram(members: Tensor, truth: Tensor) -> list[float]:
    """(M, ...), (...) -> (M + 1), which sums to 1. A truth that equals members has half of its weight at either end."""
    below, not_above = (members < truth).sum(0), (members <= truth).sum(0)
    counts = sum(torch.bincount(rank.flatten(), minlength=len(members) + 1) for rank in (below, not_above))
    return (counts / counts.sum()).tolist()


def coverage(ordered: Tensor, truth: Tensor, probability: float) -> float | None:
    """How often the truth lies in the central interval of (M, ...) sorted members; None where M is too small for it.

    The p-quantile of M members is the one at place p (M + 1): the truth, if it is one more draw, is below it with
    probability p. A member that is nan counts as the largest.
    """
    place = (1 - probability) / 2 * (len(ordered) + 1) - 1
    if place < -1e-6:
        return None
    low, high = (_between(each, max(place, 0.0)) for each in (ordered, ordered.flip(0)))
    return float(((low <= truth) & (truth <= high)).float().mean())


def _between(ordered: Tensor, place: float) -> Tensor:
    index = round(place)
    if abs(place - index) < 1e-6:
        return ordered[index]
    index = int(place)
    return torch.lerp(ordered[index], ordered[min(index + 1, len(ordered) - 1)], place - index)
