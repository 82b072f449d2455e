"""Networks: shapes, symmetries, and what the flux form guarantees."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import conv1d

from ups.data.exact import cole_hopf, cole_hopf_step
from ups.data.initial_conditions import cell_centres, random_sinusoids
from ups.data.solver import finite_volume, spectral
from ups.data.trajectories import Trajectories
from ups.evaluation.metrics import rollout_nrmse
from ups.evaluation.rollout import rollout
from ups.models.conditioning import physical_scalars
from ups.models.conservative_step import ConservativeStep
from ups.models.corrector import Corrector, scaled_without_mean
from ups.models.dilresnet import DilatedResNet
from ups.models.fno import FNO
from ups.models.latent_operator import LatentOperator
from ups.models.layers import CircularConv
from ups.models.solver_in_the_loop import SolverInTheLoop
from ups.models.step import OpenedStep, Step
from ups.models.subcell import TO_AVERAGES, TO_POINTS, SubcellCorrection, unresolved
from ups.models.unet import UNet

NETWORKS = {
    "dilresnet": partial(DilatedResNet, width=8, kernel=5, dilations=[1, 2, 4]),
    "fno": partial(FNO, modes=12, width=8, kernel=3, blocks=2),
    "latent_operator": partial(LatentOperator, patch=4, width=16, blocks=2, heads=2, dilations=[1, 2]),
    "unet": partial(UNet, width=8, kernel=5, levels=2),
}


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """The last layers start at zero, which would make every test of a network true."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


SOLVER_IN_THE_LOOP = partial(
    SolverInTheLoop, in_channels=1, out_channels=1, condition=2, solver_gradient=True, width=8, kernel=5,
    dilations=[1, 2],
)  # fmt: skip
STEPS = {name: lambda network=network: ConservativeStep(network(1, 1, 2)) for name, network in NETWORKS.items()} | {
    solver: partial(SOLVER_IN_THE_LOOP, solver=solver) for solver in ("cole_hopf", "finite_volume")
}


@pytest.fixture(params=STEPS)
def step(request):
    return random_weights(STEPS[request.param]())


def fields(points=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, points, generator=generator) + torch.tensor([[0.0], [0.5], [-2.0]])


def close(a, b):
    """To a few roundings: random weights make large fields."""
    return (a - b).abs().max() < 3e-5 * b.abs().max()


NU = torch.tensor([0.001, 0.01, 0.1])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_untrained_step_moves_nothing_but_the_frame(name):
    u = torch.sin(2 * math.pi * (torch.arange(256) / 256 + torch.tensor([[0.0], [0.3], [0.6]])))
    assert torch.allclose(STEPS[name]()(u, NU, 0.05), u, atol=1e-6)


@torch.no_grad()
def test_a_step_of_random_weights_moves(step):
    u = fields() - fields().mean(-1, keepdim=True)
    assert not torch.allclose(step(u, NU, 0.05), u, atol=1e-2)


