"""On the rented machine, once the repo is there: train, go on after a kill, prove that the results are saved.

    python -m ups.launch.instance FOLDER OVERRIDES...          (onstart.sh runs it)

Ends with 0 only if the training is complete and, unless `vast.allow_loss` was given, its results were proven saved.
Reads UPS_DEADLINE, UPS_GPUS, UPS_PROVE (insist | try | nothing) and UPS_PAUSE. Needs nothing but the standard library.
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STARTS = 3  # of a training that is killed; each goes on from its last state
SECONDS_TO_SAVE = 480  # of the rental are kept to stop and to upload an unfinished state; a tenth of a short one
SECONDS_TO_STOP = 150  # of those, from the signal to the kill: a step, a validation, and the logger's end
SECONDS_TO_PROVE = 120  # for the first proof; each later one gets as much more
PROOFS = 6  # where the results need not be kept at any price
OUT_OF_TIME = 124
STORE = Path("store")  # onstart.sh starts this in the repo


def main(folder: Path, overrides: list[str]) -> int:
    # While `unsaved` is there the machine is stopped instead of destroyed; it holds what train.py came to. While `busy`
    # is there, so it is if this program dies, but not at the deadline: long before that a training is stopped.
    unsaved, busy = folder / "unsaved", folder / "busy"
    wanted = os.environ.get("UPS_PROVE")
    if wanted == "insist":
        write(busy, "")
    ended = read(unsaved)
    code = train(folder, overrides, float(os.environ["UPS_DEADLINE"])) if ended is None else ended
    if not wanted:
        return code
    if wanted == "insist":
        write(unsaved, str(code))
    # What a failure left of an unfinished stage is not worth the rest of the rental; a finished stage is.
    gives_up = wanted == "try" or (code not in (0, OUT_OF_TIME) and not any(STORE.glob("*/weights.safetensors")))
    pause = 2 * float(os.environ.get("UPS_PAUSE", 4))
    proof = 1
    while not proven(folder, proof * SECONDS_TO_PROVE):
        if gives_up and proof == PROOFS:
            say("what there is of the training was not saved")
            break
        time.sleep(min(pause * 2 ** (proof - 1), 300))
        proof += 1
    for file in (unsaved, busy):
        file.unlink(missing_ok=True)
    return code


def read(file: Path) -> int | None:
    text = file.read_text() if file.exists() else ""
    return int(text) if text else None


def write(file: Path, text: str) -> None:
    """Not at any price: a full disk ends the proof too, not the rest."""
    try:
        file.write_text(text)
    except OSError as error:
        say(f"{file}: {error}")


def train(folder: Path, overrides: list[str], deadline: float) -> int:
    """The exit code of train.py, OUT_OF_TIME if it had to be stopped."""
    gpus = os.environ.get("UPS_GPUS", "1")
    torchrun = [] if gpus == "1" else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", gpus]
    places = [f"store={STORE}", f"hydra.run.dir={folder / 'run'}"]  # whatever a preset says
    command = [sys.executable, *torchrun, "train.py", *overrides, *places]
    code = OUT_OF_TIME
    for start in range(1, STARTS + 1):
        left = deadline - time.time()
        if left <= 0:
            say("the deadline is over")
            return OUT_OF_TIME
        reserve = min(SECONDS_TO_SAVE, left / 10)
        code = run(command, left - reserve, reserve * SECONDS_TO_STOP / SECONDS_TO_SAVE)
        if code in (0, OUT_OF_TIME) or (code < 128 and gpus == "1"):  # torchrun does not tell how its workers died
            break
        say(f"training ended with {code}, start {start} of {STARTS}")
    return code


def run(command: list[str], seconds: float, seconds_to_stop: float) -> int:
    """Like a shell: 128 + the signal's number for a process that was killed, OUT_OF_TIME after `seconds`."""
    process = subprocess.Popen(command)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        say("the deadline is near: the training is stopped, its state saved")
        process.terminate()
        try:
            process.wait(seconds_to_stop)
        except subprocess.TimeoutExpired:
            process.kill()
        return OUT_OF_TIME
    return code if code >= 0 else 128 - code


def proven(folder: Path, seconds: int) -> bool:
    command = [sys.executable, "-m", "ups.runs.proof", str(folder / "run"), "--timeout", str(seconds)]
    return subprocess.run(command).returncode == 0


def say(text: str) -> None:
    """Unbuffered, and not at any price: a full disk may have ended the log."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"ups {time.strftime('%T', time.gmtime())} {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
