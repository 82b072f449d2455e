"""launch_vast.py as a user runs it: from a pushed clone of this repo, against the stand-in service."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from datetime import datetime
from io import StringIO
from pathlib import Path
from secrets import token_hex

import pytest
from conftest import ROOT, SMALL, clean_environment
from git_repos import git, public_git
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from machines import wait_for
from terminal import READERS
from test_provision import rent_one

from ups.config.check import check
from ups.config.compose import composed
from ups.errors import Interrupted, UserError
from ups.launch import command
from ups.launch.actions import TrainingFailed, follow, logs, overlap, reap
from ups.launch.command import passed_on
from ups.launch.ledger import Ledger, Rental, new_label
from ups.launch.rehearsal.local import interpreter, rehearsed
from ups.launch.rehearsal.vast_server import Fault, Machine, VastServer, inherited_environment, offer
from ups.launch.rehearsal.wandb_server import WandbServer
from ups.launch.vast_api import Vast
from ups.paths import CONFIG_FOLDER

pytestmark = pytest.mark.slow

CREATE = r"PUT /api/v0/asks/\d+/"
DESTROY = r"DELETE /api/v0/instances/\d+/"
COMPLETE = "Training complete - auto-shutdown in 10 seconds..."
LOSSY = ["logger=none", "vast.allow_loss=true"]
FETCHED = [*LOSSY, "dataset=pdebench_burgers", "dataset.download=true"]
QUICK = ["vast.pause=0.1", "vast.poll_seconds=0.1", "vast.loading_minutes=0.1", "vast.request_timeout=5"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """This working tree as a clone that is clean and pushed, its remote served by git's own daemon."""
    folder = tmp_path_factory.mktemp("pushed")
    clone = folder / "ups"
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    git(folder, "init", "-q", "--bare", "-b", "main", "remote.git")
    git(clone, "init", "-q", "-b", "main")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "x")
    git(clone, "remote", "add", "origin", str(folder / "remote.git"))
    git(clone, "push", "-q", "-u", "origin", "main")
    with public_git(folder) as url:
        git(clone, "remote", "set-url", "origin", f"{url}/remote.git")
        yield clone


@pytest.fixture
def server():
    with VastServer(token_hex(16)) as server:
        yield server


