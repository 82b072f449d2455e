"""The loop, the store and the stages' losses, on a problem of a few seconds."""

import copy
import itertools
import json
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from ups.callbacks.callback import Callback
from ups.callbacks.checkpoint import Checkpoint
from ups.data.batches import batch_at
from ups.data.generator import Burgers
from ups.data.symmetries import galilean, rolled
from ups.data.trajectories import Splits
from ups.errors import Interrupted, UserError
from ups.models.dilresnet import DilatedResNet
from ups.runs.replay import batch_of
from ups.stages.consistency_distill import ConsistencyDistill, end_of_path, midpoint_step
from ups.stages.diffusion_residual import DiffusionResidual
from ups.stages.operator import Operator, weights_by_nu
from ups.stages.sampled_correction import TAIL
from ups.stages.stage import called_networks, relative_l2
from ups.tensors import Damaged, read_tensors, write_tensors
from ups.training.identity import from_content
from ups.training.loop import LoopSettings, Training, train
from ups.training.optimizer import OptimizerSettings, learning_rate
from ups.training.runtime import set_up
from ups.training.state import State, read_state, write_state
from ups.training.store import Entry

RUNTIME = set_up("cpu", 1)
NETWORK = partial(DilatedResNet, width=8, kernel=3, dilations=[1, 2])
OPTIMIZER = OptimizerSettings(lr=3e-3, warmup=0.1, betas=[0.9, 0.99], weight_decay=0.0, clip=1.0, average=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    dataset = Burgers(nu=0.01, train=16, validation=4, test=4, seed=0, solver_points=64, points=32, shifts=1,
                      frames=8, time_step=0.05, initial_frame=2, rollout_steps=5)  # fmt: skip
    splits = dataset.load(tmp_path_factory.mktemp("data"), torch.device("cpu"))
    return Splits(splits.train, splits.validation.window(2, 5), splits.test.window(2, 5))


def operator(unroll=1, noise=(0.0, 0.0), round_trip=1.0):
    torch.manual_seed(0)
    return Operator(NETWORK, None, unroll, round_trip, list(noise))


def diffusion():
    torch.manual_seed(0)
    return DiffusionResidual(NETWORK, operator(), 5, 2)


STUDENT = {"intervals": 6, "unroll": 2, "evaluations_per_step": 1, "members": 2, "operator_relative_lr": 0.2}


def student(**settings):
    return ConsistencyDistill(diffusion(), **STUDENT | settings)


def disturb(*networks):
    """A new network's outputs are zero, and much is zero with them."""
    for network in networks:
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


STAGES = {"operator": operator, "diffusion_residual": diffusion, "consistency_distill": student}


def training(stage, data, folder, steps=20, evaluations=2, symmetries=()):
    content = {"stage": {"name": "any", "requires": None, "steps": steps}}
    settings = LoopSettings("any", steps, 4, evaluations, OPTIMIZER, seed=0, symmetries=symmetries)
    return Training(stage, settings, data, Entry(folder, from_content(content)))


class StopAt(Callback):
    """As if the process were told to end after this step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, training):
        if training.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(name, data, tmp_path):
    symmetric = partial(training, data=data, symmetries=["translation", "reflection", "galilean"])
    whole = symmetric(STAGES[name](), folder=tmp_path / "whole")
    train(whole, [Checkpoint(every=5)], RUNTIME)

    first = symmetric(STAGES[name](), folder=tmp_path / "parts")
    with pytest.raises(Interrupted) as stop:
        train(first, [StopAt(13), Checkpoint(every=5)], RUNTIME)
    assert stop.value.exit_code == 143
    second = symmetric(STAGES[name](), folder=tmp_path / "parts")
    second.load_state(second.entry.load_state())
    assert second.step == 13
    train(second, [Checkpoint(every=5)], RUNTIME)

    assert second.best == whole.best
    for tensor, other in zip(whole.average.network.state_dict().values(),
                             second.average.network.state_dict().values(), strict=True):  # fmt: skip
        assert torch.equal(tensor, other)


DAMAGE = {
    "truncated": (lambda content: content[: len(content) // 2], "InvalidHeader|Invalid|incomplete|Incomplete"),
    "a flipped byte of a tensor": (lambda content: flipped(content, -5), "checksum"),
    "a flipped byte of the header": (lambda content: flipped(content, 300), "checksum|header|Header"),
    "empty": (lambda content: b"", "Header|header|empty"),
    "another version": (lambda content: content, "version is 7"),
    "of another stage": (lambda content: content, "another stage"),
}


def flipped(content: bytes, position: int) -> bytes:
    content = bytearray(content)
    content[position] ^= 0x10
    return bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_set_aside_for_the_one_before(kind, data, tmp_path, capsys):
    damage, reason = DAMAGE[kind]
    run = training(operator(), data, tmp_path, steps=20 if kind != "of another stage" else 25)
    train(run, [Checkpoint(every=5)], RUNTIME)
    state, previous = (run.entry.path / name for name in ("state.safetensors", "state.previous.safetensors"))
    if kind == "of another stage":
        other = training(operator(), data, tmp_path, steps=20)
        train(other, [Checkpoint(every=5)], RUNTIME)
        state.write_bytes((other.entry.path / "state.safetensors").read_bytes())
    elif kind == "another version":
        tensors, _ = read_tensors(state)
        write_tensors(state, tensors, {"version": "7"})
    else:
        state.write_bytes(damage(state.read_bytes()))
    before = read_state(previous)
    assert run.entry.load_state().facts == before.facts
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"warning: .*state.safetensors is damaged \(.*({reason}).*\): set aside", line), line
    assert (run.entry.path / "state.safetensors.damaged").exists() and not state.exists()

    previous.write_bytes(previous.read_bytes()[:-1])
    assert run.entry.load_state() is None
    assert "no sound state is left" in capsys.readouterr().err


def test_every_byte_of_a_state_is_under_its_checksum(tmp_path):
    file = tmp_path / "state.safetensors"
    write_state(file, State({"step": 3, "rows": [{"a": 0.5}]}, {"network": {"weight": torch.arange(6.0)}}))
    content = file.read_bytes()
    for position in range(len(content)):
        file.write_bytes(flipped(content, position))
        with pytest.raises(Damaged):
            read_state(file)
        file.write_bytes(content[:position])
        with pytest.raises(Damaged):
            read_state(file)


def test_a_signal_while_the_last_state_is_saved_stops_all_the_same(data, tmp_path):
    class SignalAtTheEnd(Callback):
        def on_checkpoint(self, training, stopping):
            if training.step == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    run = training(operator(), data, tmp_path)
    with pytest.raises(Interrupted, match="at step 20 of 20"):
        train(run, [Checkpoint(every=5), SignalAtTheEnd()], RUNTIME)


def test_a_signal_cuts_a_validation_short_and_it_is_made_up_for(data, tmp_path):
    whole = training(operator(), data, tmp_path / "whole")
    train(whole, [Checkpoint(every=5)], RUNTIME)

    first = training(operator(), data, tmp_path / "parts")
    evaluate = first.stage.evaluate

    def slow(window):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(600):
            time.sleep(0.1)
        return evaluate(window)

    first.stage.evaluate = slow
    started = time.monotonic()
    with pytest.raises(Interrupted, match="at step 10 of 20"):
        train(first, [Checkpoint(every=5)], RUNTIME)
    assert time.monotonic() - started < 5

    second = training(operator(), data, tmp_path / "parts")
    second.load_state(second.entry.load_state())
    assert second.step == 10 and second.needs_evaluation and not second.best
    train(second, [Checkpoint(every=5)], RUNTIME)
    assert second.best == whole.best
    assert all(torch.equal(tensor, whole.best_weights[name]) for name, tensor in second.best_weights.items())


@pytest.mark.parametrize("name", STAGES)
def test_training_lowers_the_loss(name, data, tmp_path):
    run = training(STAGES[name](), data, tmp_path, steps=150, evaluations=1)
    held_out = [batch_at(data.train, 16, run.stage.frames_per_sample - 1, seed, 10**6) for seed in range(4)]
    mean_loss = lambda: sum(float(run.stage.loss(batch)[0].detach()) for batch in held_out) / 4
    before = mean_loss()
    held_out = [batch_at(data.train, 16, run.stage.frames_per_sample - 1, seed, 10**6) for seed in range(4)]
    train(run, [], RUNTIME)
    assert mean_loss() < before - 0.02 * abs(before)


@pytest.mark.parametrize(("name", "score"), [("operator", "rollout_nrmse"), ("diffusion_residual", "crps")])
def test_the_best_weights_are_kept_by_validation_not_by_the_last_step(name, score, data, tmp_path):
    run = training(STAGES[name](), data, tmp_path, steps=20, evaluations=4)
    scores = iter([0.5, 0.2, 0.4, float("nan")])
    weights = []
    original = run.stage.evaluate

    def evaluate(window):
        weights.append({key: value.clone() for key, value in run.stage.network.state_dict().items()})
        return original(window) | {score: next(scores)}

    run.stage.evaluate = evaluate
    train(run, [], RUNTIME)
    assert run.best[score] == 0.2 and run.best["step"] == 10
    assert all(torch.equal(value, weights[1][key]) for key, value in run.stage.network.state_dict().items())


def fails_at(stage, steps, data):
    """The stage's loss is not a number at these steps, whatever the weights."""
    original = stage.loss
    of_those = [batch_at(data.train, 4, stage.frames_per_sample - 1, 0, step).u for step in steps]

    def loss(batch):
        value, terms = original(batch)
        return (value * float("nan") if any(torch.equal(batch.u, u) for u in of_those) else value), terms

    stage.loss = loss


def test_a_nonfinite_loss_stops_before_the_optimizer(data, tmp_path):
    run = training(operator(), data, tmp_path)
    fails_at(run.stage, [7], data)
    with pytest.raises(UserError) as error:
        train(run, [Checkpoint(every=5)], RUNTIME)
    batch = batch_at(data.train, 4, 1, 0, 7)
    expected = f"loss nan, gradient nan at step 7, trajectories {','.join(map(str, batch.sample.tolist()))}; no weight"
    assert expected in str(error.value) and "the last checkpoint is of step 5" in str(error.value)
    kept = read_state(run.entry.path / "nonfinite-7.safetensors")
    assert kept.facts["step"] == 7 and torch.equal(kept.tensors["batch"]["u"], batch.u)
    assert all(torch.isfinite(tensor).all() for tensor in kept.tensors["network"].values())
    again = batch_of(kept, RUNTIME.device)
    assert torch.equal(again.normal(again.u), batch.normal(batch.u))
    weights = run.stage.network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.tensors["network"].items())