def test_the_weights_of_stages_that_were_trained_have_these_names():
    layer = lambda *names: [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    first, last = layer("embed.layers.0", "embed.layers.2", "lift"), layer("project")
    block = {
        "dilresnet": layer("blocks.0.modulate", "blocks.0.conv"),
        "fno": ["blocks.0.coefficients", *layer("blocks.0.modulate", "blocks.0.local")],
    }
    one = {"dilresnet": {"dilations": [1]}, "fno": {"blocks": 1}}
    for name, settings in one.items():
        assert list(NETWORKS[name](1, 1, 2, **settings).state_dict()) == first + block[name] + last


@torch.no_grad()
def test_step_conserves_the_sum_of_its_cell_averages(step):
    """Read as averages at both ends: with the map back to point values taken out."""
    u = fields() - fields().mean(-1, keepdim=True)
    step.to_points.forward = lambda averages, c, nu: averages
    averages = step.to_averages(u, physical_scalars(NU, 0.05), NU)
    assert torch.allclose(step(u, NU, 0.05).mean(-1), averages.mean(-1), atol=1e-5)


@torch.no_grad()
def test_subcell_correction_leaves_straight_lines_alone():
    correction = random_weights(SubcellCorrection(2, smooth_factor=0))
    u = torch.arange(32.0)[None] / 32
    moved = (correction(u, torch.zeros(1, 2), torch.tensor([0.001])) - u).abs()[0]
    assert moved[2:-2].max() < 1e-5 < 1e-3 < moved.max()  # the jump is where the interval closes


@torch.no_grad()
@pytest.mark.parametrize("factor", [TO_AVERAGES, TO_POINTS])
def test_a_fresh_subcell_correction_converts_smooth_fields_with_fourth_order(factor):
    def error(points: int) -> float:
        values = torch.sin(2 * math.pi * torch.arange(points).double() / points)[None]
        averages = values * math.sin(math.pi / points) / (math.pi / points)
        given, wanted = (values, averages) if factor == TO_AVERAGES else (averages, values)
        fresh = SubcellCorrection(2, factor).double()
        return float((fresh(given, torch.zeros(1, 2), torch.tensor([0.01])) - wanted).abs().max())

    assert error(64) < 1e-6 and math.log2(error(32) / error(64)) > 3.9


def test_what_is_unresolved_falls_with_the_third_power_of_the_cell_reynolds_number():
    nu = torch.tensor([0.0005, 0.001, 0.01, 0.1])
    assert unresolved(nu, 256)[:2].tolist() == [[1], [1]]  # exactly: there it changes no training
    assert torch.allclose(unresolved(nu, 256)[2:], torch.tensor([[3.61e-3], [3.61e-6]]), rtol=0.01)
    assert torch.allclose(unresolved(nu, 512)[3], unresolved(nu, 256)[3] / 8)


@torch.no_grad()
def test_a_network_however_wrong_spoils_nothing_that_is_resolved():
    u = fields()[:1].repeat(2, 1).repeat_interleave(4, -1)
    nu = torch.tensor([0.001, 0.1])
    fresh, wrong = (SOLVER_IN_THE_LOOP(solver="cole_hopf") for _ in range(2))
    change = (random_weights(wrong)(u, nu, 0.05) - fresh(u, nu, 0.05)).norm(dim=-1) / u.norm(dim=-1)
    assert change[0] > 0.1 and change[1] < 1e-4 * change[0]


@torch.no_grad()
def test_step_is_galilean_invariant(step):
    """u + c with c of two cells a step: the answer moves by two cells and gains c."""
    u, cells = fields(), 2
    c = cells / (0.05 * u.shape[-1])
    assert close(step(u + c, NU, 0.05), step(u, NU, 0.05).roll(cells, -1) + c)


@torch.no_grad()
def test_step_is_periodic(step):
    """A shift by a patch (a cell for the convolutions) commutes with the step."""
    u = fields()
    assert close(step(u.roll(4, -1), NU, 0.05), step(u, NU, 0.05).roll(4, -1))


@torch.no_grad()
def test_step_sees_nu_and_the_time_step(step):
    u = fields()
    base = step(u, NU, 0.05)
    assert (step(u, NU * 10, 0.05) - base).abs().max() > 1e-4
    assert (step(u, NU, 0.1) - base).abs().max() > 1e-4


@torch.no_grad()
def test_step_in_half_precision_is_near_the_whole(step):
    """Fluxes are differenced in float32; a training at bfloat16 must not lose the field itself."""
    for parameter in step.parameters():
        parameter.mul_(0.3)
    u = fields()
    with torch.autocast("cpu", torch.bfloat16):
        halved = step(u, NU, 0.05)
    assert halved.dtype == torch.float32 and 0 < (halved - step(u, NU, 0.05)).abs().max() < 0.1 * u.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("points", [16, 32, 128])
def test_networks_take_other_resolutions(step, points):
    assert step(fields(points), NU, 0.05).shape == (3, points)


@pytest.mark.parametrize(("points", "kernel"), [(64, 5), (64, 1), (16, 5), (15, 5), (3, 5), (1, 5)])
def test_a_circular_convolution_is_that_of_the_field_repeated(points, kernel):
    """A dilation of 8: kernel 5 reaches 16 points to each side."""
    conv = random_weights(CircularConv(2, 3, kernel, dilation=8))
    x = torch.randn(4, 2, points, generator=torch.Generator().manual_seed(1))
    turns = 1 + conv.reach // points
    repeated = conv1d(x.repeat(1, 1, 2 * turns + 1), conv.weight, conv.bias, dilation=8)
    first = turns * points - conv.reach  # what is centred on the middle field's first point
    torch.testing.assert_close(conv(x), repeated[..., first : first + points])


@pytest.mark.parametrize("nu", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("points", [64, 256])
def test_cole_hopf_step_against_the_exact_solution(nu, points):
    kappa = nu / math.pi
    u0 = random_sinusoids(2, 1024, torch.Generator().manual_seed(3))
    before, after = cole_hopf(u0, kappa, [0.3, 0.35], cell_centres(1024)).unflatten(-1, (points, -1)).mean(-1).unbind(1)
    stepped = cole_hopf_step(before.float(), torch.full((2, 1), kappa), 0.05)
    # At nu 0.001 the averages of 1024 samples are not exact, and the quadrature of a shock within a wide cell.
    bound = {(0.001, 64): 5e-3, (0.001, 256): 2e-3}.get((nu, points), 2e-4)
    assert (stepped - after).norm() / after.norm() < bound
    assert torch.allclose(stepped.mean(-1), before.float().mean(-1), atol=1e-6)


def test_cole_hopf_step_of_a_trajectory_is_the_same_beside_another():
    """Of a smaller kappa, which needs more nodes between the faces of 64 cells."""
    averages = random_sinusoids(3, 64, torch.Generator().manual_seed(3)).float().requires_grad_()
    kappa = torch.tensor([[0.001], [0.01], [0.01]]) / math.pi
    together = cole_hopf_step(averages, kappa, 0.05)
    alone = torch.cat([cole_hopf_step(averages[:1], kappa[:1], 0.05), cole_hopf_step(averages[1:], kappa[1:], 0.05)])
    assert torch.allclose(together, alone, atol=1e-7)
    gradients = [torch.autograd.grad(each.square().sum(), averages)[0] for each in (together, alone)]
    assert torch.allclose(*gradients, atol=1e-5)


@torch.no_grad()
def test_a_fresh_solver_in_the_loop_is_its_solver():
    fresh = SOLVER_IN_THE_LOOP(solver="finite_volume")
    fresh.to_averages.smooth_factor = fresh.to_points.smooth_factor = 0
    u = fields() - fields().mean(-1, keepdim=True)
    assert torch.allclose(fresh(u, NU, 0.05), finite_volume(u, NU[:, None] / math.pi, [0.0, 0.05])[:, -1], atol=1e-6)


@pytest.mark.parametrize(("nu", "bound"), [(0.01, 5e-6), (0.1, 5e-7)])
def test_a_fresh_solver_in_the_loop_is_accurate_where_the_field_is_smooth(nu, bound):
    """In float32 its quadrature would have 3e-5 at nu 0.1; with point values taken for averages, 1e-4 at nu 0.01."""
    times = [0.45 + 0.05 * k for k in range(32)]
    u0 = random_sinusoids(4, 1024, torch.Generator().manual_seed(3))
    u = spectral(u0, nu / math.pi, [0.0, *times])[:, 1:, ::4].float()
    window = Trajectories(u, torch.full((4,), nu), 0.05)
    step = SOLVER_IN_THE_LOOP(solver="cole_hopf")
    assert rollout_nrmse(rollout(lambda u, nu, dt, generator: step(u, nu, dt), window), u[:, 1:]) < bound


@pytest.mark.parametrize("solver", ["cole_hopf", "finite_volume"])
@pytest.mark.parametrize("gradient", [True, False])
def test_gradients_flow_through_the_solver_if_they_are_to(solver, gradient):
    """Two steps: what the second does to the first one's state is the solver's part, and the network's."""
    step = random_weights(SOLVER_IN_THE_LOOP(solver=solver, solver_gradient=gradient))
    step.network.project.weight.data.zero_()  # the correction is a constant: no gradient flows through the network
    averages = fields().requires_grad_()
    advanced = step.advance(averages, NU, 0.05, physical_scalars(NU, 0.05))
    advanced.square().sum().backward()
    assert (averages.grad.abs().sum() > 0) == gradient


@torch.no_grad()
def test_an_opened_step_is_the_step_between_its_readings(step):
    u = fields()
    opened = step.opened(u, NU, 0.05)
    assert torch.equal(opened.to_field(opened.after), step(u, NU, 0.05))
    assert (opened.to_state(step(u, NU, 0.05)) - opened.after).abs().max() > 1e-3  # of random weights
    torch.testing.assert_close(opened.before.sum(-1), opened.after.sum(-1), rtol=1e-5, atol=1e-4)
    step.to_points.forward = step.to_averages.forward = lambda field, c, nu: field
    opened = step.opened(u, NU, 0.05)
    assert torch.allclose(opened.to_state(opened.to_field(opened.after)), opened.after, atol=1e-6)
    speed = opened.to_field(opened.after) - opened.at_points(opened.after)
    assert torch.allclose(speed, speed[:, :1].expand_as(speed), atol=1e-6) and speed.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("solver", ["cole_hopf", "finite_volume"])
def test_a_lost_trajectory_costs_the_others_nothing(solver):
    step, u = SOLVER_IN_THE_LOOP(solver=solver), fields()
    lost = torch.stack((u[0], u[1] * 1e30, u[2] * math.inf))
    assert step(lost, NU, 0.05).isfinite().all(-1).tolist() == [True, False, False]
    assert close(step(lost, NU, 0.05)[0], step(u, NU, 0.05)[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_gradients_everywhere(name):
    network = random_weights(NETWORKS[name](in_channels=2, out_channels=3, condition=2)).train()
    network(torch.randn(2, 2, 32), torch.randn(2, 2)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width=9 must be even"):
        LatentOperator(1, 1, 2, patch=4, width=9, blocks=1, heads=3, dilations=[])


def test_a_step_without_an_inner_state_has_the_field():
    class Advected(Step):
        def forward(self, u, nu, time_step):
            return u.roll(1, -1)

    u = fields()
    opened = Advected().opened(u, NU, 0.05)
    assert torch.equal(opened.before, u) and torch.equal(opened.after, u.roll(1, -1))
    assert all(way(u) is u for way in (opened.to_field, opened.to_state, opened.at_points))


@torch.no_grad()
def test_a_correction_conserves_the_mean():
    corrector = random_weights(Corrector(NETWORKS["dilresnet"]))
    opened = OpenedStep(fields(), fields().roll(1, -1), None, None, None)
    mean, scale = corrector.moments(opened, NU, 0.05)
    assert (scale > 0).all() and mean.sum(-1).abs().max() < 1e-4
    assert scaled_without_mean(torch.randn(3, 64), scale).sum(-1).abs().max() < 1e-4