@pytest.fixture
def launch(clone, server, tmp_path):
    """`launch("stage=operator", ...)` in an empty folder -> the completed process."""

    def run(*overrides: str, wait: bool = True, **environment: str):
        environment = (
            clean_environment(tmp_path) | {"VAST_URL": server.url, "VAST_API_KEY": server.key, "COLUMNS": "160"}
            | environment
        )
        process = subprocess.Popen(
            [sys.executable, str(clone / "launch_vast.py"), *sorted([*QUICK, *overrides], key=is_override)],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        return finished(process) if wait else process

    return run


def is_override(word: str) -> bool:
    """Hydra takes them in one piece, after its `-m`."""
    return not word.startswith("-")


@pytest.fixture
def rent(server, tmp_path, monkeypatch):
    """`rent()`: what a launch in that folder leaves behind, without its checks."""
    monkeypatch.setenv("VAST_URL", server.url)
    monkeypatch.setenv("VAST_API_KEY", server.key)
    server.loading_seconds = 0.05
    return lambda: rent_one(Ledger(tmp_path / "rentals"))


def finished(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, error = process.communicate(timeout=150)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def error_of(answer) -> str:
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    return line


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["+auto_shutdown=true", "auto_shutdown=true", "++auto_shutdown=true"])
def test_three_spellings(spelling):
    assert composed("launch", [spelling]).auto_shutdown is True


def test_launch_rents_and_says_what_it_rented(launch, server, tmp_path, clone):
    answer = launch(*LOSSY, "stage=diffusion_residual", "seed=3", "store=elsewhere", "+auto_shutdown=true")
    assert answer.returncode == 0, answer.stderr
    (row,), (file,) = server.rows.values(), tmp_path.rglob("launch.json")
    told = json.loads(file.read_text())
    expected = {"instance_id": row["id"], "label": row["label"], "offer_id": 1000, "machine_id": 100, "branch": "main",
                "commit": git(clone, "rev-parse", "HEAD"), "price_per_hour": 0.31,
                "overrides": ["logger=none", "stage=diffusion_residual", "seed=3"]}  # fmt: skip
    assert expected.items() <= told.items()
    assert (file.parent / "onstart.sh").read_text() == row["onstart"]
    assert row["onstart"].splitlines()[1] == "set -- logger=none stage=diffusion_residual seed=3"
    for part in (f"vast.action=logs vast.follow=true vast.instance={row['id']}", "it destroys itself", "RTX 4090",
                 f"vast.action=destroy vast.instance={row['id']}", "$0.310 an hour, at most $0.95",
                 f"deadline {datetime.fromtimestamp(told['deadline']):%Y-%m-%d %H:%M:%S}, "):  # fmt: skip
        assert part in answer.stdout
    assert told["deadline"] - told["asked"] == pytest.approx(3 * 3600)
    assert re.search(r"│ +1000 │ .*│ +0\.310 │ +3\.0 │ +0\.95 │", answer.stdout)
    assert "vast.max_hours ends it after 3.00 h and $0.95 at most" in answer.stderr
    environment = dict(row["extra_env"])
    assert environment["UPS_SHUTDOWN"] == "1" and environment["UPS_PROVE"] == ""


def test_dry_run_rents_nothing_and_shows_no_secret(launch, server, tmp_path):
    secrets = {name: token_hex(20) for name in ("CONTAINER_API_KEY", "GIT_TOKEN")}
    with WandbServer(token_hex(32)) as tracker:
        answer = launch("vast.dry_run=true", "seed=1", **secrets, **tracker.environment)
    secrets["WANDB_API_KEY"] = tracker.api_key
    assert answer.returncode == 0, answer.stderr
    assert "nothing was rented" in answer.stdout and "python train.py seed=1" in answer.stdout
    assert not server.sent(CREATE) and len(list(tmp_path.rglob("onstart.sh"))) == 1
    assert not list(tmp_path.rglob("launch.json"))
    texts = [file.read_bytes().decode(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    texts += [answer.stdout, answer.stderr, *(repr(request.body) for request in server.requests)]
    assert not [text for text in texts for secret in (*secrets.values(), server.key) if secret in text]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+auto_shutdown=true"], "there is no key of W&B, so the deadline would destroy the only copy"),
        (["logger=csv"], "logger has no wandb, so the deadline would destroy the only copy"),
        ([*LOSSY, "vast.max_cots=1"], "did you mean vast.max_cost?"),
        ([*LOSSY, "+model.foo=1"], "model.foo: its class has no such key"),
        ([*LOSSY, "model.dilations=[]"], "model.dilations"),
        ([*LOSSY, "dataset.points=512"], "dataset.shifts=4: at most 2"),
        ([*LOSSY, "model=unet", "dataset.points=32", "model.levels=6"], "model.levels=6: 64 must"),
        ([*LOSSY, "stage=consistency_distill", "stage.unroll=50"], "stage.unroll=50 (consistency_distill): the"),
        ([*LOSSY, "dataset=pdebench_burgers", "dataset.path=/data/x.hdf5"], "a rented machine has only what"),
        ([*FETCHED, "dataset.path=README.md", "vast.disk=40", "vast.traffic=20"], "a rented machine fetches what is"),
        ([*FETCHED, "dataset.path=1D_Burgers_Sols_Nu0.01.hdf5"], "use vast.disk=40 vast.traffic=20"),
        ([*LOSSY, "runtime.compile=true"], "use vast.image=pytorch/pytorch:2.7.1-cuda12.6-cudnn9-devel"),
        ([*LOSSY, "runtime.max_hours=1"], "runtime.max_hours=1: on a rented machine the limit is vast.max_hours"),
        ([*LOSSY, "hydra.job.chdir=true"], "hydra.job.chdir=true: is not passed on to a rented machine"),
        ([*LOSSY, "vast.max_price=0.01"], "raise vast.max_price"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_everything_is_checked_before_a_cent_is_spent(overrides, message, launch, server):
    assert message in error_of(launch(*overrides))
    assert not server.sent(CREATE)


def test_code_that_the_machine_would_lack_rents_nothing(launch, server, clone):
    """One's own may lie anywhere; a file that nothing imports is not missed."""
    modules = {"own.py": "models.unet import UNet as Net", "watch.py": "callbacks.upload import Upload as Watch",
               "notes.py": "models.unet import UNet"}  # fmt: skip
    for name, imports in modules.items():
        (clone / name).write_text(f"from ups.{imports}\n")
    try:
        watched = "+callbacks.watch._target_=watch.Watch"
        refused = launch(*LOSSY, "model=unet", "model._target_=own.Net", watched)
        rents = launch(*LOSSY, "model=unet")
    finally:
        for name in modules:
            (clone / name).unlink()
    assert "not committed: own.py, watch.py; a rented machine trains what is pushed" in error_of(refused)
    assert rents.returncode == 0 and len(server.sent(CREATE)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vast.offer.gpus=0", "must be a whole number, at least 1"),
        ("vast.on_failure=keep", "must be one of destroy, hold"),
        ("auto_shutdown=maybe", "must be true or false or null"),
        ("vast.max_hours=0.25", "less than vast.min_hours=0.5"),
    ],
)
def test_a_value_that_is_no_launchs(override, message):
    with pytest.raises(UserError, match=f"^{override}: {message}"):
        check(composed("launch", [override]), "launch")


def set_hydra(*overrides: str, folder: str = "run") -> None:
    """As in a call of launch_vast.py."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        cfg = compose("launch", ["hydra.mode=RUN", *overrides], return_hydra_config=True)
    cfg.hydra.runtime.output_dir = folder
    HydraConfig.instance().set_config(cfg)


def passed(*overrides: str) -> list[str]:
    set_hydra(*overrides)
    return passed_on()


def test_what_is_passed_on_to_the_machine(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    here = ["vast.max_cost=1", "+auto_shutdown=true", "store=s", "cache=c", "hydra.run.dir=r", "hydra.sweep.dir=s",
            "hydra.verbose=true", "hydra/job_logging=default"]  # fmt: skip
    assert passed(*here, "seed=3", "~callbacks.figures") == ["seed=3", "~callbacks.figures"]
    more = "hydra.searchpath=[file://benchmarks/conf]"
    assert passed(more, "seed=3") == [more, "seed=3"]
    for place in ("file://not/there", f"file://{ROOT}/benchmarks/conf", "pkg://benchmarks.conf"):
        with pytest.raises(UserError, match=r"use hydra\.searchpath=\[file://FOLDER\]"):
            passed(f"hydra.searchpath=[file://benchmarks/conf,{place}]")


def test_an_option_of_ones_own_that_is_not_committed_is_not_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "a.yaml").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    passed(more := "hydra.searchpath=[file://own]")
    (tmp_path / "own" / "model" / "b.yaml").touch()
    with pytest.raises(UserError, match=r"^not committed: own/model/b\.yaml;"):
        passed(more)


def test_gpus_that_cannot_share_a_batch(launch, server):
    server.offers = [offer(0, num_gpus=3)]
    assert "stage.batch_size=16: 3 processes need equal parts" in error_of(launch(*LOSSY, "vast.offer.gpus=3"))
    assert not server.sent(CREATE)


def test_without_a_key(launch, server):
    assert "no key of Vast: export VAST_API_KEY" in error_of(launch(*LOSSY, VAST_API_KEY=""))


def test_what_is_not_pushed_is_not_rented(launch, server, clone):
    (clone / "conf" / "new.yaml").write_text("a: 1\n")
    try:
        assert "not committed: conf/new.yaml" in error_of(launch(*LOSSY))
    finally:
        (clone / "conf" / "new.yaml").unlink()
    assert not server.sent(CREATE)


# From end to end --------------------------------------------------------------------------------------------------


ENDING = ("UPS_PROVE", "UPS_ON_FAILURE", "UPS_SHUTDOWN")  # what the machine is told of saving and ending
SMALLER = [override for override in SMALL if not override.startswith("stage.")]


def test_the_whole_rental_on_this_computer(launch, tmp_path):
    """Clone, install, train, upload, prove, destroy: with nothing of it replaced but the two services."""
    started = time.monotonic()
    answer = launch("vast.rehearse=true", "stage=diffusion_residual", *SMALLER, "+auto_shutdown=true",
                    VAST_URL="", VAST_API_KEY="", UPS_PAUSE="1")  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert time.monotonic() - started < 120
    assert answer.stdout.count(COMPLETE) == 1  # what was seen of the log is not shown again
    said = [answer.stdout.index(text) for text in ("results saved: ", COMPLETE, "is gone")]
    assert said == sorted(said)
    names = r"operator-\w{12}, diffusion_residual-\w{12}"
    assert re.search(f"results saved: {names} in tester/ups\n", answer.stdout)
    assert re.search(f"rehearsal: W&B holds {names}\n", answer.stderr)
    assert answer.stderr.endswith("rehearsal: the instance destroyed itself\n")
    (told,) = (json.loads(file.read_text()) for file in tmp_path.rglob("launch.json"))
    (result,) = tmp_path.glob(f"outputs/*/*/machines/{told['instance_id']}/ups/run/result.json")
    assert json.loads(result.read_text())["git_commit"] == told["commit"]


@pytest.mark.parametrize(
    ("seen", "lines", "shared"), [("abc", "bcd", 2), ("abc", "abc", 3), ("a", "aab", 1), ("", "a", 0), ("a", "b", 0)]
)
def test_lines_of_a_log_that_were_seen(seen, lines, shared):
    assert overlap(list(seen), list(lines)) == shared


def test_a_rehearsal_needs_what_the_machines_script_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="flock, setsid is not installed here"), rehearsed(composed("launch"), tmp_path):
        pass


def test_a_rehearsal_says_what_failed(launch):
    answer = launch("vast.rehearse=true", *SMALLER, *LOSSY, "runtime.device=cuda:99", "+auto_shutdown=true",
                    "vast.offer.reliability=0.999", "vast.disk=250", "vast.max_price=0.3",
                    VAST_URL="", VAST_API_KEY="", UPS_PAUSE="1")  # fmt: skip
    assert "rehearsal: the training failed or was not saved" in error_of(answer)


def test_two_gpus_and_no_secret_anywhere(launch, server, tmp_path):
    """A launch, not a rehearsal, so that the keys are known; two processes of one CPU play the GPUs."""
    machines = tmp_path / "machines"
    server.machines = machines
    server.environment = inherited_environment(tmp_path) | {
        "PATH": f"{interpreter(machines)}:{os.environ['PATH']}", "UPS_PAUSE": "1",
    }  # fmt: skip
    server.offers = [offer(0, num_gpus=2)]
    git_token = token_hex(16)
    with WandbServer(token_hex(32)) as tracker:
        answer = launch(*SMALLER, "vast.offer.gpus=2", "vast.follow=true", "vast.poll_seconds=0.5",
                        "+auto_shutdown=true", GIT_TOKEN=git_token, **tracker.environment)  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"results saved: operator-\w{12} in tester/ups\n", answer.stdout) and not server.rows
    (run,) = tracker.runs.values()
    assert run.state == "finished" and run.id.startswith("ups-until-")
    (create,) = server.sent(CREATE)
    environment = create.body.pop("env")
    assert environment["WANDB_API_KEY"] == tracker.api_key
    assert [environment[name] for name in ENDING] == ["insist", "destroy", "1"]
    assert "GIT_TOKEN" not in environment  # a public remote needs none
    secrets = [tracker.api_key, git_token, server.key, *server.keys_gone]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "launch.json" for file in files) and any("repo" in file.parts for file in files)
    texts = [file.read_bytes().decode(errors="replace") for file in files] + [answer.stdout, answer.stderr]
    texts += [repr(request.body) for request in server.requests] + [repr(body) for *_, body in tracker.requests]
    assert len(secrets) == 4 and not [text for text in texts for secret in secrets if secret in text]


# Ctrl-C --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "number"),
    [("search", signal.SIGINT), ("create, before", signal.SIGINT), ("create, after", signal.SIGINT),
     ("loading", signal.SIGINT), ("destroy", signal.SIGINT), ("create, after", signal.SIGTERM),
     ("loading", signal.SIGTERM), ("create, after", signal.SIGHUP), ("loading", signal.SIGHUP)],
)  # fmt: skip
def test_ctrl_c_leaves_nothing_rented(step, number, launch, server):
    requests = {"search": "POST /api/v0/bundles/", "loading": r"GET /api/v0/instances/\d+/", "destroy": DESTROY}
    request = requests.get(step, CREATE)
    if step != "loading":
        server.faults.append(Fault(request, "hang", after=step == "create, after"))
    server.stays_loading = set(range(200))
    server.exits = {100} if step == "destroy" else set()
    server.loading_seconds = 0.3
    process = launch(*LOSSY, wait=False)
    wait_for(lambda: server.sent(request))
    process.send_signal(number)
    if step == "loading":
        process.send_signal(number)  # once more, while it destroys
    answer = finished(process)
    assert answer.returncode == 128 + number, answer.stderr
    assert not server.rows and len(server.sent(CREATE)) == (step != "search") and "Traceback" not in answer.stderr
    told = {"search": "", "create, before": "no instance has the label"}.get(step, "nothing is left rented")
    assert told in answer.stderr


@pytest.mark.parametrize("kind", READERS)
def test_a_closed_terminal_leaves_nothing_rented(kind, clone, server, tmp_path):
    """No line of the clean-up can be printed any more."""
    server.stays_loading = set(range(200))
    environment = clean_environment(tmp_path) | {"VAST_URL": server.url, "VAST_API_KEY": server.key}
    reader = kind([sys.executable, str(clone / "launch_vast.py"), *LOSSY, *QUICK], tmp_path, environment)
    wait_for(lambda: server.sent(r"GET /api/v0/instances/\d+/"))
    reader.close()
    assert reader.process.wait(30) == READERS[kind]
    assert not server.rows and len(server.sent(CREATE)) == 1


def test_ctrl_c_in_a_sweep_tells_what_goes_on(launch, server):
    """The machine of an earlier job runs and is billed."""
    server.stays_loading = {101}
    process = launch("-m", *LOSSY, "seed=1,2,3", wait=False)
    wait_for(lambda: len(server.sent(CREATE)) == 2)
    process.send_signal(signal.SIGINT)
    answer = finished(process)
    (row,) = server.rows.values()
    assert answer.returncode == 130 and row["machine_id"] == 100, answer.stderr
    assert "of this try nothing is left rented" in answer.stderr and "same command" not in answer.stderr
    table = answer.stdout[answer.stdout.index("Rented by this sweep") :]
    assert str(row["id"]) in table and "SIGINT: stopped" in table and "seed=3" not in table


def test_ctrl_c_after_the_machine_runs_leaves_it_running(launch, server):
    process = launch(*LOSSY, "vast.follow=true", wait=False)
    wait_for(lambda: server.sent(r"PUT /api/v0/instances/request_logs/\d+/"))
    process.send_signal(signal.SIGINT)
    answer = finished(process)
    assert answer.returncode == 130 and "goes on without an onlooker" in answer.stderr and len(server.rows) == 1


def test_ctrl_c_before_the_rental_is_announced_tells_of_it(rent, tmp_path, monkeypatch, capsys):
    """The machine runs, and nobody has read its number yet."""

    def rented(cfg):
        rent()
        raise Interrupted(signal.SIGINT, "SIGINT: stopped")

    monkeypatch.setattr(command, "rented", rented)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    folder = str(tmp_path / "rentals")
    set_hydra(folder=folder)
    with pytest.raises(Interrupted):
        command.launch(composed("launch", [f"vast.ledger={folder}"]), [])
    (rental,) = Ledger(Path(folder)).rentals()
    assert f"STILL BILLED: instance {rental.instance_id} is still there" in capsys.readouterr().err


def killed_while_asking(launch, server) -> dict:
    """kill -9 in the middle of the request -> the instance that was made of it."""
    server.faults.append(Fault(CREATE, "hang", after=True))
    process = launch(*LOSSY, wait=False)
    wait_for(lambda: server.rows)
    process.kill()
    finished(process)
    (row,) = server.rows.values()
    return row


def test_a_launcher_that_is_killed_is_swept_up(launch, server):
    """The label was written before it, so `reap` finds what nobody heard of."""
    row = killed_while_asking(launch, server)
    assert "nothing to reap among 1 instances" in finished_text(launch("vast.action=reap"))
    row["label"] = new_label(time.time() - 60)
    assert f"destroy {row['id']}?" in launch("vast.action=reap").stdout and server.rows
    assert "is gone" in finished_text(launch("vast.action=reap", "vast.yes=true"))
    assert not server.rows


def test_what_a_killed_launcher_had_asked_for_can_be_looked_after(launch, server):
    """Its id came in no answer."""
    number = killed_while_asking(launch, server)["id"]
    told = finished_text(launch("vast.action=status"))
    assert str(number) in told and "reap" not in told
    assert f"instance {number} is gone" in finished_text(launch("vast.action=destroy"))
    assert not server.rows


def test_an_instance_that_is_seen_too_late_is_swept_up(launch, rent, server, tmp_path):
    """Nobody waits for it: the launcher has gone on to the next offer."""
    server.faults.append(Fault(CREATE, (504, {})))
    rent()
    given_up, rented = Ledger(tmp_path / "rentals").rentals()
    (row,) = server.rows.values()
    server.rows[1] = {**row, "id": 1, "label": given_up.label}
    assert "instance 1 (" in finished_text(launch("vast.action=status"))
    assert "instance 1 is gone" in finished_text(launch("vast.action=reap", "vast.yes=true"))
    assert set(server.rows) == {rented.instance_id}


def finished_text(answer) -> str:
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


# Looking after -------------------------------------------------------------------------------------------------------


def test_status_logs_destroy(launch, rent, server, tmp_path):
    server.last_id = 27_384_000  # as long as the service's are
    rental = two_hours_ago(rent(), tmp_path)
    (row,) = server.rows.values()
    status = finished_text(launch("vast.action=status", COLUMNS="80"))
    cells = [line.split("│")[1:-1] for line in status.splitlines() if line.startswith("│")]
    columns = ("".join(column).replace(" ", "") for column in zip(*cells, strict=True))
    number, gpu, state, hours, cost, *fixed = columns
    assert f" {row['id']} " in status and (number, gpu, state) == (str(row["id"]), "1xRTX4090", "running")
    assert (float(hours), float(cost)) == (pytest.approx(2, abs=0.02), pytest.approx(0.64, abs=0.01))
    assert fixed == ["0.95", f"{datetime.fromtimestamp(rental.deadline):%m-%d%H:%M}", "0" * 9, "stage=operator"]
    machine = server.running[row["id"]] = Machine(tmp_path / "machine", "sh", {})
    (machine.folder / "output").write_text("a line\n")
    assert "a line" in finished_text(launch("vast.action=logs"))
    assert f"instance {row['id']} is gone, $0.64" in finished_text(launch("vast.action=destroy"))
    assert not server.rows
    assert "destroyed" in finished_text(launch("vast.action=status"))
    assert "vast.instance=None: none in rentals" in error_of(launch("vast.action=destroy"))


def two_hours_ago(rental: Rental, folder: Path) -> Rental:
    """Rented then: $0.64 by the clock, with its traffic."""
    rental.asked -= 2 * 3600
    Ledger(folder / "rentals").save(rental)
    return rental


def test_destroy_that_fails_is_said(launch, rent, server):
    rent()
    server.faults.append(Fault(DESTROY, (200, {"success": False}), times=99))
    assert "STILL BILLED" in error_of(launch("vast.action=destroy"))


def test_destroy_by_id_from_anywhere(launch, rent, server, tmp_path):
    """The command that is printed where a bill may go on works without this ledger, and not on others' instances."""
    rent()
    (row,) = server.rows.values()
    server.rows[1] = {**row, "id": 1, "label": "somebody-else"}
    shutil.rmtree(tmp_path / "rentals")
    assert "has the label somebody-else" in error_of(launch("vast.action=destroy", "vast.instance=1"))
    assert "vast.instance=2 is not there" in error_of(launch("vast.action=destroy", "vast.instance=2"))
    finished_text(launch("vast.action=destroy", f"vast.instance={row['id']}"))
    assert set(server.rows) == {1}


def test_logs_by_id_from_anywhere(rent, server, tmp_path, capsys):
    number = rent().instance_id
    machine = server.running[number] = Machine(tmp_path / "machine", "sh", {})
    (machine.folder / "output").write_text("a line\n")
    shutil.rmtree(tmp_path / "rentals")
    show = lambda *more: logs(composed("launch", [f"vast.instance={number}", *more]).vast, Vast(0.02, 3),
                              Ledger(tmp_path / "rentals"))  # fmt: skip
    show()
    assert "a line" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"^vast.instance={number} is not in .*rentals, so leave out vast.follow$"):
        show("vast.follow=true")


def test_logs_of_an_instance_that_is_gone(rent, server, tmp_path):
    rental = rent()
    server.rows.clear()
    with pytest.raises(UserError, match=f"^vast.instance={rental.instance_id} is gone, and its log with it"):
        logs(composed("launch").vast, Vast(0.02, 3), Ledger(tmp_path / "rentals"))


def test_status_with_another_key_loses_nothing(launch, rent, server):
    rent()
    rows, server.rows = server.rows, {}
    assert "destroyed" in finished_text(launch("vast.action=status"))
    server.rows = rows
    assert "running" in finished_text(launch("vast.action=status"))


def test_reap_leaves_a_stopped_disk_that_may_hold_the_only_copy(launch, rent, server):
    rent()
    (row,) = server.rows.values()
    row |= {"intended_status": "stopped", "label": new_label(time.time() - 60)}
    answer = finished_text(launch("vast.action=reap", "vast.yes=true"))
    assert f"vastai start instance {row['id']}" in answer and "nothing to reap" in answer and server.rows


def test_reap_leaves_a_machine_that_was_started_to_save(launch, rent, server):
    """For as long as its script takes for that at most; where the service does not say since when, it asks."""
    row = server.rows[rent().instance_id]
    row |= {"uptime_mins": 3.0, "label": new_label(time.time() - 3600)}
    assert "past its deadline" not in finished_text(launch("vast.action=status"))
    assert "may be saving its results" in finished_text(launch("vast.action=reap", "vast.yes=true")) and server.rows
    row["uptime_mins"] = None
    assert "was just started to save its results would lose them" in launch("vast.action=reap").stdout and server.rows
    row["uptime_mins"] = 16.0
    assert "past its deadline" in finished_text(launch("vast.action=status"))
    finished_text(launch("vast.action=reap", "vast.yes=true"))
    assert not server.rows


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("Yes", 0), ("n", 1), ("", 1)])
def test_reap_asks_first(answer, left, rent, server, tmp_path, monkeypatch):
    row = server.rows[rent().instance_id]
    row["label"] = new_label(time.time() - 60)
    monkeypatch.setattr("sys.stdin", StringIO(f"{answer}\n"))
    with pytest.raises(UserError, match=r"^nothing was destroyed: answer y") if left else nullcontext():
        reap(composed("launch").vast, Vast(0.02, 3), Ledger(tmp_path / "rentals"))
    assert len(server.rows) == left