def test_nonfinite_steps_are_skipped_counted_and_limited(data, tmp_path, capsys):
    skipping = replace(RUNTIME, on_nonfinite="skip", max_skipped=2)
    run = training(operator(), data, tmp_path / "two")
    fails_at(run.stage, [3, 8], data)
    train(run, [], skipping)
    assert run.skipped == 2 and run.step == 20 and run.best["rollout_nrmse"] > 0
    assert all(torch.isfinite(tensor).all() for tensor in run.stage.network.state_dict().values())
    assert capsys.readouterr().err.count("warning: any: loss nan") == 2

    run = training(operator(), data, tmp_path / "three")
    fails_at(run.stage, [3, 8, 9], data)
    with pytest.raises(UserError, match=r"at step 9, .* 2 were skipped before it, runtime\.max_skipped=2"):
        train(run, [], skipping)


def test_an_exact_prediction_has_a_finite_gradient():
    u = torch.full((2, 8), 0.5, requires_grad=True)
    relative_l2(u, u.detach().clone()).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(OPTIMIZER, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 9 and max(rates) == pytest.approx(3e-3)
    assert rates[0] < 1e-3 and rates[-1] < 1e-5


def test_unrolled_loss_sees_the_later_steps(data):
    batch = batch_at(data.train, 8, 3, 0, 0)
    loss, terms = operator(unroll=3).loss(batch)
    assert loss.item() > 1.2 * terms["one_step_loss"].item()


def test_input_noise_changes_the_inputs_alone(data):
    clean, noisy = (operator(noise=noise).loss(batch_at(data.train, 8, 1, 0, 0))[0] for noise in ((0, 0), (0.1, 0.2)))
    assert not torch.equal(clean, noisy)


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
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-5 * float(whole.norm()))
        assert not torch.allclose(first, second, rtol=1e-2)


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
    z0 = ((opened.to_state(batch.u[:, 1]) - opened.after - mean) / scale).clamp(-TAIL, TAIL).detach()
    velocity = lambda z, t: (z0 - z) / (1 - t)
    stage.network.velocity = lambda z, t, *context: velocity(z, t)
    stage.evaluations_per_step = evaluations
    assert z0.abs().mean() > 0.1 and stage.loss(batch)[1]["velocity_loss"] < 1e-6
    torch.testing.assert_close(stage.sample(velocity, lambda: torch.randn(z0.shape)), z0, rtol=1e-4, atol=1e-4)


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
    train(training(teacher, data, tmp_path, steps=200, evaluations=1), [], RUNTIME)
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


