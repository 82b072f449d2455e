"""PDEBench's error measures (arXiv 2210.07182, appendix B), in the physical field.

Shapes: S trajectories, T predicted frames, N points, M ensemble members. One thing differs from PDEBench's script: it
divides the sum over its batches by the last batch's index; here every mean is a true mean.
"""

import torch
from torch import Tensor


def field_metrics(prediction: Tensor, truth: Tensor) -> dict:
    """Both (S, T, N) -> floats, and `nrmse_per_frame`, a list of T floats.

    rmse, nrmse: means over trajectories and frames of the root mean square over points, the second relative to the
    truth's. crmse: of the conserved sum. max_error: mean over frames of the largest error of any trajectory.
    brmse: of the two boundary cells. frmse_*: amplitude of the error's Fourier modes 0-3, 4-11 and 12-N/2.
    """
    error = prediction - truth
    points = error.shape[-1]
    rms = error.square().mean(-1).sqrt()
    relative = rms / truth.square().mean(-1).sqrt()
    spectrum = torch.fft.rfft(error).abs().square().mean(0).sqrt() / points  # (T, N/2 + 1)
    return {
        "rmse": float(rms.mean()),
        "nrmse": float(relative.mean()),
        "crmse": float((error.sum(-1).square().mean(0).sqrt() / points).mean()),
        "max_error": float(error.abs().amax((0, 2)).mean()),
        "brmse": float(error[..., [0, -1]].square().mean((0, 2)).sqrt().mean()),
        "frmse_low": float(spectrum[:, :4].mean()),
        "frmse_mid": float(spectrum[:, 4:12].mean()),
        "frmse_high": float(spectrum[:, 12:].mean()),
        "nrmse_worst": float(relative.mean(1).max()),
        "nrmse_per_frame": relative.mean(0).tolist(),
    }


def rollout_nrmse(prediction: Tensor, truth: Tensor) -> float:
    """Both (S, T, N): mean over trajectories and frames of |error| / |truth|."""
    return float(((prediction - truth).square().mean(-1) / truth.square().mean(-1)).sqrt().mean())


def ensemble_metrics(members: Tensor, truth: Tensor) -> dict[str, float]:
    """members: (M, S, T, N), truth: (S, T, N).

    crps: the fair (unbiased in M) estimate, mean over everything; for one member it is the mean absolute error.
    spread_skill: root of the mean variance over the root mean square error of the ensemble's mean, corrected for M;
    1 for a calibrated ensemble.
    """
    count = len(members)
    accuracy = (members - truth).abs().mean()
    if count == 1:
        return {"members": 1, "crps": float(accuracy)}
    ordered = members.sort(0).values
    # sum over pairs |a - b| from the order statistics: the k-th smallest of M enters 2k - M + 1 times.
    weight = torch.arange(count, device=members.device, dtype=members.dtype) * 2 - (count - 1)
    pairs = (ordered * weight[:, None, None, None]).sum(0).mean() / (count * (count - 1))
    variance = members.var(0).mean()
    skill = (members.mean(0) - truth).square().mean()
    return {
        "members": count,
        "crps": float(accuracy - pairs),
        "spread_skill": float((variance * (count + 1) / count / skill).sqrt()),
    }