def watch_until_gone(server, watch, log: str) -> None:
    number = watch[2].instance_id
    server.running[number] = machine = Machine(watch[1].folder / "machine", "sh", {})
    (machine.folder / "output").write_text(log)
    threading.Timer(0.5, server._destroy, [number]).start()
    try:
        follow(*watch)
    finally:
        assert not server.rows


def test_who_watches_a_machine_that_was_started_to_save_waits_for_its_end(rent, server, tmp_path):
    rental = rent()
    rental.deadline = time.time() - 3600
    row, watch = server.rows[rental.instance_id], (Vast(0.02, 3), Ledger(tmp_path / "rentals"), rental, 0.05)
    row["uptime_mins"] = 16.0
    with pytest.raises(UserError, match=f"past its deadline.*`vastai start instance {rental.instance_id}`"):
        follow(*watch)
    row["uptime_mins"] = 3.0
    watch_until_gone(server, watch, "ups 12:00:00 Training complete - auto-shutdown in 10 seconds...\n")


@pytest.mark.parametrize(
    ("log", "told"),
    [("ups 12:00:00 Training failed (1) - auto-shutdown in 10 seconds...", "training failed (1), see the log above"),
     ("nRMSE 0.1", "not seen to the end"), ("echo ups 12:00:00 Training complete", "not seen to the end")],
)  # fmt: skip
def test_who_watches_is_told_what_is_not_known_to_be_complete(log, told, rent, server, tmp_path):
    rental, ledger = two_hours_ago(rent(), tmp_path), Ledger(tmp_path / "rentals")
    with pytest.raises(TrainingFailed, match=rf"{rental.instance_id} is gone, \$0\.64\d by .*{re.escape(told)}"):
        watch_until_gone(server, (Vast(0.02, 3), ledger, rental, 0.05), log + "\n")
    assert not ledger.rentals()[0].is_open


