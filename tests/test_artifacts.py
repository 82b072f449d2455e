"""Stages come to W&B and from there, and the proof says so only if it is so: the real client, a server on loopback."""

import json
import os
import shutil
import signal
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SMALL
from machines import Machine, steps_of, wait_for

from ups.config.compose import composed
from ups.launch.rehearsal.wandb_server import WandbServer
from ups.runs import lookup
from ups.training.identity import identity_of
from ups.training.runtime import set_up
from ups.training.state import read_state

pytestmark = pytest.mark.slow

TRAINED = {"identity.json", "metrics.csv", "weights.safetensors", "result.json"}


@pytest.fixture
def server():
    with WandbServer() as server:
        yield server


@pytest.fixture
def machine(tmp_path, cache):
    return Machine(tmp_path / "machine", cache)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A machine on which an operator was trained online, as the run `abc`."""
    machine = Machine(tmp_path_factory.mktemp("trained") / "machine", cache)
    with WandbServer() as server:
        machine.trained(server, "logger.wandb.tags=[a,b]", WANDB_RUN_ID="abc", WANDB_RESUME="allow")
        yield machine, server


@pytest.fixture
def copied(finished, machine):
    """The same machine before a server that knows nothing of it."""
    shutil.copytree(finished[0].folder, machine.folder)
    hydra = machine.folder / "run" / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text().replace(str(finished[0].folder), str(machine.folder)))
    with WandbServer() as server:
        yield machine, server


@pytest.fixture
def twin(finished, copied):
    """The same machine before a server that knows all the first one knew."""
    machine, server = copied
    for name in ("runs", "artifacts", "blobs"):
        setattr(server, name, deepcopy(getattr(finished[1], name)))
    return machine, server


def test_a_training_brings_its_rows_and_its_checkpoint_to_wandb(finished):
    machine, server = finished
    (run,) = server.runs.values()
    assert (run.id, run.name, run.state, run.project) == ("abc", "abc", "finished", "ups")
    assert run.config["stage"]["value"]["name"] == "operator" and run.config["budget"]["value"]["operator"] == 6
    first = next(json.loads(body) for _, operation, body in server.requests if operation == "UpsertBucket")
    assert first["variables"]["tags"] == ["a", "b"]
    assert steps_of(run.rows) == steps_of(machine.rows()) == [1, 2, 3, 4, 6]
    entry = machine.entry()
    artifact = server.artifact(entry.name)
    assert (artifact.state, artifact.type, artifact.run) == ("COMMITTED", "model", "abc")
    assert set(artifact.entries) == TRAINED
    for name in TRAINED:
        assert server.content(entry.name, name) == (entry / name).read_bytes()


def test_the_key_is_in_no_file_and_no_request(finished):
    machine, server = finished
    assert machine.prove(server)[0] == 0
    key = server.api_key.encode()
    files = [path for path in machine.folder.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    assert not [path for path in files if key in path.read_bytes()]
    assert len(server.requests) > 10 and not any(key in body for _, _, body in server.requests)


def test_an_empty_store_finds_it_on_wandb_and_trains_nothing(finished, machine):
    trained, server = finished
    result, printed = machine.trained(server)
    assert [line["action"] for line in result["plan"]] == ["found"]
    name = trained.entry().name
    assert f"tester/ups/{name}:v0" in printed and len(server.runs) == 1
    for file in TRAINED:
        assert (machine.entry() / file).read_bytes() == (trained.entry() / file).read_bytes()
    assert {path.name for path in machine.folder.glob("store/*")} == {name, f"{name}.lock"}


def test_another_identity_under_the_name_is_a_warning_and_a_training(twin, tmp_path):
    machine, server = twin
    name = machine.entry().name
    content = server.content(name, "identity.json")
    server.tamper(name, "identity.json", content.replace(b'"seed": 0', b'"seed": 1'))
    result, printed = Machine(tmp_path / "elsewhere", machine.cache).trained(server)
    assert [line["action"] for line in result["plan"]] == ["trained"]
    assert printed.count("warning: ") == 1 and f"tester/ups/{name}:v0 is not used" in printed


@dataclass
class LookUp:
    """`fetch_missing` in this process, with an empty store."""

    store: Path
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, server: WandbServer, *overrides: str, **environment: str) -> dict[str, str]:
        for name, value in (server.environment | {"HOME": str(self.store.parent)} | environment).items():
            self.monkeypatch.setenv(name, value)
        cfg = composed("train", [*SMALL, *overrides])
        return lookup.fetch_missing(identity_of(cfg), self.store, cfg, set_up("cpu", threads=1))


@pytest.fixture
def look_up(tmp_path, monkeypatch):
    monkeypatch.setattr(lookup, "ANSWER_SECONDS", 60.0)  # beside other tests, the client's import alone takes seconds
    return LookUp(tmp_path / "store", monkeypatch)


def test_only_the_known_files_are_written_and_only_where_they_belong(twin, look_up, tmp_path):
    machine, server = twin
    name = machine.entry().name
    artifact = server.artifact(name)
    manifest = json.loads(artifact.manifest)
    for evil in ("../evil", str(tmp_path / "evil"), "evil"):
        manifest["contents"][evil] = manifest["contents"]["identity.json"]
    artifact.manifest = json.dumps(manifest).encode()
    assert look_up(server) == {name: f"tester/ups/{name}:v0"}
    assert {path.name for path in (look_up.store / name).iterdir()} == TRAINED
    assert not list(tmp_path.rglob("*evil*"))

    # A file that is said to lie on this machine already is not taken from there.
    shutil.rmtree(look_up.store)
    manifest["contents"]["result.json"]["local_path"] = str(tmp_path / "secret")
    (tmp_path / "secret").write_text("secret")
    artifact.manifest = json.dumps(manifest).encode()
    look_up(server)
    assert not [file for file in look_up.store.rglob("*.json") if "secret" in file.read_text()]

    # A file that is a reference, here to one of this machine, is not followed.
    shutil.rmtree(look_up.store)
    manifest["contents"]["result.json"]["ref"] = (machine.entry() / "result.json").as_uri()
    artifact.manifest = json.dumps(manifest).encode()
    assert look_up(server) == {} and not list(look_up.store.glob("*"))


def test_what_a_killed_download_left_is_removed_a_day_later(twin, look_up):
    server = twin[1]
    left, under_way = (look_up.store / f".from-wandb-{name}" for name in ("left", "under_way"))
    for folder in (left, under_way):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text("x")
    os.utime(left, (0, time.time() - 2 * 86_400))
    assert look_up(server) and list(look_up.store.glob(".*")) == [under_way]


@pytest.mark.parametrize("file", ["weights.safetensors", "result.json"])
def test_files_that_do_not_load_are_not_used(file, twin, look_up, capsys):
    machine, server = twin
    name = machine.entry().name
    server.tamper(name, file, server.content(name, file)[:-100])
    assert look_up(server) == {} and not list(look_up.store.glob("*"))
    warning = capsys.readouterr().err
    assert warning.count("warning: ") == warning.count("\n") == 1 and f"{name}:v0 is not used" in warning


def test_nobody_is_asked_offline_without_a_key_or_where_it_is_turned_off(server, look_up):
    assert look_up(server, "logger=csv") == look_up(server, "logger.wandb.checkpoints=false") == {}
    assert look_up(server, WANDB_API_KEY="") == {}
    assert look_up(server, WANDB_MODE="offline") == look_up(server, WANDB_MODE="disabled") == {}
    assert not server.requests
    assert look_up(server, WANDB_MODE="online") == {} and server.requests


@pytest.mark.parametrize("fault", ["down", "slow"])
def test_wandb_that_does_not_answer_costs_a_warning_and_seconds(fault, server, look_up, monkeypatch, capsys):
    monkeypatch.setattr(lookup, "ANSWER_SECONDS", 20)  # the client's import is among them, which takes three to ten
    setattr(server, fault, 60)
    started = time.monotonic()
    assert look_up(server) == {} and server.requests
    assert time.monotonic() - started < 40
    warning = capsys.readouterr().err
    assert warning.count("warning: ") == warning.count("\n") == 1 and "no look at W&B's checkpoints" in warning


def test_checkpoints_false_neither_uploads_nor_looks(server, machine):
    machine.trained(server, "logger.wandb.checkpoints=false")
    assert not server.artifacts and "ArtifactMembershipByName" not in server.operations()
    assert [run.state for run in server.runs.values()] == ["finished"]
    assert machine.prove(server) == (
        1, "results not saved: the run uploads no checkpoints: it needs logger=wandb with "
        "logger.wandb.checkpoints=true",
    )  # fmt: skip


def test_what_wandb_does_not_have_comes_there_with_what_is_trained_on_it(copied, look_up):
    machine, server = copied
    chain = ["stage=diffusion_residual", "stage.requires.validations=2"]
    result, _ = machine.trained(server, *chain)
    assert [line["action"] for line in result["plan"]] == ["found", "trained"]
    assert {artifact.name.partition("-")[0] for artifact in server.artifacts} == {"operator", "diffusion_residual"}

    # Without its operator, which would have other weights when trained anew, it is not taken.
    server.artifacts = [artifact for artifact in server.artifacts if not artifact.name.startswith("operator-")]
    assert look_up(server, *chain) == {} and not list(look_up.store.glob("*"))


def test_the_proof_of_what_is_there_uploads_nothing(finished):
    machine, server = finished
    before = len(server.requests)
    code, line = machine.prove(server)
    assert (code, line) == (0, f"results saved: {machine.entry().name} in tester/ups")
    assert not [path for path, _, _ in server.requests[before:] if path.startswith("PUT")]


def test_the_proof_uploads_what_the_server_lost_and_the_whole_run(copied):
    machine, server = copied
    assert machine.prove(server)[0] == 0
    (run,) = server.runs.values()
    assert (run.id, run.state, steps_of(run.rows)) == ("abc", "finished", [1, 2, 3, 4, 6])
    first = server.artifact(machine.entry().name)
    assert first.state == "COMMITTED" and set(first.entries) == TRAINED

    # A local file that is another one than the server's makes a new version.
    (machine.entry() / "result.json").write_text((machine.entry() / "result.json").read_text() + " ")
    assert machine.prove(server)[0] == 0
    second = server.artifact(machine.entry().name)
    assert (first.version, second.version) == (0, 1) and steps_of(run.rows) == [1, 2, 3, 4, 6]

    second.state = "DELETED"
    assert machine.prove(server)[0] == 0
    third = server.artifact(machine.entry().name)
    assert (third.version, third.state) == (2, "COMMITTED")


def test_a_complete_run_that_wandb_calls_failed_is_not_saved_until_it_is_finished(twin):
    machine, server = twin
    (run,) = server.runs.values()
    run.state = "failed"
    assert machine.prove(server)[0] == 0
    assert run.state == "finished" and sorted(set(steps_of(run.rows))) == [1, 2, 3, 4, 6]  # some are sent again


FAULTS = {  # of the server -> the seconds that the proof has, and how its line ends
    "down": (15, ""),  # the client's import is among them
    "slow": (15, "no answer from W&B in 15 s"),
    "refuse_uploads": (60, "after the upload"),
    "forget_commits": (60, "after the upload"),
    "forget_ends": (60, "the run abc is running after all was sent"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_fails_in_one_line_within_its_timeout(fault, copied):
    machine, server = copied
    timeout, reason = FAULTS[fault]
    setattr(server, fault, 5)  # seconds of the slow one, which its client endures
    started = time.monotonic()
    code, line = machine.prove(server, "--timeout", str(timeout))
    assert code == 1 and line.startswith("results not saved: ") and line.endswith(reason) and server.requests
    assert time.monotonic() - started < timeout + 15  # its imports, beside other tests
    if fault in ("down", "forget_commits"):
        setattr(server, fault, 0)
        assert machine.prove(server)[0] == 0


def test_a_wrong_key_proves_nothing(copied):
    machine, server = copied
    code, line = machine.prove(server, WANDB_API_KEY="0" * 40)
    assert code == 1 and line.startswith("results not saved: ") and not server.artifacts


def test_an_offline_run_is_synced_by_the_proof(server, machine):
    machine.trained(server, WANDB_MODE="offline")
    assert not server.requests
    assert machine.prove(server)[0] == 0
    (run,) = server.runs.values()
    assert run.state == "finished" and steps_of(run.rows) == steps_of(machine.rows()) == [1, 2, 3, 4, 6]
    assert server.artifact(machine.entry().name).state == "COMMITTED"


LONG = ("budget.operator=4000", "stage.validations=1000", "callbacks.checkpoint.every=4")


def test_an_unfinished_training_comes_home_and_goes_on_elsewhere(server, machine, tmp_path):
    run = machine.train(server, *LONG)
    wait_for(lambda: server.runs and list(machine.folder.glob("store/*/state.previous.safetensors")))
    run.send_signal(signal.SIGTERM)
    assert "Traceback" not in run.communicate(timeout=30)[1] and run.returncode == 143
    name = f"{machine.entry().name}-unfinished"
    assert machine.prove(server) == (0, f"results saved: {name} in tester/ups")
    assert set(server.artifact(name).entries) == {"identity.json", "state.safetensors"}
    (first,) = server.runs.values()
    assert first.state == "failed" and steps_of(first.rows) == steps_of(machine.rows())

    elsewhere = Machine(tmp_path / "elsewhere", machine.cache)
    run = elsewhere.train(server, *LONG)
    known = len(machine.rows())
    wait_for(lambda: (elsewhere.folder / "run" / "metrics.csv").exists() and len(elsewhere.rows()) > known + 1)
    run.send_signal(signal.SIGTERM)
    error = run.communicate(timeout=30)[1]
    assert run.returncode == 143 and f"an unfinished training in tester/ups/{name}:v0" in error
    before = read_state(machine.entry() / "state.safetensors").facts["step"]
    rows, earlier = steps_of(elsewhere.rows()), [step for step in steps_of(machine.rows()) if step <= before]
    assert 0 < before < rows[-1] and rows[: len(earlier)] == earlier and rows == sorted(set(rows))


def test_a_killed_training_comes_home(server, machine):
    run = machine.train(server, *LONG)
    wait_for(lambda: (machine.folder / "run" / "metrics.csv").exists() and len(machine.rows()) > 3)
    time.sleep(0.5)  # the client writes to disk ten times a second
    run.kill()
    run.communicate(timeout=30)
    assert machine.prove(server)[0] == 0
    (made,) = server.runs.values()
    arrived = sorted(set(steps_of(made.rows)))  # what was sent before the kill is sent again
    assert made.state == "failed" and len(arrived) > 3 and arrived == steps_of(machine.rows())[: len(arrived)]
    name = f"{machine.entry().name}-unfinished"
    state = machine.entry() / "state.safetensors"
    assert server.content(name, "state.safetensors") == state.read_bytes()
    step = read_state(state).facts["step"]
    assert step % 4 == 0 and step + 4 >= steps_of(machine.rows())[-1]


def test_a_folder_of_no_run_is_one_line(server, machine):
    (machine.folder / "run").mkdir(parents=True)
    code, line = machine.prove(server)
    assert code == 1 and line.endswith("it has no run.json") and os.listdir(machine.folder / "run") == []
    (machine.folder / "run" / ".hydra").mkdir()  # as of a run that ended at once
    code, line = machine.prove(server)
    assert code == 0 and line == "results saved: no stage was started, there is nothing to lose"


def test_what_repeats_a_step_that_was_not_finite_comes_home(server, machine, look_up):
    """Also where no state was saved before it."""
    broken = ("stage.optimizer.lr=1e12", "stage.optimizer.warmup=0")
    run = machine.train(server, *broken)
    assert "ups.runs.replay" in run.communicate(timeout=100)[1] and run.returncode == 1
    entry = machine.entry()
    (file,) = entry.glob("*.safetensors")
    name = f"{entry.name}-unfinished"
    assert file.name.startswith("nonfinite-")
    assert machine.prove(server) == (0, f"results saved: {name} in tester/ups")
    assert set(server.artifact(name).entries) == {"identity.json", file.name}

    assert look_up(server, *broken) == {entry.name: f"tester/ups/{name}:v0"}
    assert (look_up.store / entry.name / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(look_up.store)
    server.tamper(name, file.name, file.read_bytes()[:-100])
    assert look_up(server, *broken) == {} and not list(look_up.store.glob("*"))
