"""What a rented machine runs: onstart.sh as it is sent, under bash and dash, with the real instance.py, against the
stand-in service, which kills a machine's processes when it is destroyed. The training is a few lines that do what the
fault says; test_launch.py has the real one.
"""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from git_repos import git, private_git

from ups.errors import UserError
from ups.files import locked
from ups.launch import instance
from ups.launch.job import END_MARK, GRACE, MAX_BYTES, SCRIPT, Job
from ups.launch.ledger import new_label
from ups.launch.rehearsal.vast_server import Fault, Machine, VastServer, inherited_environment
from ups.launch.repository import Source
from ups.launch.vast_api import Vast

pytestmark = pytest.mark.slow

DESTROY = r"DELETE /api/v0/instances/\d+/"
STOP = r"PUT /api/v0/instances/\d+/"
COMPLETE = "Training complete - auto-shutdown in 10 seconds..."

TRAIN = '''
import json, os, signal, sys, time
from pathlib import Path
*overrides, store, run = sys.argv[1:]
Path(run.partition("=")[2]).mkdir(exist_ok=True)
starts = Path("../starts")
with open(starts, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
start = len(starts.read_text().splitlines())
mode = overrides[0]
print("training, start", start, flush=True)
if "FINISHED" in os.environ:
    Path(os.environ["FINISHED"]).mkdir(parents=True, exist_ok=True)
    Path(os.environ["FINISHED"], "weights.safetensors").touch()
if mode == "raise":
    raise RuntimeError("a bug")
if mode == "killed" or (mode == "killed-twice" and start < 3):
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "full":
    Path("big").write_bytes(b"0" * 2**24)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode in ("hang", "deaf") or (mode == "hang-once" and start == 1):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if mode != "deaf" else None
    time.sleep(600)
'''
# Proves from the third time on, or never: as W&B does that cannot be reached at the end.
PROOF = '''
import os, sys
from pathlib import Path
file = Path("../proofs")
with open(file, "a") as proofs:  # not written anew: the deadline may come in between
    proofs.write(sys.argv[1] + "\\n")
sys.exit(len(file.read_text().splitlines()) < int(os.environ.get("PROVES_AT", 1)))
'''


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("repository")
    files = {
        "train.py": TRAIN, "requirements.txt": "vastai>=99\nruff>=99\npip>=20\n", "ups/__init__.py": "",
        "ups/launch/__init__.py": "", "ups/launch/instance.py": (ROOT / "ups/launch/instance.py").read_text(),
        "ups/runs/__init__.py": "", "ups/runs/proof.py": PROOF,
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Source(str(folder), "main", commit(folder), None)


def commit(folder: Path) -> str:
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


class Renter:
    """Rents machines that run the real script; `self.server` is the service."""

    seconds_to_train = 0.0  # from the request, measured once: see `short`

    def __init__(self, server: VastServer, source: Source):
        self.server, self.source = server, source

    def rent(self, *overrides: str, seconds: float = 600, **changes) -> int:
        job = Job(
            source=self.source, overrides=overrides, gpus=1, auto_shutdown=True, prove="insist", on_failure="destroy",
            settings={"UPS_PAUSE": "0"}, secrets={}, wandb_page=None,
        )  # fmt: skip
        job = dataclasses.replace(job, **changes)
        deadline = time.time() + seconds
        label = new_label(deadline)
        vast = Vast(0.1, 5)
        offer = next(each["id"] for each in self.server.offers if each["rentable"])
        return vast.create(
            offer, image="i", disk=10, label=label, onstart_cmd=job.script, env=job.environment(label, deadline)
        )

    @property
    def short(self) -> float:
        """Seconds of a rental that begins to train well before its deadline, by what the first took to begin."""
        if not Renter.seconds_to_train:
            began = time.time()
            number = self.rent("hang")
            self.says(number, "training, start 1")
            Renter.seconds_to_train = time.time() - began
            self.server.machine_of(number).kill()
        return 6 + 4 * Renter.seconds_to_train

    def until(self, condition) -> None:
        limit = time.monotonic() + 120  # a machine's git and pip are real, and slow beside other work
        while not condition():
            assert time.monotonic() < limit, {number: self.log(number) for number in self.server.running}
            time.sleep(0.25)

    def until_its_deadline(self, number: int) -> None:
        deadline = float(dict(self.server.rows[number]["extra_env"])["UPS_DEADLINE"])
        time.sleep(max(deadline + 0.5 - time.time(), 0))

    def gone(self, number: int) -> str:
        """Waits for the end of the rental; -> the machine's output."""
        self.until(lambda: number not in self.server.rows)
        machine = self.server.machine_of(number)
        self.until(lambda: not machine.processes())
        return machine.output()

    def log(self, number: int) -> str:
        return self.server.machine_of(number).output() if number in self.server.running else ""

    def says(self, number: int, text: str) -> None:
        self.until(lambda: text in self.log(number))

    def file(self, number: int, name: str) -> Path:
        return self.server.machines / str(number) / "ups" / name


@pytest.fixture(scope="session")
def bare_python(cache) -> Path:
    """A folder with a python3 that has pip and nothing else, which starts fast; one for all workers."""
    home = cache.parent / "python"
    with locked(home):
        if not home.exists():
            venv.create(home, with_pip=True, symlinks=True)
    return home / "bin"


@pytest.fixture(params=["bash"])
def renter(request, repository, bare_python, tmp_path, monkeypatch):
    environment = inherited_environment(tmp_path)
    environment["PATH"] = f"{bare_python}:{environment['PATH']}"
    with VastServer("account-key", tmp_path / "machines", environment, shell=request.param) as server:
        monkeypatch.setenv("VAST_URL", server.url)
        monkeypatch.setenv("VAST_API_KEY", server.key)
        yield Renter(server, repository)


both_shells = pytest.mark.parametrize("renter", ["bash", "dash"], indirect=True)


# The script as it is sent ------------------------------------------------------------------------------------------


def test_the_script_is_clean():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    answer = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_the_script_fits_with_a_kilobyte_of_overrides():
    job = Job(Source("", "", "", None), ("a" * 1000,), 1, True, "insist", "destroy", {}, {}, None)
    assert len(job.script.encode()) <= MAX_BYTES and job.script.endswith(END_MARK)
    assert f"+ {GRACE}))" in job.script
    for shell in ("bash", "dash"):
        assert subprocess.run([shell, "-n"], input=job.script, text=True).returncode == 0
    with pytest.raises(UserError, match="conf/experiment"):
        dataclasses.replace(job, overrides=("a" * 1200,)).script  # noqa: B018


AWKWARD = ("x= a  b", "y='single' \"double\"", "z=$(touch ../no) `id` $HOME", "w=line\nanother", "v=\\n!;&|<>*?#~")


@both_shells
def test_trains_proves_and_destroys_itself(renter):
    """And every override arrives as it was, whatever is in it."""
    number = renter.rent("mode", *AWKWARD)
    output = renter.gone(number)
    (arguments,) = map(json.loads, renter.file(number, "starts").read_text().splitlines())
    assert arguments == ["mode", *AWKWARD, "store=store", f"hydra.run.dir={renter.file(number, 'run')}"]
    assert renter.file(number, "proofs").read_text() == f"{renter.file(number, 'run')}\n"
    assert output.index("training, start 1") < output.index(COMPLETE)
    keys = {request.key for request in renter.server.sent(DESTROY)}
    assert len(keys) == 1 and renter.server.key not in keys  # the machine's own restricted one
    assert "BILLED" not in output
    assert not list(renter.server.machines.rglob("no"))


def test_waits_ten_seconds_for_the_logs(renter):
    number = renter.rent("mode", settings={"UPS_PAUSE": "4"})
    output = renter.gone(number)
    said = [int(part) for part in re.search(rf"ups (\d+):(\d+):(\d+) {COMPLETE}", output).groups()]
    destroyed = renter.server.sent(DESTROY)[0].time
    assert (destroyed - 3600 * said[0] - 60 * said[1] - said[2]) % 86400 >= 10


PYTHON = 'for last; do :; done; echo "$PWD $U $1 $last" >>"$CALLS"'  # where it was called, for which service, how


def test_the_folder_the_python_and_the_service_of_a_real_machine(repository, tmp_path):
    """Which the other tests replace. Its Python writes down its calls, and there is no network."""
    python, script, calls = (tmp_path / name for name in ("python3", "onstart.sh", "calls"))
    python.write_text(f"#!/bin/sh\n{PYTHON}\n")
    python.chmod(0o755)
    job = Job(repository, ("mode",), 1, True, "insist", "destroy", {"UPS_PAUSE": "0", "CALLS": str(calls)}, {}, None)
    script.write_text(job.script)
    hide = "mount -t tmpfs none /root && mount -t tmpfs none /opt && mkdir -p /opt/conda/bin && cp $0 /opt/conda/bin"
    within = lambda text: subprocess.run(
        ["sh", "-c", 'exec unshare -rmn sh -c "$@"', "sh", text, str(python), str(script)], text=True,
        capture_output=True, timeout=60, env=inherited_environment(tmp_path) | job.environment("x", time.time() + 600)
        | {"CONTAINER_ID": "7", "CONTAINER_API_KEY": "key", "UPS_MACHINE": str(tmp_path)},
    )  # fmt: skip
    if (trial := within(hide)).returncode:
        pytest.skip(f"a user may not put other folders over /root and /opt here: {trial.stderr.strip()}")
    try:
        answer = within(f"{hide} && sh $1 && ls /root/ups")
    finally:  # a timer of a Python that does not only write
        Machine(tmp_path / "machine", "sh", {"UPS_MACHINE": str(tmp_path)}).kill()
    assert COMPLETE in answer.stdout and {"log", "repo", "saved"} <= set(answer.stdout.split()), answer
    url = "https://console.vast.ai/api/v0/instances/7/"
    timer = f"/ {url} -c /root/ups/unsaved"
    steps = [
        f"/ {url} -V -V", f"/root/ups {url} -c import torch", f"/root/ups {url} -m need",
        f"/root/ups/repo {url} -m mode", f"/root/ups {url} -c busy",
    ]  # fmt: skip
    called = calls.read_text().splitlines()
    assert timer in called and [each for each in called if each != timer] == steps


# The fault table ---------------------------------------------------------------------------------------------------


@both_shells
def test_training_raises(renter):
    number = renter.rent("raise")
    output = renter.gone(number)
    assert renter.file(number, "proofs").exists()  # what there is of it is uploaded
    assert "RuntimeError: a bug" in output and "Training failed (1) - auto-shutdown in 10 seconds..." in output


def test_training_killed_goes_on(renter):
    number = renter.rent("killed-twice")
    output = renter.gone(number)
    assert COMPLETE in output and len(renter.file(number, "starts").read_text().splitlines()) == 3


def test_training_killed_every_time(renter):
    output = renter.gone(renter.rent("killed"))
    assert output.count("training ended with 137") == 3 and "Training failed (137)" in output


@both_shells
def test_clone_fails(renter):
    output = renter.gone(renter.rent("mode", source=dataclasses.replace(renter.source, url="/nowhere")))
    assert output.count("clone failed") == 4 and "Training failed" in output


@both_shells
def test_no_folder_to_work_in(renter):
    variables = renter.server.variables
    renter.server.variables = lambda number: variables(number) | {"UPS_FOLDER": "/dev/null/ups"}
    output = renter.gone(renter.rent("mode"))
    assert "/dev/null/ups" in output and "training, start" not in output


def test_commit_gone_from_the_branch(renter, tmp_path):
    """After a forced push: a server that still has the commit gives it, and one that has not ends the rental."""
    folder = tmp_path / "rewritten"
    subprocess.run(["git", "clone", "-q", renter.source.url, str(folder)], check=True)
    git(folder, "commit", "-q", "--amend", "-m", "another")
    there = dataclasses.replace(renter.source, url=str(folder))
    assert COMPLETE in renter.gone(renter.rent("mode", source=there))
    git(folder, "reflog", "expire", "--expire=now", "--all")
    git(folder, "update-ref", "-d", "refs/remotes/origin/main")
    git(folder, "gc", "-q", "--prune=now")
    output = renter.gone(renter.rent("mode", source=there))
    assert "clone failed" in output and "training" not in output


def test_branch_deleted(renter):
    assert COMPLETE in renter.gone(renter.rent("mode", source=dataclasses.replace(renter.source, branch="gone")))


def test_a_private_repository_is_cloned_with_the_token_of_the_environment(renter, tmp_path):
    with private_git(Path(renter.source.url).parent, "git-token") as url:
        private = dataclasses.replace(renter.source, url=f"{url}/{Path(renter.source.url).name}")
        number = renter.rent("mode", source=private, secrets={"GIT_TOKEN": "git-token"})
        assert COMPLETE in renter.gone(number)
    assert not any(b"git-token" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_the_images_torch_stays(renter, tmp_path):
    """And so do the tests' and the launcher's packages at home; here no such version exists, so asking would fail.

    What only begins like torch is asked for.
    """
    folder = tmp_path / "wants"
    subprocess.run(["git", "clone", "-q", renter.source.url, str(folder)], check=True)
    needed = "torch-x; os_name == 'none'\nfilelock>=3\n"
    (folder / "requirements.txt").write_text(f"torch>=99\nvastai>=99\nruff>=99\n{needed}")
    renter.server.environment["PATH"] = f"{Path(sys.executable).parent}:{renter.server.environment['PATH']}"
    number = renter.rent("mode", source=Source(str(folder), "main", commit(folder), None))
    assert COMPLETE in renter.gone(number) and "failed" not in renter.log(number)
    assert renter.file(number, "need").read_text() == needed


def test_packages_fail(renter, tmp_path):
    folder = tmp_path / "bad"
    subprocess.run(["git", "clone", "-q", renter.source.url, str(folder)], check=True)
    (folder / "requirements.txt").write_text("no-such-package-of-ups @ file:///nowhere/at/all\n")
    output = renter.gone(renter.rent("mode", source=Source(str(folder), "main", commit(folder), None)))
    assert output.count("install failed") == 4 and "training" not in output


def test_disk_full(renter, tmp_path):
    small = tmp_path / "machines"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        output = renter.gone(renter.rent("full"))
        assert "No space left on device" in output and COMPLETE not in output  # the log is cut: its disk is full too
    finally:
        renter.server.__exit__()
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_hang_past_the_deadline(renter):
    """The training is stopped while there is time to upload its state; then the machine destroys itself."""
    short, started = renter.short, time.time()
    number = renter.rent("hang", seconds=short)
    output = renter.gone(number)
    assert "deadline is near" in output and "Training failed (124)" in output
    assert renter.file(number, "proofs").exists() and time.time() - started < short + 4


def test_a_training_that_hears_no_signal(renter):
    """It is killed, and its last state uploaded."""
    short = renter.short
    number = renter.rent("deaf", seconds=short)
    assert "Training failed (124)" in renter.gone(number)
    assert renter.file(number, "proofs").exists()


def test_a_script_that_hangs(renter):
    """Whatever it hangs in, the dead-man timer ends it."""
    short, started = renter.short, time.time()
    number = renter.rent("hang", seconds=short)
    renter.says(number, "training, start 1")
    for process in renter.server.machine_of(number).processes():
        if not is_timer(process):
            process.suspend()
    renter.gone(number)
    assert time.time() - started > short - 1


@pytest.mark.parametrize(("hours", "limits"), [(2, (6720, 150)), (1 / 6, (540, 18.75))], ids=["long", "short"])
def test_time_is_kept_to_stop_and_to_save(hours, limits, tmp_path, monkeypatch):
    """8 minutes, 2 1/2 of them from the signal to the kill; a tenth of a short rental."""
    given = []
    monkeypatch.setattr(instance, "run", lambda command, *limits: given.append(limits) or 0)
    assert instance.train(tmp_path, [], time.time() + 3600 * hours) == 0
    assert given == [pytest.approx(limits, abs=1)]


def test_proofs_come_at_most_five_minutes_apart(tmp_path, monkeypatch):
    """The machine is billed meanwhile. Each has more time than the one before."""
    spaces, limits = [], []
    for name, value in (("PROVE", "insist"), ("PAUSE", "4"), ("DEADLINE", str(time.time() + 7200))):
        monkeypatch.setenv(f"UPS_{name}", value)
    monkeypatch.setattr(instance, "train", lambda *_: 0)
    monkeypatch.setattr(instance, "proven", lambda _, seconds: limits.append(seconds) or len(limits) == 9)
    monkeypatch.setattr(instance.time, "sleep", spaces.append)
    assert instance.main(tmp_path, []) == 0
    assert spaces == [8, 16, 32, 64, 128, 256, 300, 300] and limits == [120 * proof for proof in range(1, 10)]


@both_shells
def test_main_script_killed(renter):
    """Billed until the deadline, when the dead-man timer ends it, which is in a session of its own."""
    short, started = renter.short, time.time()
    number = renter.rent("hang", seconds=short)
    renter.says(number, "training, start 1")
    timers = [process for process in renter.server.machine_of(number).processes() if is_timer(process)]
    groups = {os.getpgid(process.pid) for process in renter.server.machine_of(number).processes()}
    for group in groups - {os.getpgid(process.pid) for process in timers}:
        os.killpg(group, signal.SIGKILL)
    time.sleep(0.5)
    assert len(timers) == 1 and [p.pid for p in renter.server.machine_of(number).processes()] == [timers[0].pid]
    renter.gone(number)
    assert short - 1 < time.time() - started < short + 6


def is_timer(process) -> bool:
    return "no_such_instance" in " ".join(process.cmdline()) and "python" in process.name()


@pytest.mark.parametrize("answer", [(500, {}), (200, {"success": False}), "drop", (404, {"error": "auth_error"})])
def test_destroy_fails_three_times(answer, renter):
    """Tried again with growing spaces, and no answer but a read is believed."""
    renter.server.faults.append(Fault(DESTROY, answer, times=3))
    number = renter.rent("mode")
    output = renter.gone(number)
    times = [request.time for request in renter.server.sent(DESTROY)][:4]
    spaces = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(spaces) == 3 and spaces[0] >= 0.2 and spaces[1] >= 0.3 and spaces[2] >= 0.5
    assert output.count(f"end it: vastai destroy instance {number}") == 3


def test_nothing_seen_after_a_destroy_that_failed_is_no_end(renter):
    renter.server.faults += [Fault(DESTROY, (500, {}), times=2),
                             Fault(r"GET /api/v0/instances/\d+/", (200, {"instances": None}), times=2)]  # fmt: skip
    number = renter.rent("mode")
    assert renter.gone(number).count(f"end it: vastai destroy instance {number}") == 2


def test_a_destroy_that_is_only_said_to_be_done(renter):
    renter.server.faults.append(Fault(DESTROY, (200, {"success": True}), times=2))
    output = renter.gone(renter.rent("mode"))
    assert output.count("STILL BILLED") == 2


def test_the_end_is_read_back(renter):
    """Where the service still answers the key of an instance that is gone."""
    renter.server.keys_outlive = True
    assert renter.gone(renter.rent("mode")).endswith("ups destroyed\n")


def test_destroy_hangs(renter):
    renter.server.faults.append(Fault(DESTROY, "hang"))
    output = renter.gone(renter.rent("mode"))
    first, second = renter.server.sent(DESTROY)[:2]
    assert re.search(r"STILL BILLED \(.*timed out", output) and 20 < second.time - first.time < 40


def test_destroy_fails_always(renter):
    """After five tries a stop, which ends the bill of the GPU, and a line that says what is left."""
    renter.server.faults.append(Fault(DESTROY, (500, {}), times=99))
    number = renter.rent("mode")
    renter.until(lambda: renter.server.sent(STOP))
    assert len(renter.server.sent(DESTROY)) == 5
    assert renter.server.sent(STOP)[0].body == {"state": "stopped"}
    renter.until(lambda: not renter.server.machine_of(number).processes())
    assert renter.server.rows[number]["intended_status"] == "stopped" and "STILL BILLED" in renter.log(number)


@both_shells
@pytest.mark.parametrize("unset", ["CONTAINER_ID", "CONTAINER_API_KEY"])
def test_unset(unset, renter):
    """Said at the start and at the end; the launcher's watch and `reap` are what is left."""
    boot = renter.server.variables
    renter.server.variables = lambda number: boot(number) | {unset: ""}
    number = renter.rent("mode")
    renter.says(number, COMPLETE)
    renter.until(lambda: renter.log(number).count(f"{unset} not set - cannot auto-shutdown") == 2)
    assert number in renter.server.rows and not renter.server.sent(DESTROY)


def test_script_started_twice(renter):
    number = renter.rent("hang-once")
    renter.says(number, "training, start 1")
    renter.server.machine_of(number).start(renter.server.rows[number]["onstart"])
    renter.says(number, "already running")
    assert len(renter.file(number, "starts").read_text().splitlines()) == 1


def test_outbid_and_restarted(renter):
    number = renter.rent("hang-once")
    renter.says(number, "training, start 1")
    renter.server.restart(number)
    assert COMPLETE in renter.gone(number)
    assert len(renter.file(number, "starts").read_text().splitlines()) == 2


def test_a_restart_after_the_end_destroys_and_does_not_train(renter):
    renter.server.faults.append(Fault(DESTROY, (500, {}), times=99))
    number = renter.rent("mode")
    renter.until(lambda: renter.server.sent(DESTROY))
    renter.server.faults.clear()
    renter.server.restart(number)
    renter.gone(number)
    assert len(renter.file(number, "starts").read_text().splitlines()) == 1


def test_a_restart_over_the_deadline_saves_and_does_not_train(renter):
    """As one that was outbid and came back too late: its disk holds the only copy."""
    number = renter.rent("hang", seconds=renter.short)
    renter.says(number, "training, start 1")
    renter.server.machine_of(number).kill()
    renter.until_its_deadline(number)
    renter.server.restart(number)
    renter.gone(number)
    assert renter.file(number, "proofs").exists()
    assert len(renter.file(number, "starts").read_text().splitlines()) == 1


def test_wandb_unreachable_at_the_end(renter):
    """Nothing is destroyed before the results are proven saved."""
    number = renter.rent("mode", settings={"UPS_PAUSE": "1", "PROVES_AT": "3"})
    renter.until(lambda: renter.file(number, "proofs").exists())
    assert renter.file(number, "unsaved").exists() and not renter.server.sent(DESTROY)
    assert COMPLETE in renter.gone(number)
    assert len(renter.file(number, "proofs").read_text().splitlines()) == 3


def test_wandb_unreachable_until_the_deadline(renter):
    """Stopped, not destroyed: the disk keeps the only copy, for cents; started again, it saves and is destroyed."""
    short = renter.short
    number = renter.rent("mode", seconds=short, settings={"UPS_PAUSE": "1", "PROVES_AT": "99"})
    renter.until(lambda: renter.server.sent(STOP))
    renter.until(lambda: not renter.server.machine_of(number).processes())
    assert not renter.server.sent(DESTROY) and number in renter.server.rows
    environment = dict(renter.server.rows[number]["extra_env"]) | {"PROVES_AT": "1"}
    renter.server.rows[number]["extra_env"] = [list(item) for item in environment.items()]
    renter.server.restart(number)
    assert COMPLETE in renter.gone(number)
    assert len(renter.file(number, "starts").read_text().splitlines()) == 1


def test_a_training_that_ran_out_of_time_is_kept_like_a_complete_one(renter):
    """Its state may be all that there is: no number of refusals by W&B is enough to destroy it."""
    number = renter.rent("hang", seconds=renter.short, settings={"UPS_PAUSE": "0", "PROVES_AT": "9"})
    renter.says(number, "training, start 1")
    renter.server.machine_of(number).kill()
    renter.until_its_deadline(number)
    renter.server.restart(number)
    assert "was not saved" not in renter.gone(number)
    assert len(renter.file(number, "proofs").read_text().splitlines()) == 9


@pytest.mark.parametrize("mode", ["mode", "raise"])
def test_allow_loss_tries_to_save_and_does_not_insist(mode, renter):
    number = renter.rent(mode, prove="try", settings={"UPS_PAUSE": "0", "PROVES_AT": "99"})
    assert "was not saved" in renter.gone(number)
    assert len(renter.file(number, "proofs").read_text().splitlines()) == 6


def test_a_failure_waits_for_wandb_to_come_back(renter):
    number = renter.rent("raise", settings={"UPS_PAUSE": "0", "PROVES_AT": "4"})
    output = renter.gone(number)
    assert len(renter.file(number, "proofs").read_text().splitlines()) == 4 and "was not saved" not in output


@pytest.mark.parametrize(("stage", "state"), [("operator-0123456789ab", "stopped"), (None, "destroyed")])
def test_a_failure_after_a_finished_stage_keeps_that(stage, state, renter):
    """What is left of an unfinished stage is not worth the rest of the rental; a stage that is finished is."""
    finished = {"FINISHED": f"store/{stage}"} if stage else {}
    number = renter.rent("raise", seconds=renter.short, settings={"UPS_PAUSE": "0", "PROVES_AT": "9999"} | finished)
    if state == "destroyed":
        assert "was not saved" in renter.gone(number)
        return
    renter.until(lambda: renter.server.sent(STOP))
    renter.until(lambda: not renter.server.machine_of(number).processes())
    assert not renter.server.sent(DESTROY) and len(renter.file(number, "proofs").read_text().splitlines()) > 6
    assert f"end it: vastai start instance {number}" in renter.log(number)


def test_a_machine_whose_own_program_dies_is_kept_with_what_is_not_saved(renter):
    trains, proves = renter.rent("hang"), renter.rent("mode", settings={"UPS_PAUSE": "1", "PROVES_AT": "99"})
    for number, phase in ((trains, "starts"), (proves, "proofs")):
        renter.until(renter.file(number, phase).exists)
        for process in renter.server.machine_of(number).processes():
            if "ups.launch.instance" in process.cmdline():
                process.kill()
        renter.until(lambda row=renter.server.rows[number]: row["intended_status"] == "stopped")
        assert "Training failed (137)" in renter.log(number)
    assert not renter.server.sent(DESTROY)


def test_without_wandb_nothing_is_proven(renter):
    number = renter.rent("mode", prove="")
    renter.gone(number)
    assert not renter.file(number, "proofs").exists()


def test_several_gpus_go_on_after_any_failure(renter):
    """torchrun does not tell a killed worker from one that raised."""
    number = renter.rent("killed-twice", gpus=2)
    renter.says(number, "start 3 of 3")
    assert "Training failed (1)" in renter.gone(number)  # here there is no torch to run it


@both_shells
def test_without_a_deadline_nothing_is_billed_for_long(renter):
    """By the timer, since nothing else would end it."""
    variables = renter.server.variables
    renter.server.variables = lambda number: variables(number) | {"UPS_DEADLINE": ""}
    renter.gone(renter.rent("hang", auto_shutdown=False))


def test_without_auto_shutdown_it_stays_until_the_deadline(renter):
    short = renter.short
    number = renter.rent("mode", auto_shutdown=False, seconds=short)
    renter.says(number, "Training complete - kept until the deadline")
    time.sleep(1)
    assert not renter.server.sent(DESTROY)
    renter.gone(number)


def test_on_failure_hold(renter):
    short = renter.short
    number = renter.rent("raise", on_failure="hold", seconds=short)
    renter.says(number, "Training failed (1) - kept until the deadline")
    time.sleep(1)
    assert not renter.server.sent(DESTROY)
    renter.gone(number)
