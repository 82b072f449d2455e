"""Uncertainty of a mean over trajectories: the percentile bootstrap (Efron 1979), 95 %, with a fixed seed.

Trajectories are drawn with replacement, as many as there are. With few, the interval is a little too narrow (a nominal
95 % covers about 91 % with 16), and with one it has no width.

Shapes: P predictors, S trajectories.
"""

import math

import torch
from torch import Tensor

RESAMPLES, AT_ONCE = 10_000, 100  # at once: memory for 100 times the trajectories
LOW, HIGH = 0.025, 0.975


def interval(values: list[float]) -> tuple[float, float]:
    """Of the mean of S values."""
    (means,) = resampled_means(torch.tensor([values], dtype=torch.float64))
    return _percentiles(means)


def paired_ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """(ratio, low, high): mean(a) / mean(b), errors of two predictors on the same S trajectories in the same order.

    A resample draws the same trajectories for both, so what is hard for both cancels.
    """
    errors = torch.tensor([a, b], dtype=torch.float64)
    means_a, means_b = resampled_means(errors)
    mean_a, mean_b = errors.mean(-1)
    return float(mean_a / mean_b), *_percentiles(means_a / means_b)


def paired_root_ratio(squares: list[float], others: list[float]) -> tuple[float, float, float]:
    """The same of two root mean squares, of the squares themselves; such are spread and skill."""
    ratio, low, high = paired_ratio(squares, others)
    return math.sqrt(ratio), math.sqrt(low), math.sqrt(high)


def resampled_means(values: Tensor) -> Tensor:
    """(P, S) -> (P, RESAMPLES); every predictor's mean over the same drawn trajectories."""
    generator, count = torch.Generator().manual_seed(0), values.shape[-1]
    draws = (torch.randint(count, (AT_ONCE, count), generator=generator) for _ in range(RESAMPLES // AT_ONCE))
    return torch.cat([values[:, draw].mean(-1) for draw in draws], -1)


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([LOW, HIGH], dtype=torch.float64)).tolist()
    return low, high
