"""The stages: their losses, their steps, and what they refuse."""

import copy
import itertools
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, train_config
from small_training import RUNTIME, STAGES, STUDENT, diffusion, disturb, operator, student, training

from ups.data.batches import batch_at
from ups.data.symmetries import galilean, rolled
from ups.errors import UserError
from ups.models.corrector import UNIT
from ups.models.step import called_networks
from ups.stages import operator as stages_operator
from ups.stages.consistency_distill import ConsistencyDistill, end_of_path, midpoint_step
from ups.stages.operator import weights_by_nu
from ups.stages.sampled_correction import TAIL
from ups.stages.stage import relative_l2
from ups.training.build import build_chain
from ups.training.identity import identity_of
from ups.training.loop import train
from ups.training.runtime import check_compiler, compile_each


def test_an_exact_prediction_has_a_finite_gradient():
    u = torch.full((2, 8), 0.5, requires_grad=True)
    relative_l2(u, u.detach().clone()).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_an_error_far_below_the_floor_hardly_counts():
    truth = torch.full((1, 8), 0.5)
    pulls = []
    for floor in (1e-3, 1e-6):
        u = (truth + 1e-4).requires_grad_()
        relative_l2(u, truth, floor).sum().backward()
        pulls.append(float(u.grad.norm()))
    assert pulls[0] < 0.15 * pulls[1]


def test_unrolled_loss_sees_the_later_steps(data):
    batch = batch_at(data.train, 8, 3, 0, 0)
    loss, terms = operator(unroll=3).loss(batch)
    assert loss.item() > 1.2 * terms["one_step_loss"].item()


def test_input_noise_changes_the_inputs_alone(data, monkeypatch):
    batch, stage = batch_at(data.train, 8, 1, 0, 0), operator(noise=(0.1, 0.2))
    seen, compared = [], []
    opened = stage.opened
    monkeypatch.setattr(stage, "opened", lambda u, *rest: seen.append(u) or opened(u, *rest))
    compare = lambda u, truth, floor: compared.append(truth) or relative_l2(u, truth, floor)
    monkeypatch.setattr(stages_operator, "relative_l2", compare)
    stage.loss(batch)
    noise = (seen[0] - batch.u[:, 0]).std(-1) / batch.u[:, 0].std(-1)
    assert noise.min() > 0.08 and noise.max() < 0.25 and noise.std() > 0.005
    assert torch.equal(compared[0], batch.u[:, 1])


def test_a_loss_of_several_nu_weighs_them_alike(data):
    """Errors that go as nu^1.5 count alike; of one nu they are left as they are."""
    batch = batch_at(data.train, 8, 1, 0, 0)
    assert torch.equal(weights_by_nu(torch.rand(8) + 0.1, batch), torch.ones(8))
    several = replace(batch, nu=torch.tensor([0.001, 0.01, 0.1, 1.0]).repeat(2))
    weighted = weights_by_nu(several.nu**1.5, several) * several.nu**1.5
    torch.testing.assert_close(weighted, weighted[:1].expand(8), rtol=1e-3, atol=0)