def test_who_watches_and_loses_the_service_is_told_that_the_bill_goes_on(rent, server, tmp_path):
    rental = rent()
    server.faults.append(Fault(rf"GET /api/v0/instances/{rental.instance_id}/", (500, {}), times=5))
    with pytest.raises(UserError, match=f"STILL BILLED: instance {rental.instance_id} "):
        follow(Vast(0.01, 3), Ledger(tmp_path / "rentals"), rental, 0.05)
    assert rental.instance_id in server.rows


def test_reap_leaves_what_is_not_ours_and_what_is_in_time(launch, rent, server, tmp_path):
    rent()
    (mine,) = server.rows.values()
    other = {**mine, "id": 1, "label": "somebody-else"}
    unknown = {**mine, "id": 2, "label": new_label(time.time() + 3600), "offer": {}}
    server.rows |= {1: other, 2: unknown}
    answer = launch("vast.action=reap", "vast.yes=true")
    assert "instance 2" in answer.stdout and "not in rentals" in answer.stdout
    assert set(server.rows) == {1, mine["id"]}
    assert [rental.is_open for rental in Ledger(tmp_path / "rentals").rentals()] == [True]


# Sweeps --------------------------------------------------------------------------------------------------------------


def test_a_sweep_rents_one_for_each_and_outlives_a_failure(launch, server, tmp_path):
    class RefusesSeedTwo(VastServer):
        def _create(self, offer_id, body):
            if "seed=2" in body["onstart"]:
                return 200, {"success": False, "error": "refused"}
            return super()._create(offer_id, body)

    server.__class__ = RefusesSeedTwo
    answer = launch("-m", *LOSSY, "seed=1,2,3,-1")
    assert error_of(answer) == "error: 2 of 4 jobs failed"
    for job, reason in ((r"1 .*seed=2", "Vast gives none of its offers: refused"), (r"3 .*seed=-1", "seed=-1: must")):
        assert re.search(rf"^job {job}\): {reason}", answer.stderr, re.MULTILINE)
    table = answer.stdout[answer.stdout.index("Rented by this sweep") :]
    assert all(f"seed={seed}" in table for seed in (1, 2, 3))
    rented = [rental for rental in Ledger(tmp_path / "rentals").rentals() if rental.is_open]
    assert len(server.rows) == len(rented) == len(list(tmp_path.rglob("launch.json"))) == 2
    for rental in rented:
        until, dollars = f"{datetime.fromtimestamp(rental.deadline):%m-%d %H:%M}", f"{rental.cost_limit:.2f}"
        assert re.search(rf"│ {rental.instance_id} +│ 1x RTX 4090 │ {dollars} +│ {until} +│", table)


