"""What the machine may lack: room, the right to write, file handles, memory, locks, a clock that runs straight.

Each fault is one line and exit 1; what was saved stays; the same command goes on once the fault is gone.
"""

import errno
import json
import signal
import subprocess
import sys
import textwrap
from functools import cache as once
from pathlib import Path

import pytest
import torch
from conftest import DRAWN, ROOT, SMALL, clean_environment, wait_for_line

from ups import faults
from ups.config.compose import composed
from ups.errors import UserError
from ups.files import alone_in, locked, write
from ups.memory import Lever, Memory
from ups.tensors import read_tensors, write_tensors
from ups.training.identity import identity_of

CPU = torch.device("cpu")
TRAIN = ["logger=none", *SMALL, "callbacks.checkpoint.every=2"]
TRAIN_DRAWN = ["logger=none", *DRAWN, "callbacks.checkpoint.every=2"]


@once
def why_no_mounts() -> str:
    """Empty where a user may mount a small disk of its own."""
    try:
        answer = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, timeout=10
        )
    except OSError as error:
        return str(error)
    return answer.stderr.strip()


@pytest.fixture
def starved(tmp_path, cache):
    """`starved(script, *overrides)`: a shell script in which `train.py` is a command and mounts are its own.

    `mkdisk FOLDER SIZE` makes a disk there; $0 is the tests' cache.
    """
    if reason := why_no_mounts():
        pytest.skip(f"no small disk can be mounted here: {reason}")

    def run(script: str, *overrides: str) -> subprocess.CompletedProcess:
        python, program = sys.executable, ROOT / "train.py"
        text = f"""
            mkdisk() {{ mkdir -p $1 && mount -t tmpfs -o size=$2 none $1; }}
            train() {{ '{python}' '{program}' "$@"; echo "exit $?" >&2; }}
            {script}
        """
        chosen = [f"cache={cache}", *overrides]  # of a key that comes twice the last counts
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", textwrap.dedent(text), str(cache), *chosen], cwd=tmp_path, timeout=120,
            text=True, capture_output=True, env=clean_environment(tmp_path), stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache) -> dict:
    """What the same training comes to where nothing is lacking."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [sys.executable, str(ROOT / "train.py"), *TRAIN, f"cache={cache}", "hydra.run.dir=run"]
    subprocess.run(arguments, cwd=folder, env=clean_environment(folder), check=True, capture_output=True, timeout=100)
    return {"result": json.loads((folder / "run/result.json").read_text()), "store": folder / "store"}


def one_line(answer: subprocess.CompletedProcess, *parts: str) -> str:
    """The only error in the answer, which ended with exit code 1."""
    assert "Traceback" not in answer.stderr, answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in parts), (line, parts)
    assert answer.returncode == 1 or "exit 1" in answer.stderr.splitlines(), answer.stderr
    return line


def same_weights(result: dict, whole: dict, store: Path) -> bool:
    digest = lambda folder: json.loads(next(folder.glob("operator-*/result.json")).read_text())["sha256"]
    return digest(store) == digest(whole["store"]) and result["score"] == whole["result"]["score"]


FULL = {  # what lies on the disk -> its override, its size, the key and the file that the line names
    "store": ("store=disk", "4000k", "store=FOLDER", "state.safetensors"),
    "cache": ("cache=disk", "300k", "cache=FOLDER", "train-nu0.01"),
    "run": ("hydra.run.dir=disk", "28k", "hydra.run.dir=FOLDER", "disk/figures/operator_"),
    "hydra": ("hydra.run.dir=disk", "4k", "hydra.run.dir=FOLDER", ""),
    "events": ("hydra.run.dir=run", "4k", "hydra.run.dir=FOLDER", "run/tensorboard/events"),
}


@pytest.mark.slow
@pytest.mark.parametrize("folder", FULL)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder, starved, whole, tmp_path):
    override, size, key, file = FULL[folder]
    answer = starved(
        f"""
        mkdisk disk {size}
        {"mkdir run && ln -s ../disk run/tensorboard" if folder == "events" else ""}
        train "$@"
        find . -name "*.partial" -o -name ".tmp*" >partials
        ls disk/operator-*/state* >states
        mount -o remount,size=64m disk
        train "$@" 2>again
        cp -r disk kept
        """,
        *(TRAIN_DRAWN if folder == "run" else TRAIN), *(["logger=tensorboard"] if folder == "events" else []),
        "hydra.run.dir=run", override,
    )  # fmt: skip
    one_line(answer, "No space left on device", "make room", key, file)
    assert (tmp_path / "partials").read_text() == ""
    assert (tmp_path / "again").read_text().endswith("exit 0\n"), (tmp_path / "again").read_text()
    store = tmp_path / ("kept" if folder == "store" else "store")
    result = json.loads((tmp_path / ("kept" if folder in ("run", "hydra") else "run") / "result.json").read_text())
    assert same_weights(result, whole, store)
    resumed = folder in ("store", "run", "events")
    assert result["plan"][0]["action"] == ("resumed" if resumed else "trained")
    assert bool((tmp_path / "states").read_text()) == (folder == "store")


@pytest.mark.slow
def test_what_is_there_is_used_from_read_only_folders_and_what_is_lacking_is_one_line(starved, whole, tmp_path):
    """A store and a cache that cannot be written to, not even for a lock."""
    answer = starved(
        f"""
        mkdir store && mount --bind {whole["store"]} store && mount -o remount,ro,bind store
        train "$@" hydra.run.dir=found
        train "$@" hydra.run.dir=lacking seed=1 2>lacking.txt
        mount --bind $0 $0 && mount -o remount,ro,bind $0
        train "$@" hydra.run.dir=cached seed=1 store=other 2>cached.txt
        train "$@" hydra.run.dir=new dataset.train=31 store=other 2>new.txt
        mkdisk out 1m && mount -o remount,ro out
        train "$@" hydra.run.dir=out/run 2>out.txt
        """,
        *TRAIN,
    )
    read = lambda name: subprocess.CompletedProcess([], None, "", (tmp_path / name).read_text())  # it tells the code
    assert answer.stderr.endswith("exit 0\n"), answer.stderr
    assert json.loads((tmp_path / "found/result.json").read_text())["plan"][0]["action"] == "found"
    one_line(read("lacking.txt"), "store/operator-", "Read-only file system", "make it writable", "store=FOLDER")
    assert read("cached.txt").stderr.endswith("exit 0\n"), read("cached.txt").stderr
    one_line(read("new.txt"), "train-nu0.01", "Read-only file system", "cache=FOLDER")
    one_line(read("out.txt"), "out/run", "Read-only file system")


@pytest.mark.slow
@pytest.mark.parametrize("handles", [5, 6, 24])
def test_few_file_handles_suffice_or_are_one_line(handles, tmp_path):
    """Which of them is met first depends on the versions of many packages: all must be told."""
    answer = subprocess.run(
        ["sh", "-c", f'ulimit -n {handles}; exec "$@"', "sh", sys.executable, str(ROOT / "train.py"), *TRAIN],
        cwd=tmp_path, env=clean_environment(tmp_path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if answer.returncode:
        one_line(answer, "Too many open files", "ulimit -n")
    assert (answer.returncode == 0) == (handles == 24), answer.stderr
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["stage=diffusion_residual", "model.width=65536"], ["building the network of operator", "try model.width="]),
        (["dataset.train=1000000000"], ["the data for train", "try dataset.train="]),
    ],
    ids=["building", "data"],
)
def test_out_of_memory_names_the_override_to_type(overrides, parts, tmp_path):
    """Under a limit of 16 GiB: where there is more than a layer asks for (80 GiB), Linux would give it."""
    train = [sys.executable, str(ROOT / "train.py"), *TRAIN, "runtime.device=cpu", *overrides]
    answer = subprocess.run(
        ["sh", "-c", 'ulimit -v 16777216; exec "$@"', "sh", *train], cwd=tmp_path, env=clean_environment(tmp_path),
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    one_line(answer, "out of memory", "were held", "GiB free", "in all", *parts)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is counted from /proc")
def test_a_training_step_without_memory_names_the_batch_of_its_stage(tmp_path):
    """Under a limit of 300 MB more than an idle process has, and a step that needs some GB."""
    script = f"""
        import resource, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
        import torch
        from small_training import NETWORK, OPTIMIZER, RUNTIME
        from ups.data.trajectories import Splits, Trajectories
        from ups.stages.operator import Operator
        from ups.training.identity import from_content
        from ups.training.loop import LoopSettings, Training, train
        from ups.training.store import Entry
        from pathlib import Path

        u = torch.randn(4096, 3, 64)
        data = Trajectories(u, torch.full((4096,), 0.01), 0.05)
        node = {{"name": "operator", "requires": None, "batch_size": 4096}}
        entry = Entry(Path("store"), from_content({{"stage": node, "model": {{"width": 8}}}}))
        settings = LoopSettings("operator", 2, 4096, 1, OPTIMIZER, seed=0, key="stage.requires")
        stage = Operator(NETWORK, None, 2, 1.0, [0.0, 0.0], 1e-5)
        training = Training(stage, settings, Splits(data, data, data), entry)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
        train(training, [], RUNTIME)
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    error = answer.stderr.strip().splitlines()[-1]
    assert error.startswith("ups.errors.UserError: a training step of operator: out of memory"), answer.stderr
    assert "stage.requires.batch_size=4096 is too much: try stage.requires.batch_size=" in error


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")],
    ids=["Python's", "a GPU's"],
)
def test_each_kind_of_exhausted_memory_is_told(error):
    memory = Memory("the step", lambda: [Lever("stage.batch_size", 64, least=2), Lever("model.width", 32)], CPU)
    advice = r"^the step: out of memory .*stage\.batch_size=64 is too much: try stage\.batch_size=32"
    with pytest.raises(UserError, match=advice), memory:
        raise error
    with pytest.raises(RuntimeError, match="a bug"), memory:
        raise RuntimeError("a bug")


