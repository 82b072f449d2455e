"""The bootstrap against what is known of it: how often its interval holds the truth, and what pairing is worth."""

import numpy as np
import pytest

from ups.evaluation.bootstrap import interval, paired_ratio, paired_root_ratio


def test_an_interval_holds_the_true_mean_as_often_as_it_says():
    """Of 300 samples of 60 normal values; a binomial count of 95 % is 285 +- 4."""
    samples = np.random.default_rng(0).normal(3, 2, size=(300, 60))
    intervals = np.array([interval(sample.tolist()) for sample in samples])
    held = (intervals[:, 0] < 3) & (intervals[:, 1] > 3)
    assert 275 <= held.sum() <= 294
    # A normal mean's own width, 2 * 1.96 * 2 / sqrt(60).
    assert (intervals[:, 1] - intervals[:, 0]).mean() == pytest.approx(1.012, rel=0.04)


def test_the_same_values_have_the_same_interval():
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])
    assert interval([2.0] * 5) == (2, 2)


def test_a_ratio_of_proportional_errors_is_certain():
    errors = np.random.default_rng(1).lognormal(size=40)
    assert paired_ratio(errors.tolist(), (4 * errors).tolist()) == pytest.approx((0.25, 0.25, 0.25))


def test_a_ratio_of_roots_is_the_root_of_the_ratio():
    squares, others = np.random.default_rng(1).lognormal(size=(2, 40)).tolist()
    ratio, low, high = paired_root_ratio(squares, others)
    assert (ratio**2, low**2, high**2) == pytest.approx(paired_ratio(squares, others)) and low < ratio < high


def test_pairing_narrows_the_interval_of_correlated_errors():
    """The same two sets of errors, on the same trajectories and in another order."""
    draw = np.random.default_rng(2)
    hard = draw.lognormal(size=64)  # how hard a trajectory is, for both
    a, b = (scale * hard * draw.lognormal(sigma=0.1, size=64) for scale in (1, 2))
    ratio, low, high = paired_ratio(a.tolist(), b.tolist())
    shuffled_ratio, shuffled_low, shuffled_high = paired_ratio(a.tolist(), draw.permutation(b).tolist())
    assert ratio == pytest.approx(shuffled_ratio) == pytest.approx(a.mean() / b.mean())
    assert low < 0.5 < high and low < ratio < high
    assert high - low < 0.3 * (shuffled_high - shuffled_low)


def test_what_is_not_finite_stays_visible():
    assert not np.isfinite(interval([1.0, float("nan"), 2.0])).any()
    assert np.isnan(paired_ratio([1.0, float("inf")], [1.0, 2.0])[1:]).any()
