"""benchmarks/controls/error_dressing.py, the control that needs no training."""

import torch

from benchmarks.controls.error_dressing import dressed, steepness
from ups.evaluation.metrics import ensemble_metrics


def test_an_ensemble_of_the_models_own_errors_is_calibrated_at_every_slope():
    """Of a model whose errors grow with the slope and with time."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    x = torch.arange(64) / 64
    bend = torch.rand(160, 3, 1, generator=generator) * 0.9
    prediction = torch.sin(2 * torch.pi * (x + bend / 6 * torch.sin(2 * torch.pi * x)))
    truth = prediction + steepness(prediction) * torch.tensor([0.1, 1.0, 10.0])[:, None] * draw(160, 3, 64)
    members = dressed(prediction[:60], prediction[60:], truth[60:], 19, generator)
    assert members.shape == (19, 60, 3, 64)
    slopes = steepness(prediction[:60])
    for frame in range(3):
        for steep in (slopes[:, frame] < slopes.median(), slopes[:, frame] > slopes.median()):
            drawn, true = members[:, :, frame][:, steep], truth[:60, frame][steep]  # (M, points), (points,)
            scores = ensemble_metrics(drawn[..., None, None], true[..., None, None])
            assert abs(scores["coverage_90"] - 0.9) < 0.03 and abs(scores["spread_skill"] - 1) < 0.1