def test_a_lever_is_lowered_until_it_fits_and_only_if_it_can():
    assert Lever("batch_size", 48, least=4).lowered(4800, 1300) == (12, 1200)
    assert Lever("width", 32, power=2).lowered(3200, 1000) == (16, 800)
    assert Lever("batch_size", 2, least=2).lowered(100, 99) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path):
    file = tmp_path / "weights.safetensors"
    write_tensors(file, {"a": torch.ones(3)}, {"of": "before"})

    def full(partial: Path) -> None:
        partial.write_text("half")
        with open("/dev/full", "w") as device:
            device.write("half")

    with pytest.raises(OSError) as error:
        write(file, full, keep_as=tmp_path / "previous")
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    tensors, metadata = read_tensors(file)
    assert torch.equal(tensors["a"], torch.ones(3)) and metadata["of"] == "before"
    write_tensors(file, {"a": torch.zeros(3)}, keep_as=tmp_path / "previous")
    assert read_tensors(tmp_path / "previous")[0]["a"].sum() == 3 and read_tensors(file)[0]["a"].sum() == 0


def test_a_bug_is_no_fault_of_the_machine(tmp_path):
    folders = {"store": tmp_path / "store", "hydra.run.dir": tmp_path}
    assert faults.fault_line(ValueError("a bug"), folders) is None
    assert faults.fault_line(FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "a")), folders) is None
    inner = OSError(errno.EIO, "Input/output error", str(tmp_path / "store" / "a" / "state.safetensors"))
    line = faults.fault_line(inner, folders)
    assert "see to that disk, or set store=FOLDER" in line and "hydra" not in line
    module = ImportError("libtorch.so: cannot open shared object file: Too many open files")
    assert "ulimit" in faults.fault_line(module, folders)