def test_a_sweep_has_one_limit_for_all(launch, server):
    """0.95 each: a third would be cut to what is left, which is less than half an hour."""
    answer = launch("-m", *LOSSY, "seed=1,2,3", "vast.max_total_cost=2")
    assert "1 of 3 jobs failed" in error_of(answer) and len(server.rows) == 2
    assert re.search(r"^job 2 .*vast\.max_total_cost", answer.stderr, re.MULTILINE)


def test_a_rental_whose_file_cannot_be_written_is_in_the_sweeps_table(launch, server, tmp_path):
    (tmp_path / "sweep" / "0" / "launch.json").mkdir(parents=True)
    answer = launch("-m", *LOSSY, "seed=1", "hydra.sweep.dir=sweep")
    assert re.search(r"^job 0 .*launch\.json.*STILL BILLED", answer.stderr, re.MULTILINE)
    (number,) = server.rows
    assert str(number) in answer.stdout[answer.stdout.index("Rented by this sweep") :]


def test_a_sweep_that_is_followed_has_each_end_in_its_table(launch, server, tmp_path):
    process = launch("-m", *LOSSY, "seed=1", "vast.follow=true", wait=False)
    wait_for(lambda: list(tmp_path.rglob("launch.json")))
    (number,) = server.rows
    server._destroy(number)
    answer = finished(process)
    table = answer.stdout[answer.stdout.index("Rented by this sweep") :]
    assert "1 of 1 jobs failed" in error_of(answer) and "STILL BILLED" not in answer.stderr
    assert f"instance {number} is gone" in " ".join(table.replace("│", " ").split())


