"""The loop and the store, on a problem of a few seconds."""

import copy
import json
import math
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from operator import truediv
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import SMALL, train_config
from git_repos import git
from small_training import OPTIMIZER, RUNTIME, STAGES, disturb, operator, student, training
from torch import nn

from ups import provenance
from ups.callbacks.callback import Callback
from ups.callbacks.checkpoint import Checkpoint
from ups.callbacks.step_metrics import StepMetrics
from ups.data.batches import batch_at
from ups.errors import Interrupted, UserError
from ups.files import read_json, write_json
from ups.models.step import called_networks
from ups.runs.replay import batch_of, replay
from ups.tensors import Damaged, read_tensors, write_tensors
from ups.training.build import build_chain, settings_of
from ups.training.identity import from_content, identity_of
from ups.training.load import check_foreign, load_chain
from ups.training.loop import Training, train, training_step
from ups.training.nonfinite import write_reproduction
from ups.training.obtain import is_repeatable, obtain, train_stage
from ups.training.optimizer import Average, learning_rate
from ups.training.plan import make_plan
from ups.training.runtime import choose_threads, set_up
from ups.training.state import State, read_state, write_state
from ups.training.store import Entry


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


def test_a_stop_without_a_callback_that_saves_says_so(data, tmp_path):
    class Signal(Callback):
        def on_step(self, training):
            os.kill(os.getpid(), signal.SIGTERM)

    for callbacks, told in ([[Signal()], "it is not saved"], [[Signal(), Checkpoint(every=5)], "saved in"]):
        with pytest.raises(Interrupted, match=f"at step 1 of 20.*{told}"):
            train(training(operator(), data, tmp_path), callbacks, RUNTIME)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_training_lowers_the_loss(name, data, tmp_path):
    run = training(STAGES[name](), data, tmp_path, steps=150, validations=1)
    held_out = [batch_at(data.train, 16, run.stage.frames_per_sample - 1, seed, 10**6) for seed in range(4)]
    mean_loss = lambda: sum(float(run.stage.loss(batch)[0].detach()) for batch in held_out) / 4
    before = mean_loss()
    held_out = [batch_at(data.train, 16, run.stage.frames_per_sample - 1, seed, 10**6) for seed in range(4)]
    train(run, [], RUNTIME)
    assert mean_loss() < before - 0.02 * abs(before)


@pytest.mark.parametrize(("name", "score"), [("operator", "rollout_nrmse"), ("diffusion_residual", "crps")])
def test_the_best_weights_are_kept_by_validation_not_by_the_last_step(name, score, data, tmp_path):
    run = training(STAGES[name](), data, tmp_path, steps=20, validations=4)
    scores = iter([0.5, 0.2, 0.4, float("nan")])
    weights = []
    original = run.stage.evaluate

    def evaluate(window):
        assert window is data.validation
        weights.append({key: value.clone() for key, value in run.stage.network.state_dict().items()})
        return original(window) | {score: next(scores)}

    run.stage.evaluate = evaluate
    train(run, [], RUNTIME)
    assert run.best[score] == 0.2 and run.best["step"] == 10
    assert all(torch.equal(value, weights[1][key]) for key, value in run.stage.network.state_dict().items())


def test_the_average_is_the_one_that_is_said():
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average, expected = Average(network, 0.9), 0.0
    for step in range(100):
        network.weight.data.fill_(step + 1.0)
        average.update(network, step)
        decay = min(0.9, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * (step + 1)
    assert float(average.network.weight) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [{"symmetries": ["translation"]}, {"ema_decay": 0.0}, {"clip": 1e-3}, {"warmup": 0.8}, {"weight_decay": 0.1},
     {"betas": [0.5, 0.95]}, {"betas": [0.95, 0.5]}],
    ids=str,
)  # fmt: skip
def test_each_setting_of_the_loop_changes_the_weights(change, data, tmp_path):
    weights = []
    for settings in ({}, {}, change):
        run = training(operator(), data, tmp_path, steps=5, validations=1, **settings)
        train(run, [], RUNTIME)
        weights.append(torch.cat([tensor.flatten() for tensor in run.average.network.state_dict().values()]))
    base, again, changed = weights
    assert torch.equal(base, again) and (changed - base).abs().max() > 1e-4