def test_the_round_trip_is_part_of_the_loss(data):
    batch = batch_at(data.train, 8, 1, 0, 0)
    with torch.no_grad():
        stages = [operator(round_trip=weight) for weight in (0.0, 1.0)]
        for stage in stages:
            stage.network.to_points.weight[-1].bias.fill_(0.3)  # the way back does not take it out again
        (without, terms), (within, _) = (stage.loss(batch) for stage in stages)
    assert terms["round_trip_loss"] > 0
    torch.testing.assert_close(within, without + terms["round_trip_loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", [*STAGES, "noisy operator", "operator of two nu"])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(name, data):
    stage = operator(unroll=2, noise=(0.1, 0.2)) if name == "noisy operator" else STAGES.get(name, operator)()
    disturb(stage.network)
    factor = 1 + 9 * (torch.arange(len(data.train)) % 2) * (name == "operator of two nu")
    train = replace(data.train, nu=data.train.nu * factor)
    means = []  # of the parts, in the order in which the loss asks for them

    def gradient(take):
        batch = batch_at(train, 8, stage.frames_per_sample - 1, 0, 0)
        loss, terms = stage.loss(take(batch))
        trained = [parameter for parameter in stage.network.parameters() if parameter.requires_grad]
        gradients = lambda value: torch.autograd.grad(value, trained, retain_graph=True, materialize_grads=True)
        return [
            torch.cat([part.flatten() for part in (value[None], *gradients(value))]).detach()
            for value in (loss, *terms.values())
        ]

    def noted(own):
        means[-1].append(own)
        return own

    for index in range(2):
        means.append([])
        gradient(lambda batch, index=index: batch.part(index, 2, noted))
    of_both = [torch.stack(pair).mean() for pair in zip(*means, strict=True)]
    parts = []
    for index in range(2):
        given = iter(of_both)
        parts.append(gradient(lambda batch, index=index, given=given: batch.part(index, 2, lambda own: next(given))))
    for whole, first, second in zip(gradient(lambda batch: batch), *parts, strict=True):
        assert ((first + second) / 2 - whole).norm() < 3e-4 * whole.norm()  # the rollout amplifies its rounding
        assert (first - second).norm() > 3e-2 * whole.norm()


def standard_normal(z, t):
    """The velocity of a flow whose data are one standard normal: a path from n is at n sqrt((1 - t)^2 + t^2)."""
    return z * (2 * t - 1) / ((1 - t) ** 2 + t**2)


def test_midpoint_steps_follow_the_flow():
    noise, times = torch.randn(5, 7, dtype=torch.float64), torch.linspace(0, 1, 21, dtype=torch.float64)
    z = noise
    for t, later in itertools.pairwise(times):
        z = midpoint_step(standard_normal, z, t.expand(5, 1), later.expand(5, 1))
        assert torch.allclose(z, noise * ((1 - later) ** 2 + later**2).sqrt(), atol=5e-3)


def test_a_student_answers_the_end_of_a_path():
    z, noise, asked = torch.randn(3, 64), torch.randn(3, 64), []
    velocity = lambda z, t: asked.append((z, t)) or z.square() + 1
    assert torch.equal(end_of_path(velocity, z, torch.ones(3, 1)), z)
    first = noise + noise.square() + 1
    assert torch.allclose(student().sample(velocity, lambda: noise), first)
    half_way = (first + noise) / 2
    second = half_way + (half_way.square() + 1) / 2
    assert torch.allclose(student(evaluations_per_step=2).sample(velocity, lambda: noise), second)
    assert [float(t[0]) for _, t in asked] == [1, 0, 0, 0.5]


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_the_velocity_that_is_learned_is_the_one_that_is_followed(evaluations, data):
    """If every path ends at the batch's own residual its velocity is known; it costs nothing, and leads there."""
    stage, batch = diffusion(), batch_at(data.train, 8, 1, 0, 0)
    with torch.no_grad():
        opened = stage.operator.opened(batch.u[:, 0], batch.nu, batch.time_step)
        mean, scale = stage.network.moments(opened, batch.nu, batch.time_step)
    z1 = ((opened.to_state(batch.u[:, 1]) - opened.after - mean) / scale).clamp(-TAIL, TAIL).detach()
    velocity = lambda z, t: (z1 - z) / (1 - t)
    stage.network.velocity = lambda z, t, *context: velocity(z, t)
    stage.evaluations_per_step = evaluations
    assert z1.abs().mean() > 0.1 and stage.loss(batch)[1]["velocity_loss"] < 1e-6
    torch.testing.assert_close(stage.sample(velocity, lambda: torch.randn(z1.shape)), z1, rtol=1e-4, atol=1e-4)


def residual_of(stage, batch):
    """What a stage's operator leaves of the truth, in its own state: (opened, residual)."""
    with torch.no_grad():
        opened = stage.networks()[0].opened(batch.u[:, 0], batch.nu, batch.time_step)
        return opened, opened.to_state(batch.u[:, 1]) - opened.after


def test_a_step_adds_the_mean_and_the_sample_that_the_loss_taught(data):
    stage, batch = diffusion(), batch_at(data.train, 8, 1, 0, 0)
    disturb(stage.operator.network)
    opened, residual = residual_of(stage, batch)
    without_sum = residual - residual.mean(-1, keepdim=True)
    mean, scale = 0.5 * without_sum, residual.abs().amax(-1, keepdim=True).expand_as(residual)
    z1 = (residual - mean) / scale
    stage.network.moments = lambda *_: (mean, scale)
    stage.network.velocity = lambda z, t, *_: (z1 - z) / (1 - t)
    assert stage.loss(batch)[1]["velocity_loss"] < 1e-6
    stepped = stage.step(batch.u[:, 0], batch.nu, batch.time_step, torch.Generator().manual_seed(0))
    torch.testing.assert_close(stepped, opened.to_field(opened.after + without_sum), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["diffusion_residual", "consistency_distill"])
def test_the_path_that_is_learned_ends_at_the_residual_without_its_mean(name, data):
    """Where it passes at t is t z1 and noise: by least squares, z1 once."""
    stage, batch = STAGES[name](), batch_at(data.train, 64, 2, 0, 0)
    batch = replace(batch, u=batch.u[:, : stage.frames_per_sample])
    corrector = stage.networks()[1]
    disturb(stage.networks()[0])
    _, residual = residual_of(stage, batch)
    scale = residual.abs().amax(-1, keepdim=True).expand_as(residual) / 5
    corrector.moments = lambda opened, *_: tuple(
        each.repeat(len(opened.after) // len(batch.u), 1) for each in (residual / 2, scale)
    )
    passed = []
    velocity = corrector.velocity
    corrector.velocity = lambda z, t, *rest: passed.append((z, t)) or velocity(z, t, *rest)
    stage.loss(batch)
    z, t = passed[-1]
    end = t * residual / 2 / scale
    assert float((z * end).sum() / end.square().sum()) == pytest.approx(1, abs=0.2)


def test_the_scale_that_is_learned_is_laplaces(data):
    stage, batch = diffusion(), batch_at(data.train, 8, 1, 0, 0)
    _, left = residual_of(stage, batch)
    likeliest, losses = 2**0.5 * left.abs().mean(), []
    for factor in (0.9, 1.0, 1.1):
        stage.network.moments = lambda *_, factor=factor: (0 * left, (factor * likeliest).expand_as(left))
        losses.append(float(stage.loss(batch)[1]["scale_loss"]))
    assert losses[1] < min(losses[0], losses[2])


def test_half_precision_is_for_the_correction_alone(data):
    """What the operator gets wrong is below it."""
    stage, batch = diffusion(), batch_at(data.train, 8, 1, 0, 0)
    disturb(*stage.networks())
    step = lambda: stage.step(batch.u[:, 0], batch.nu, batch.time_step, torch.Generator().manual_seed(0))
    whole = step()
    with torch.autocast("cpu", torch.bfloat16):
        half = step()
    assert 0 < (half - whole).abs().max() < UNIT * whole.std()


def test_members_of_the_diffusion_differ(data):
    stage, window = diffusion(), data.validation
    step = lambda seed: stage.step(window.u[:, 0], window.nu, 0.05, torch.Generator().manual_seed(seed))
    assert not torch.equal(step(0), step(1)) and torch.equal(step(0), step(0))


@pytest.mark.parametrize("evaluations", [1, 2])
def test_student_needs_as_many_evaluations_as_it_says(evaluations, data):
    stage, window, calls = student(evaluations_per_step=evaluations), data.validation, []
    _, corrector = stage.networks()
    original = corrector.velocity
    corrector.velocity = lambda *arguments: calls.append(1) or original(*arguments)
    stage.step(window.u[:, 0], window.nu, 0.05, torch.Generator().manual_seed(0))
    assert len(calls) == evaluations


def test_every_evaluation_of_a_step_counts():
    """Data of one standard normal, whose path ends at the noise it began with."""
    stage, noise, asked, errors = diffusion(), torch.randn(4, 32, dtype=torch.float64), [], {}
    velocity = lambda z, t: asked.append(float(t[0])) or standard_normal(z, t)
    for stage.evaluations_per_step in range(1, 11):
        asked.clear()
        errors[stage.evaluations_per_step] = float((stage.sample(velocity, lambda: noise) - noise).abs().mean())
        assert len(asked) == stage.evaluations_per_step and asked[0] == 0 and max(asked) < 1
    assert errors[1] == pytest.approx(float(noise.abs().mean()))  # the mean, zero
    assert all(errors[2 * count] < 0.3 * errors[count] for count in range(1, 6)), errors  # second order: a quarter


def test_a_sampled_step_is_made_in_the_frame_of_the_operator(data):
    """In a frame that moves by whole cells a time step everything is the same."""
    stage = diffusion()
    disturb(stage.network, stage.operator.network)
    cells = torch.tensor([1, 2, -3, 0])
    batch = batch_at(data.train, 4, 1, 0, 0)
    moving = replace(batch_at(data.train, 4, 1, 0, 0), u=galilean(batch.u, cells, batch.time_step))
    torch.testing.assert_close(stage.loss(moving), stage.loss(batch), rtol=1e-4, atol=1e-4)

    def sampled(u):
        noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
        return stage.sampled_step(u, batch.nu, batch.time_step, lambda: noise)

    (field, scale), (moved_field, moved_scale) = sampled(batch.u[:, 0]), sampled(moving.u[:, 0])
    speed = (cells / (batch.time_step * field.shape[-1]))[:, None]
    torch.testing.assert_close(moved_field, rolled(field, cells) + speed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved_scale, rolled(scale, cells), rtol=1e-3, atol=1e-6)


def test_the_student_is_held_to_the_truth_of_its_whole_rollout(data):
    stage, batch = student(), batch_at(data.train, 8, 2, 0, 0)
    changed = batch.u.clone()
    changed[:, 2] += 0.1
    _, terms = stage.loss(batch)
    _, others = stage.loss(replace(batch_at(data.train, 8, 2, 0, 0), u=changed))
    assert terms["consistency_loss"] == others["consistency_loss"]
    assert others["rollout_loss"] > 1.1 * terms["rollout_loss"]


def test_the_students_gradient_goes_through_its_rollout(data):
    stage, given = student(), []
    step = stage.sampled_step
    stage.sampled_step = lambda u, *rest: given.append(u.requires_grad) or step(u, *rest)
    stage.loss(batch_at(data.train, 4, 2, 0, 0))
    assert given == [False, True]


def test_a_zero_corrector_does_not_minimise_the_distillation(data, tmp_path):
    """Answering zero for every noise, the collapse of the system before, costs more than the teacher's own answer."""
    teacher = diffusion()
    train(training(teacher, data, tmp_path, steps=200, validations=1), [], RUNTIME)
    stage = ConsistencyDistill(teacher, **STUDENT)
    batches = lambda: [batch_at(data.train, 32, 2, 5, step) for step in range(8)]
    of_distillation = lambda: sum(stage.loss(batch)[1]["consistency_loss"].item() for batch in batches())
    own = of_distillation()
    # Zero wherever the student can answer it: at the path's end its answer is the point itself.
    stage.network["corrector"].velocity = lambda z, t, *context: -z / (1 - t).clamp(min=1e-6)
    assert own < 0.9 * of_distillation()


def test_the_student_leaves_its_teacher_alone(data, tmp_path):
    stage = student()
    names = ("operator", "corrector")
    weights = lambda: [copy.deepcopy(part.state_dict()) for part in stage.teacher.networks()]
    before = weights()
    train(training(stage, data, tmp_path), [], RUNTIME)
    for name, old, now in zip(names, before, weights(), strict=True):
        own = stage.network[name].state_dict()
        assert all(torch.equal(now[key], old[key]) for key in old)
        assert any(not torch.equal(own[key], old[key]) for key in old)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_every_variant_of_a_network_is_compiled(name, data, tmp_path):
    stage = STAGES[name]()
    counters = torch._dynamo.utils.counters  # imported here: it takes seconds
    counters.clear()
    compile_each(called_networks(stage.network), backend="eager")
    train(training(stage, data, tmp_path, steps=4), [], RUNTIME)
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 0


@pytest.mark.parametrize("model", [file.stem for file in sorted((ROOT / "conf" / "model").glob("*.yaml"))])
def test_a_student_trains_every_model_through_its_rollout(model, data):
    """Of an operator that stands still only the last layer has a gradient, so all are disturbed."""
    cfg = train_config("stage=consistency_distill", f"model={model}", "stage.unroll=2")
    stage = build_chain(identity_of(cfg), RUNTIME)[-1]
    disturb(stage.network)
    batch = batch_at(data.train, 4, 2, 0, 0)
    loss, _ = stage.loss(replace(batch, nu=2 * batch.nu))  # of a nu of 0.01 the networks are told zero
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in stage.network.named_parameters():
        if name != "operator.network.project.bias":  # the same flux through each face moves nothing
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", STAGES)
def test_what_is_compiled_is_what_a_loss_calls_and_all_that_it_trains(name, data):
    stage, called = STAGES[name](), []
    networks = list(called_networks(stage.network))
    for network in networks:
        network.register_forward_hook(lambda network, *_: called.append(network))
    stage.loss(batch_at(data.train, 4, stage.frames_per_sample - 1, 0, 0))
    assert set(called) == set(networks)
    parameters = lambda *modules: sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert parameters(*networks) == parameters(stage.network)


def test_without_a_compiler_nothing_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"runtime\.compile=true needs the C\+\+ compiler \S+: install it"):
        check_compiler()
    (tmp_path / "g++").touch(mode=0o755)
    check_compiler()
    monkeypatch.setenv("CXX", "another")
    with pytest.raises(UserError, match="the C\\+\\+ compiler another"):
        check_compiler()