def test_a_launch_that_fails_says_nothing_of_an_earlier_one_in_its_folder(launch, server):
    assert launch(*LOSSY, "hydra.run.dir=same").returncode == 0
    answer = launch(*LOSSY, "hydra.run.dir=same", "vast.max_price=0.01")
    assert "vast.max_price" in error_of(answer) and "STILL BILLED" not in answer.stderr and len(server.rows) == 1


def test_a_key_that_is_not_needed_is_not_sent(launch, server):
    assert launch(*LOSSY, WANDB_API_KEY="0" * 40).returncode == 0
    assert "WANDB_API_KEY" not in server.sent(CREATE)[0].body["env"]


def test_the_server_of_the_clients_own_settings_is_told_to_the_machine(launch, server, tmp_path):
    """As `wandb login --host URL` leaves it."""
    with WandbServer(token_hex(32)) as tracker:
        settings = tmp_path / ".config" / "wandb" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(f"[default]\nbase_url = {tracker.url}\n")
        environment = {name: value for name, value in tracker.environment.items() if name != "WANDB_BASE_URL"}
        answer = launch("-m", "vast.on_failure=hold", "vast.allow_loss=false,true", **environment)
    assert answer.returncode == 0, answer.stderr
    insists, tries = (create.body["env"] for create in server.sent(CREATE))
    assert insists["WANDB_BASE_URL"] == tracker.url
    assert [insists[name] for name in ENDING] == ["insist", "hold", ""] and tries["UPS_PROVE"] == "try"