def test_a_part_of_the_network_has_its_own_learning_rate(data, tmp_path):
    changes = {}
    for relative in (0.0, 1e-3):
        stage = student(operator_relative_lr=relative)
        before = copy.deepcopy(stage.network.state_dict())
        train(training(stage, data, tmp_path / str(relative)), [], RUNTIME)
        change = {key: float((tensor - before[key]).norm()) for key, tensor in stage.network.state_dict().items()}
        changes[relative] = [sum(change[key] for key in change if key.startswith(part)) for part in stage.network]
    (operator_at_rest, corrector), (slow_operator, same_corrector) = changes.values()
    assert operator_at_rest == 0 < slow_operator < 1e-2 * corrector
    assert same_corrector == pytest.approx(corrector, rel=0.1)


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


def test_store_names_what_sets_an_entry_apart(tmp_path):
    content = {"stage": {"name": "operator", "requires": None, "steps": 5}, "seed": 0}
    entry = Entry(tmp_path, from_content(content))
    assert entry.why_new() == f"no operator in {tmp_path}"
    weights, scores = torch.nn.Linear(2, 2).state_dict(), {"rollout_nrmse": 0.1, "one_step_nrmse": 0.1}
    entry.finish(weights, [{"a": 0.1}, {"a": 0.2, "b": float("inf")}], {"score": 0.1, "metrics": {"test": scores}})
    changed = Entry(tmp_path, from_content(content | {"seed": 3}))
    assert changed.why_new() == "seed: 0 -> 3"
    assert json.loads((entry.path / "identity.json").read_text()) == content
    assert entry.rows() == [{"a": 0.1}, {"a": 0.2, "b": float("inf")}]
    entry.load_weights(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="does not fit"):
        entry.load_weights(torch.nn.Linear(3, 3))
    file = entry.path / "weights.safetensors"
    file.write_bytes(flipped(file.read_bytes(), -3))
    with pytest.raises(UserError, match=r"is damaged \(its checksum does not fit\): remove"):
        entry.load_weights(torch.nn.Linear(2, 2))


def test_a_first_validation_that_diverged_can_be_beaten(data, tmp_path):
    run = training(operator(), data, tmp_path, steps=4, evaluations=2)
    scores = iter([float("nan"), 0.1])
    run.stage.evaluate = lambda window: {"rollout_nrmse": next(scores)}
    train(run, [], RUNTIME)
    assert run.best == {"rollout_nrmse": 0.1, "step": 4}


def test_a_training_whose_every_validation_diverged_says_so(data, tmp_path):
    run = training(operator(), data, tmp_path, steps=4, evaluations=2)
    run.stage.evaluate = lambda window: {"rollout_nrmse": float("inf")}
    with pytest.raises(UserError, match="every validation rollout diverged"):
        train(run, [], RUNTIME)


def test_stages_refuse_a_prerequisite_of_another_kind():
    with pytest.raises(UserError, match="requires an operator"):
        DiffusionResidual(NETWORK, None, 5, 2)
    with pytest.raises(UserError, match="requires a diffusion_residual"):
        ConsistencyDistill(operator(), **STUDENT)


def test_a_student_of_one_member_is_refused():
    with pytest.raises(UserError, match="a student is learned from 2 or more"):
        ConsistencyDistill(diffusion(), **STUDENT | {"members": 1})
