"""Files of others run no code, and what is secret stays in the environment."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from secrets import token_hex

import pytest
from conftest import ROOT, SMALL

from ups.config.compose import composed
from ups.config.origin import known_targets
from ups.errors import UserError
from ups.launch.rehearsal.wandb_server import WandbServer
from ups.training.identity import from_content, identity_of, read_identity

# No line of the repo turns data into code ----------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
    "shutil.unpack_archive",
}  # fmt: skip


def unsafe(source: str) -> list[tuple[int, str]]:
    """(line, what) of each place where content becomes code, or a text a command line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, each.name) for each in node.names if each.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            # The name of an error loads nothing.
            found += [(node.lineno, each.name) for each in node.names if each.name != "UnpicklingError"]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            if (
                name in UNSAFE_CALLS
                or (name == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or (name.startswith("subprocess.") and given.get("shell", "False") != "False")
            ):
                found.append((node.lineno, name))
    return found


def test_no_line_turns_data_into_code():
    files = [*ROOT.glob("*.py"), *(file for folder in ("ups", "tests", "benchmarks", ".ci")
                                   for file in (ROOT / folder).rglob("*.py"))]  # fmt: skip
    assert len(files) > 80
    found = [f"{file.relative_to(ROOT)}:{line} {what}" for file in files for line, what in unsafe(file.read_text())]
    assert not found


@pytest.mark.parametrize("line", [
    "import pickle", "from pickle import loads", "import joblib.numpy_pickle", "torch.load(file)",
    "torch.load(file, weights_only=False)", "np.load(file, allow_pickle=True)", "np.load(file, allow_pickle=flag)",
    "yaml.load(text, Loader=yaml.Loader)", "eval(text)", "exec(text)", "os.system(text)",
    "subprocess.run(text, shell=True)",
])  # fmt: skip
def test_the_walk_finds_each_of_them(line):
    assert [number for number, _ in unsafe(f"x = 1\n{line}\n")] == [2]


# A checkpoint's folder from elsewhere --------------------------------------------------------------------------------


@pytest.fixture
def identity():
    return identity_of(composed("train", ["stage=diffusion_residual", *SMALL]))


def planted(content: dict, key: str, value) -> dict:
    """A copy with another value at the dotted key."""
    copy = json.loads(json.dumps(content))
    *path, last = key.split(".")
    node = copy
    for name in path:
        node = node[name]
    node[last] = value
    return copy


def written(content: dict, folder: Path) -> Path:
    """As the identity.json of a folder whose name fits it: who plants one can compute that."""
    try:
        folder = folder / from_content(content).folder.rpartition("/")[2]
    except (KeyError, TypeError):
        folder = folder / "operator-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps(content))
    return folder / "identity.json"


def test_an_identity_that_train_wrote_is_read(identity, tmp_path):
    file = written(identity.content, tmp_path)
    assert read_identity(file) == identity
    assert {"ups.stages.operator.Operator", "ups.models.dilresnet.DilatedResNet"} < set(known_targets())
    assert not [name for name in known_targets() if "loggers" in name or "callbacks" in name]


@pytest.mark.parametrize(("key", "value"), [
    ("stage._target_", "os.system"),
    ("stage.network._target_", "subprocess.run"),
    ("stage.requires._target_", "ups.files.os.system"),
    ("stage.requires.optimizer._target_", "os.system"),
    ("model._target_", "ups.loggers.wandb.WandbLogger"),
    ("model._target_", ["os.system"]),
    ("dataset._target_", {"_target_": "os.system"}),
    ("dataset.nu", [0.1, {"_target_": "os.system"}]),
    ("stage._args_", ["touch hacked"]),
    ("stage.network._partial_", True),
    ("stage._recursive_", False),
    ("dataset._convert_", "none"),
    ("stage.name", "../../elsewhere"),
    ("stage.requires.name", "/tmp/x"),
    ("stage.requires.name", 7),
    ("format", "2"),
    ("dataset.path", "${oc.env:HOME}"),
    ("stage", None),
    ("stage.requires", "operator"),
])  # fmt: skip
def test_an_identity_calls_nothing_that_conf_does_not_name(key, value, identity, tmp_path):
    file = written(planted(identity.content, key, value), tmp_path)
    with pytest.raises(UserError, match=re.escape(str(file))) as error:
        read_identity(file)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_evaluate_runs_no_command_of_a_checkpoint(command, identity, tmp_path):
    call = {"_target_": "os.system", "_args_": [f"touch {tmp_path / 'hacked'}"]}
    evil = planted(identity.content, "stage.requires.network", call)
    answer = command("evaluate.py", f"checkpoint={written(evil, tmp_path / 'store').parent}")
    error = [line for line in answer.stderr.splitlines() if line]
    assert answer.returncode == 1 and len(error) == 1, answer.stderr
    assert "identity.json: stage.requires.network._target_=os.system is not what conf/ builds" in error[0]
    assert not (tmp_path / "hacked").exists()


# Secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", ["offline", "online and failing"])
def test_no_secret_is_in_anything_a_training_leaves(case, command, tmp_path, cache):
    """What is planted in the environment and in the netrc is in no output, no file, and no request to W&B.

    tests/test_artifacts.py has an online run that succeeds, tests/test_launch.py a rental.
    """
    secrets = {name: token_hex(20) for name in ("VAST_API_KEY", "CONTAINER_API_KEY", "GIT_TOKEN", "WANDB_API_KEY")}
    password, caches = token_hex(20), tmp_path / "caches"
    netrc = tmp_path.parent / f"{tmp_path.name}-netrc"
    with WandbServer(password if case != "offline" else "") as server:
        netrc.write_text(f"machine {server.url.removeprefix('http://')}\n  login user\n  password {password}\n")
        netrc.chmod(0o600)
        environment = server.environment | secrets | {"NETRC": str(netrc), "XDG_CACHE_HOME": str(caches)}
        broken = []
        if case == "offline":
            environment["WANDB_MODE"] = "offline"
        else:
            environment["WANDB_API_KEY"] = ""  # the password is the key
            broken = ["stage.optimizer.lr=1e12", "stage.optimizer.warmup=0"]
        answer = command("train.py", *SMALL, *broken, **environment)
    netrc.unlink()
    assert answer.returncode == (1 if broken else 0), answer.stderr
    assert [run.state for run in server.runs.values()] == (["failed"] if broken else [])
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"metrics.csv", "config.yaml"} <= {file.name for file in files}
    assert any(file.suffix == ".wandb" for file in files) and any("debug" in file.name for file in files)
    outputs = {str(file): file.read_bytes() for file in [*files, *filter(Path.is_file, cache.rglob("*"))]}
    outputs |= {"stdout": answer.stdout.encode(), "stderr": answer.stderr.encode()}
    outputs |= {f"request {path}": body for path, _, body in server.requests}
    for name, secret in (secrets | {"netrc": password}).items():
        assert not [place for place, content in outputs.items() if secret.encode() in content], name


# The audit of .ci/run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("report", "code", "told"), [
    ({"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}, 1,
     "a 1 has CVE-1, fixed in 2"),
    ({"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}]}, 0,
     "1 packages, 0 known vulnerabilities; not known there: b"),
    ({"dependencies": [{"name": "b", "skip_reason": "not found"}]}, 0, "NOT DONE"),
    (None, 0, "NOT DONE"),
], ids=["vulnerable", "clean", "nothing known", "no answer"])  # fmt: skip
def test_the_audit_says_what_it_found_and_when_it_could_not_ask(report, code, told, tmp_path):
    """pip-audit's own answers, which need its service, written down."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(report) if report else ''}'\nexit 1\n")
    program.chmod(0o700)
    answer = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit.py", "pinned.txt"], capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert answer.returncode == code and told in answer.stdout, answer.stdout + answer.stderr