@pytest.mark.parametrize(("team", "code"), [("us", 0), (None, 1)])
def test_a_run_goes_to_an_entity_of_the_account_and_nowhere_else(team, code, launch, server):
    """Where the account may not write the run would go on offline, and its results never be proven saved."""
    with WandbServer(token_hex(32)) as tracker:
        tracker.team = team
        answer = launch("+auto_shutdown=true", WANDB_ENTITY="us", **tracker.environment)
    assert answer.returncode == code, answer.stderr
    created = server.sent(CREATE)
    if team:
        assert f"{tracker.url}/us/ups/runs/ups-until-" in answer.stdout
        assert created[0].body["env"]["WANDB_ENTITY"] == "us"
    else:
        assert "W&B's entity us " in error_of(answer) and "logger.wandb.entity=tester" in answer.stderr and not created


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:8080"])
def test_a_server_of_wandb_that_the_machine_cannot_reach_rents_nothing(url, monkeypatch):
    """In the tests it can: there Vast's machines are this computer's too."""
    for name in ("VAST_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(UserError, match=f"{re.escape(url)} is this computer's.* wandb login --host URL"):
        command.job_of(composed("launch"))


def test_a_wandb_that_answers_strangely_is_one_line(monkeypatch):
    def fails(cfg):
        raise RuntimeError("500: a proxy's page")  # its own error derives from none of those before Exception

    monkeypatch.setattr(command, "writable_project", fails)
    with pytest.raises(UserError, match=r"^W&B does not take the key or does not answer \(500: a proxy's page\)"):
        command.answering_project(composed("launch"))


def test_a_key_that_wandb_refuses_rents_nothing(launch, server):
    with WandbServer() as tracker:
        answer = launch("+auto_shutdown=true", **tracker.environment | {"WANDB_API_KEY": "0" * 40})
    assert "W&B does not take the key" in error_of(answer) and not server.sent(CREATE)