def test_half_precision_changes_a_step(data, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        run = training(operator(), data, tmp_path)
        disturb(run.stage.network)
        training_step(run, replace(RUNTIME, precision=precision))
        losses.append(float(run.values["loss"]))
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_seed_has_its_initial_weights_whatever_was_drawn_before():
    def weights(*overrides):
        stages = build_chain(identity_of(train_config("stage=diffusion_residual", *SMALL, *overrides)), RUNTIME)
        torch.rand(7)
        return torch.cat([parameter.flatten() for stage in stages for parameter in stage.network.parameters()])

    first = weights()
    assert torch.equal(weights(), first) and not torch.equal(weights("seed=1"), first)


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


def test_a_state_from_elsewhere_is_refused_if_it_would_not_load(data, tmp_path):
    identity = identity_of(train_config(*SMALL))
    entry = Entry(tmp_path, identity)
    (stage,) = build_chain(identity, RUNTIME)
    entry.save_state(whole := Training(stage, settings_of(identity, "stage"), data, entry).state())
    check_foreign(entry, None, RUNTIME)
    for group in ("network", "average", "optimizer"):
        tensors = {name: tensors for name, tensors in whole.tensors.items() if name != group}
        entry.save_state(replace(whole, tensors=tensors))
        with pytest.raises(KeyError):
            check_foreign(entry, None, RUNTIME)
    for fact in ("step", "rows", "threads", "processes"):
        entry.save_state(replace(whole, facts={name: value for name, value in whole.facts.items() if name != fact}))
        with pytest.raises(KeyError):
            check_foreign(entry, None, RUNTIME)


class Chain:
    """An operator, which counts as trained, and a stage that requires it."""

    def __init__(self, store):
        self.identity = identity_of(train_config("stage=diffusion_residual", *SMALL))
        self.below, self.entry = Entry(store, self.identity.requires), Entry(store, self.identity)
        self.required, self.stage = build_chain(self.identity, RUNTIME)
        self.train_below(0)

    def train_below(self, change):
        weights = {name: tensor + change for name, tensor in self.required.network.state_dict().items()}
        self.below.finish(weights, [{"step": 1.0}], SCORES)

    def training(self, data):
        settings, sha256 = settings_of(self.identity, "stage"), self.entry.required_sha256()
        return Training(self.stage, settings, data, self.entry, required=sha256, made_by=RUNTIME.facts)


SCORES = {"score": 1.0, "metrics": {"test": {"rollout_nrmse": 1.0, "one_step_nrmse": 1.0}},
          "made_by": {"git_commit": provenance.git_commit()}}  # fmt: skip


@pytest.fixture
def chain(tmp_path):
    return Chain(tmp_path / "store")


def test_what_was_trained_on_other_weights_is_not_used(chain, data, capsys):
    entry, first = chain.entry, chain.entry.required_sha256()
    entry.save_state(chain.training(data).state())
    check_foreign(entry, first, RUNTIME)
    assert entry.load_state(first) is not None
    chain.train_below(1)
    with pytest.raises(ValueError, match="other weights of its prerequisite"):
        check_foreign(entry, entry.required_sha256(), RUNTIME)
    assert entry.load_state(entry.required_sha256()) is None
    assert "its prerequisite has other weights by now" in capsys.readouterr().err

    chain.train_below(0)
    entry.finish(chain.stage.network.state_dict(), [{"step": 1.0}], SCORES | {"requires": first})
    assert load_chain(chain.identity, entry.root, RUNTIME).entry.path == entry.path
    chain.train_below(1)
    with pytest.raises(ValueError, match="other weights of its prerequisite"):
        check_foreign(entry, entry.required_sha256(), RUNTIME)
    with pytest.raises(UserError, match=f"was trained on other weights of {chain.below.path.name}: remove"):
        load_chain(chain.identity, entry.root, RUNTIME)


def test_a_kill_while_a_training_is_finished_leaves_it_unfinished(chain, data, monkeypatch):
    """The result, by which an entry counts as trained, is written after all it needs."""
    chain.entry.save_state(chain.training(data).state())
    for file in ("tensors", "csv"):
        monkeypatch.setattr(f"ups.training.store.write_{file}", killed := Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            chain.entry.finish(chain.stage.network.state_dict(), [{"step": 1.0}], SCORES)
        assert killed.called and chain.entry.is_started and not chain.entry.is_trained
        monkeypatch.undo()


def test_weights_that_another_result_was_written_for_are_refused(chain):
    weights = (chain.below.path / "weights.safetensors").read_bytes()
    chain.train_below(1)
    (chain.below.path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"is damaged \(it is not the one that result\.json was written for\)"):
        chain.below.load_weights(chain.required.network)


@pytest.mark.parametrize("change", ["trained again", "removed"])
def test_what_is_recorded_are_the_weights_that_were_loaded(change, chain, data):
    """Whatever becomes of the prerequisite's folder while a stage trains on what it was."""
    first, seen = chain.entry.required_sha256(), []

    class Meanwhile(Callback):
        def on_start(self, training):
            shutil.rmtree(chain.below.path)
            if change == "trained again":
                chain.train_below(1)

        def on_end(self, training):
            seen.append(training.state().facts["requires"])

    plan = make_plan(chain.identity, chain.entry.root, "train", {})
    obtained = obtain(plan, lambda: data, [Meanwhile()], RUNTIME)
    assert seen == [first] == [obtained.result["requires"]] and chain.entry.required_sha256() != first
    chain.train_below(1)
    with pytest.raises(UserError, match="was trained on other weights"):
        load_chain(chain.identity, chain.entry.root, RUNTIME)


def test_the_plan_says_by_what_a_found_stage_was_made_where_that_is_not_the_usual(chain):
    plan = lambda: make_plan(chain.identity, chain.entry.root, "train", {})[0]
    assert plan().action == "found" and plan().why == str(chain.below.path)
    file = chain.below.path / "result.json"
    result = read_json(file)
    result["made_by"]["git_commit"] = "0123456789" * 4 + "-dirty.0123abcd"
    write_json(file, result)
    assert plan().why == f"{chain.below.path}, by the code of 012345678-dirty.0123abcd"
    result["made_by"] |= {"git_commit": provenance.git_commit(), "precision": "bfloat16"}
    write_json(file, result | {"skipped": 2})
    assert plan().why == f"{chain.below.path}, in bfloat16, 2 steps skipped"


def test_the_plan_says_what_a_found_stage_needs_that_is_gone(chain):
    """Its prerequisite will be trained first: another machine's rounding would make that for nothing."""
    requires = {"requires": chain.entry.required_sha256()}
    chain.entry.finish(chain.stage.network.state_dict(), [{"step": 1.0}], SCORES | requires)
    shutil.rmtree(chain.below.path)
    plan = make_plan(chain.identity, chain.entry.root, "train", {})
    assert [planned.action for planned in plan] == ["trained", "found"]
    assert plan[1].why == f"{chain.entry.path}, of use only if {chain.below.identity.folder} comes out as it was"


def test_a_commit_with_changes_is_told_from_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    commit = provenance.git_commit.__wrapped__  # which is asked for once a process
    assert commit() is None
    git(tmp_path, "init", "-q")
    for file in ("train.py", "README.md"):
        (tmp_path / file).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    (tmp_path / "README.md").write_text("2")
    assert commit() == head  # of the code: what is written about it changes no result
    (tmp_path / "ups").mkdir()
    seen = {head}
    for file, text in (("train.py", "2"), ("train.py", "3"), ("ups/a.py", "1"), ("ups/a.py", "2"), ("ups/b.py", "2")):
        (tmp_path / file).write_text(text)
        assert commit() not in seen and commit().startswith(f"{head}-dirty.")
        seen.add(commit())


def test_a_step_is_replayed_from_its_file_alone(chain, data, monkeypatch):
    run = chain.training(data)
    batch = batch_at(data.train, 4, run.stage.frames_per_sample - 1, 0, 0)
    file = chain.entry.path / "nonfinite-0.safetensors"
    write_reproduction(file, run, batch, RUNTIME)
    monkeypatch.chdir(chain.entry.path)
    assert replay(Path(file.name)).startswith("step 0: loss ")
    for wrong, what in ((chain.entry.path, "Is a directory"), (Path("nonfinite-1.safetensors"), "No such file")):
        with pytest.raises(UserError, match=f"{what}.*; it takes a nonfinite-STEP.safetensors"):
            replay(wrong)


def test_the_average_has_the_buffers_of_the_network():
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.9)
    network(torch.randn(8, 2) + 3)
    average.update(network, 0)
    assert torch.equal(average.network.running_mean, network.running_mean) and network.running_mean.abs().min() > 0.1


def test_the_speed_of_each_point_is_that_of_the_steps_since_the_one_before(data, tmp_path):
    """Of training alone: together they have taken the training's seconds, validations and lap times left out."""
    run = training(operator(), data, tmp_path, steps=7, validations=2)
    train(run, [StepMetrics([], every=2)], RUNTIME)
    assert [row["training/any/step"] for row in run.rows] == [1, 2, 4, 6, 7]
    samples = [4 * steps for steps in (1, 1, 2, 2, 1)]  # of a batch of 4
    speeds = [row["training/any/samples_per_second"] for row in run.rows]
    assert sum(map(truediv, samples, speeds)) == pytest.approx(run.seconds)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(OPTIMIZER, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 9 and max(rates) == pytest.approx(3e-3)
    assert rates[0] < 1e-3 and rates[-1] < 1e-5


@pytest.mark.slow
def test_a_training_does_not_import_the_compiler(command):
    """Which takes two seconds."""
    answer = command("train.py", *SMALL, "logger=none", PYTHONPROFILEIMPORTTIME="1")
    assert answer.returncode == 0 and " torch.nn\n" in answer.stderr and "torch._dynamo" not in answer.stderr


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


@pytest.mark.parametrize(("two", "chosen", "steps"), [(0.002, 2, 6), (0.03, 1, 6), (0.5, 1, 2)])
def test_the_threads_are_those_that_are_faster(two, chosen, steps, monkeypatch):
    """A step of 20 ms by one thread; where two take far longer, as on a busy machine, one step shows it."""
    monkeypatch.setattr("ups.training.runtime.cores", lambda: 2)
    laps = []

    def step():
        laps.append(torch.get_num_threads())
        time.sleep(two if laps[-1] == 2 else 0.02)

    try:
        choose_threads(set_up("cpu", "auto"), step)
        assert torch.get_num_threads() == chosen and laps.count(2) == steps
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("facts", "same"), [({}, True), ({"device": "cuda"}, False), ({"processes": 2}, False), ({"threads": 999}, False)]
)  # fmt: skip
def test_a_resume_keeps_the_threads_of_a_machine_like_this(facts, same):
    state = State({"device": "cpu", "processes": 1, "threads": 1} | facts, {})
    assert is_repeatable(state, RUNTIME) == same
    state.facts.pop("device")
    assert is_repeatable(state, RUNTIME) == (same or "device" in facts)


class EndsAtOnce(Callback):
    def on_start(self, training):
        raise Interrupted(signal.SIGTERM, "enough")


def test_a_resume_by_other_means_is_one_warning(chain, data, capsys):
    """And a state that does not tell by which it was made is trusted."""

    def start(*callbacks, **changes):
        with pytest.raises(Interrupted):
            train_stage(chain.below, None, data, [*callbacks], replace(RUNTIME, **changes), "stage.requires")
        return capsys.readouterr().err

    (chain.below.path / "result.json").unlink()
    assert "warning" not in start(StopAt(2), Checkpoint(every=1))
    assert "warning" not in start(EndsAtOnce())
    (line,) = start(EndsAtOnce(), precision="bfloat16").splitlines()
    assert line.startswith(f"warning: {chain.below.path} goes on with precision float32 -> bfloat16: its weights")
    state = chain.below.load_state()
    chain.below.save_state(replace(state, facts=state.facts | {"git_commit": "0123456789" * 4 + "-dirty.0123abcd"}))
    assert "goes on with git_commit 012345678-dirty.0123abcd -> " in start(EndsAtOnce())
    told = {name: fact for name, fact in state.facts.items() if name not in RUNTIME.facts}
    chain.below.save_state(replace(state, facts=told))
    assert "warning" not in start(EndsAtOnce(), precision="bfloat16")


@pytest.mark.slow
def test_compile_reaches_every_network_of_a_training(chain, data):
    """Dynamo's import takes seconds; nothing is compiled before it is called."""
    seen = []

    class Look(EndsAtOnce):
        def on_start(self, training):
            seen.extend(called_networks(training.stage.network))
            super().on_start(training)

    with pytest.raises(Interrupted):
        obtain(make_plan(chain.identity, chain.entry.root, "train", {}), lambda: data, [Look()],
               replace(RUNTIME, compile=True))  # fmt: skip
    assert seen and all(network._compiled_call_impl is not None for network in seen)


def test_store_names_what_sets_an_entry_apart(tmp_path):
    content = {"stage": {"name": "operator", "requires": None, "steps": 5}, "seed": 0}
    entry = Entry(tmp_path, from_content(content))
    assert entry.why_new() == f"no operator in {tmp_path}"
    weights, scores = torch.nn.Linear(2, 2).state_dict(), {"rollout_nrmse": math.inf, "one_step_nrmse": 0.1}
    result = SCORES | {"metrics": {"test": scores}}
    entry.finish(weights, [{"a": 0.1}, {"a": 0.2, "b": float("inf")}], result)
    assert math.isnan(entry.result()["metrics"]["test"]["rollout_nrmse"])
    assert "null" in (entry.path / "result.json").read_text()  # JSON has no NaN and no Infinity
    changed = Entry(tmp_path, from_content(content | {"seed": 3}))
    assert changed.why_new() == "seed: 0 -> 3"
    assert json.loads((entry.path / "identity.json").read_text()) == content
    assert entry.rows() == [{"a": 0.1}, {"a": 0.2, "b": float("inf")}]
    entry.load_weights(torch.nn.Linear(2, 2))
    (entry.path / "identity.json").write_text("{")  # as of a full disk
    entry.begin()
    assert json.loads((entry.path / "identity.json").read_text()) == content
    (entry.path / "metrics.csv").write_text("a,b\n0.1,\n")
    with pytest.raises(UserError, match=r"metrics.csv is damaged \(1 rows of 2\)"):
        entry.rows()
    (entry.path / "metrics.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(UserError, match=r"metrics.csv is damaged \(a row has more cells"):
        entry.rows()
    with pytest.raises(UserError, match="does not fit"):
        entry.load_weights(torch.nn.Linear(3, 3))
    file = entry.path / "weights.safetensors"
    file.write_bytes(flipped(file.read_bytes(), -3))
    with pytest.raises(UserError, match=r"is damaged \(its checksum does not fit\): remove"):
        entry.load_weights(torch.nn.Linear(2, 2))


def test_a_first_validation_that_diverged_can_be_beaten(data, tmp_path):
    run = training(operator(), data, tmp_path, steps=4, validations=2)
    scores = iter([float("nan"), 0.1])
    run.stage.evaluate = lambda window: {"rollout_nrmse": next(scores)}
    train(run, [], RUNTIME)
    assert run.best == {"rollout_nrmse": 0.1, "step": 4}


def test_a_training_whose_every_validation_diverged_says_so(data, tmp_path):
    run = training(operator(), data, tmp_path, steps=4, validations=2)
    run.stage.evaluate = lambda window: {"rollout_nrmse": float("inf")}
    with pytest.raises(UserError, match=r"diverged; raise stage\.steps, or set operator\.input_noise="):
        train(run, [], RUNTIME)
