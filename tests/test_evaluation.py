"""Metrics against their public definitions, computed another way on a case small enough to do by hand."""

import math

import numpy as np
import pytest
import torch

from ups.data.trajectories import Trajectories
from ups.errors import UserError
from ups.evaluation.metrics import ensemble_metrics, field_metrics, rollout_nrmse
from ups.evaluation.rollout import ensemble, one_step, rollout


def test_metrics_by_hand():
    """Two trajectories, one frame, four points: truth (2, 2, 2, 2) and (1, -1, 1, -1); errors (1, 0, 0, 0) and
    (0, 2, 0, -2)."""
    truth = torch.tensor([[[2.0, 2, 2, 2]], [[1.0, -1, 1, -1]]])
    error = torch.tensor([[[1.0, 0, 0, 0]], [[0.0, 2, 0, -2]]])
    got = field_metrics(truth + error, truth)
    assert got["rmse"] == pytest.approx((0.5 + math.sqrt(2)) / 2)
    assert got["nrmse"] == pytest.approx((0.25 + math.sqrt(2)) / 2)
    assert got["nrmse_worst"] == pytest.approx(math.sqrt(2))
    assert got["crmse"] == pytest.approx(math.sqrt(0.5) / 4)
    assert got["max_error"] == pytest.approx(2)
    assert got["brmse"] == pytest.approx(math.sqrt((1 + 0 + 0 + 4) / 4))
    # |F| of the first: 1, 1, 1; of the second: 0, |2 (-i) - 2 (i)| = 4, 0.
    low = (math.sqrt(0.5) + math.sqrt((1 + 16) / 2) + math.sqrt(0.5)) / 3 / 4
    assert got["frmse_low"] == pytest.approx(low)


def test_frequency_bands():
    x = torch.arange(64) / 64
    for wave, band in ((2, "low"), (6, "mid"), (20, "high")):
        error = torch.cos(2 * math.pi * wave * x)[None, None]
        got = field_metrics(torch.ones(1, 1, 64) + error, torch.ones(1, 1, 64))
        assert max(("low", "mid", "high"), key=lambda name: got[f"frmse_{name}"]) == band


def test_crps_equals_its_definition():
    """Fair CRPS: mean |x - y| - sum over pairs |x - x'| / (2 M (M - 1))."""
    generator = torch.Generator().manual_seed(0)
    members, truth = torch.randn(5, 2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    pairs = (members[:, None] - members[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    expected = ((members - truth).abs().mean(0) - pairs).mean()
    assert ensemble_metrics(members, truth)["crps"] == pytest.approx(float(expected), rel=1e-5)


def test_spread_skill_of_a_calibrated_ensemble_is_one():
    draw = np.random.default_rng(0).normal(size=(9, 40, 10, 64)).astype("float32")
    calibrated = torch.from_numpy(draw)
    assert ensemble_metrics(calibrated[:8], calibrated[8])["spread_skill"] == pytest.approx(1, abs=0.02)
    assert ensemble_metrics(0.5 * calibrated[:8], calibrated[8])["spread_skill"] < 0.6


def window():
    u = torch.arange(6.0)[None, :, None] + torch.zeros(3, 6, 4)
    return Trajectories(u, torch.full((3,), 0.01), 0.05)


def test_rollout_feeds_back_and_one_step_does_not():
    double = lambda u, nu, time_step, generator: 2 * u + 1
    assert rollout(double, window().window(1, 3))[0, :, 0].tolist() == [3, 7, 15]
    assert one_step(double, window().window(1, 3))[0, :, 0].tolist() == [3, 5, 7]
    truth = window().u[:, 1:4]
    assert rollout_nrmse(truth, truth) == 0


def test_members_have_their_own_noise_and_batches_do_not_matter():
    noisy = lambda u, nu, time_step, generator: u + torch.randn(u.shape, generator=generator)
    members = ensemble(noisy, window(), 2)
    assert (members[0] - members[1]).abs().max() > 0.1
    assert torch.equal(members, ensemble(noisy, window(), 2))


def test_a_window_beyond_the_data_is_refused():
    with pytest.raises(UserError, match="rollout_steps=9 from initial_frame=1"):
        window().window(1, 9)