def test_a_file_system_without_locks_is_an_error_of_the_file_system(tmp_path, monkeypatch):
    """None is at hand, so the call answers as the system would."""

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError) as error, locked(tmp_path / "store" / "operator-0"):
        pass
    line = faults.fault_line(error.value, {"store": tmp_path / "store"})
    assert "operator-0: No locks available: use a file system that has locks, or set store=FOLDER" in line


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(command, tmp_path, whole):
    """An hour back, a day ahead, and so on, whenever the time is asked for in a training, as TensorBoard's log does."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent("""
        import itertools, sys, time
        now, jumps = time.time, itertools.cycle((-3600, 86400))

        def jumping():
            if "ups.training.loop" not in sys.modules:
                return now()
            open("jumped", "a").close()
            return now() + next(jumps)

        time.time = jumping
    """))
    answer = command("train.py", *TRAIN, "logger=tensorboard", "hydra.run.dir=run", PYTHONPATH=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    stage = json.loads((tmp_path / result["checkpoint"] / "result.json").read_text())
    assert all(0 <= value < 100 for value in (result["seconds"], *stage["seconds"].values()))
    assert (tmp_path / "jumped").exists()
    assert same_weights(result, whole, tmp_path / "store")


@pytest.mark.slow
def test_a_second_run_in_a_folder_that_is_in_use_leaves_it_alone(command, tmp_path):
    """As two runs would be that begin at one time stamp."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("of the first\n")
    with alone_in(folder):
        one_line(command("train.py", *TRAIN, "hydra.run.dir=run"), "another run is writing in", "hydra.run.dir=FOLDER")
    assert (folder / "metrics.csv").read_text() == "of the first\n" and not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_lock_at_once(tmp_path, cache):
    run = lambda: subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *TRAIN, f"cache={cache}"], cwd=tmp_path, text=True,
        env=clean_environment(tmp_path), stderr=subprocess.PIPE,
    )  # fmt: skip
    with locked(entry_of(tmp_path)):
        waiting = run()
        wait_for_line("waiting for it", waiting)
        waiting.send_signal(signal.SIGTERM)
        error = waiting.communicate(timeout=60)[1]  # which would be for ever
    assert waiting.returncode == 143 and "Traceback" not in error and "SIGTERM" in error


def entry_of(tmp_path: Path) -> Path:
    return tmp_path / "store" / identity_of(composed("train", TRAIN)).folder
