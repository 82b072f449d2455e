"""The symmetries are the equation's: the solver takes the image of a field to the image of its solution."""

import math

import pytest
import torch
from conftest import train_config
from test_data import initial, nrmse

from ups.config.check import check
from ups.config.compose import plain
from ups.data.batches import batch_at
from ups.data.solver import finite_volume, spectral
from ups.data.symmetries import FARTHEST, galilean, reflect, translate
from ups.data.trajectories import Trajectories

TIME_STEP = 0.05
CELLS = torch.tensor([2, -3, 1])
SYMMETRIES = {
    "translation": lambda u: translate(u, 17 * CELLS),
    "reflection": reflect,
    "galilean": lambda u: galilean(u, CELLS, TIME_STEP),
}
WRONG = {
    "one sign alone": lambda u: u.flip(-1),
    "the frame is not moved": lambda u: u + (galilean(u, CELLS, TIME_STEP) - u)[:, :1].mean(-1, keepdim=True),
    "the frame is moved backward": lambda u: -galilean(-u, CELLS, TIME_STEP),
    "the speed is not added": lambda u: galilean(u, CELLS, TIME_STEP) - galilean(0 * u, CELLS, TIME_STEP),
    "another time step": lambda u: galilean(u, CELLS, 2 * TIME_STEP),
}


def departure(image, method, kappa, points) -> float:
    """Of the image of a solution from the solution that starts at the image."""
    times = [TIME_STEP * frame for frame in range(6)]
    start = spectral(initial(points), 0.01, [0.0, 0.1])[:, -1]  # smooth: no scheme moves a jump of one cell exactly
    expected = image(method(start, kappa, times))
    return nrmse(method(expected[:, 0], kappa, times), expected)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_the_spectral_solver_has_the_symmetry(name):
    assert departure(SYMMETRIES[name], spectral, 0.01, 256) < (1e-6 if name == "galilean" else 1e-12)


@pytest.mark.parametrize(("name", "bound"), [("translation", 1e-12), ("reflection", 1e-12), ("galilean", 1.2e-3)])
def test_finite_volumes_have_the_symmetry(name, bound):
    """The upwind flux, and so its error, depends on the frame's speed: 9e-4 for the Galilean shift."""
    assert departure(SYMMETRIES[name], finite_volume, 0.002 / math.pi, 256) < bound


def test_the_departure_of_finite_volumes_from_the_galilean_shift_is_their_error():
    coarse, fine = (departure(SYMMETRIES["galilean"], finite_volume, 0.002 / math.pi, points) for points in (128, 512))
    assert coarse > 10 * fine


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_symmetry_is_seen(name):
    assert departure(WRONG[name], spectral, 0.01, 256) > 0.02
    assert departure(WRONG[name], finite_volume, 0.01, 256) > 0.02


def test_batches_have_the_symmetries_that_are_asked_for():
    """On one trajectory whose frame k is sin(x - k cells): each image tells what was done to it."""
    x = torch.arange(32) / 32
    data = Trajectories(torch.sin(2 * math.pi * x).expand(1, 3, 32).contiguous(), torch.ones(1), TIME_STEP)
    images = {name: batch_at(data, 64, 2, 0, 0, [name] if name else []).u for name in ("", *SYMMETRIES)}
    u = images[""]
    assert torch.equal(u, data.u.expand(64, 3, 32))
    reflected = torch.tensor([torch.equal(image, reflect(u)[0]) for image in images["reflection"]])
    kept = torch.tensor([torch.equal(image, u[0]) for image in images["reflection"]])
    assert (reflected ^ kept).all() and 16 < reflected.sum() < 48
    peaks = images["translation"].argmax(-1)
    assert len(peaks[:, 0].unique()) > 20 and (peaks == peaks[:, :1]).all()
    speeds = images["galilean"].mean(-1) * 32 * TIME_STEP  # in cells a step
    assert set(speeds.round().int().flatten().tolist()) == set(range(-FARTHEST, FARTHEST + 1))
    moved = images["galilean"].argmax(-1)
    assert torch.equal((moved[:, 2] - moved[:, 0]) % 32, 2 * speeds[:, 0].round().long() % 32)


@pytest.mark.parametrize("names", [[], list(SYMMETRIES)])
def test_every_subset_is_a_valid_setting_of_a_stage(names):
    cfg = train_config(f"stage.symmetries=[{','.join(names)}]", "stage=diffusion_residual")
    check(cfg)
    assert plain(cfg.stage)["symmetries"] == names and plain(cfg.stage.requires)["symmetries"] == ["reflection"]
