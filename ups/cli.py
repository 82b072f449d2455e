"""What the scripts share: a user's mistake is one line on stderr and exit 1, a signal is 128 + its number."""

import os
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ups.config.compose import composed, typed_overrides
from ups.config.mistakes import hydras_line, one_line
from ups.config.nearest import keys
from ups.console import stderr, unheard
from ups.errors import Interrupted, UserError, shortened
from ups.faults import fault_line
from ups.machine import processes, rank
from ups.signals import interruption, leave_closed_terminal, stopping

NEEDED = "checkpoint|step_metrics"  # of the callbacks: what they keep is part of a trained stage
_jobs = Counter()  # of this process: all, and those of a sweep that failed


class JobFailed(UserError):
    """Of a sweep, and told."""


def run(
    main: Callable[[], None], config_name: str, finish: Callable[[], None] | None = None, after_stop: str = ""
) -> None:
    """Run a function that `hydra.main` made of the config `config_name`, and `finish` after it whatever it came to.

    `after_stop` is told where a signal stopped it: what is left then.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        leave_closed_terminal(number)
        raise interruption(number, f"stopped{after_stop}")

    if os.name == "nt":
        _fail("ups runs on Linux and macOS; on Windows use WSL")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors out of Hydra, whose own report is several lines
    for number in stopping():
        signal.signal(number, interrupt)  # outside of the training loop, which has its own: see StopSignal
    # Before the overrides, which Hydra's parser takes in one piece.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    try:
        _check_words()
        if processes() > 1:
            _join_torchrun(config_name)
        main()
    except JobFailed:
        _fail(f"{_jobs['failed']} of {_jobs['all']} jobs failed")
    except UserError as error:
        _fail(str(error))
    except Interrupted as stopped:
        if rank() == 0:
            stderr.print(stopped)
        sys.exit(stopped.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _leave_it_to_the_first()
        _fail(one_line(error, _known_keys(config_name)))
    except BrokenPipeError as error:
        if Path(traceback.extract_tb(error.__traceback__)[-1].filename).name != "hydra.py":
            raise
        unheard(sys.stdout.fileno())  # it printed its help or the config, and `| head` has seen enough
        sys.exit(128 + signal.SIGPIPE)
    except (OSError, ImportError, MemoryError) as error:  # outside of a job: Hydra's own files, or modules
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
        if not (message := fault_line(error, {key: Path("/")})):
            raise
        _leave_it_to_the_first()
        _fail(message)
    except (ValueError, TypeError) as error:
        if not (line := hydras_line(error)):
            raise
        _leave_it_to_the_first()
        _fail(line)
    finally:
        if finish:
            finish()


@contextmanager
def one_line_errors(cfg: DictConfig) -> Iterator[None]:
    """Around the work of one job: Hydra would add a line of its own to the error of a single run.

    In a sweep it is told with its job at once, for Hydra runs the other jobs first and then tells of one error.
    """
    hydra = HydraConfig.get()
    _jobs["all"] += 1
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else fault_line(error, _folders(cfg))
        if hydra.mode == RunMode.MULTIRUN:
            _jobs["failed"] += 1
            reason = shortened(message, 1000) if message else traceback.format_exc()
            stderr.print(f"job {hydra.job.num} ({shortened(' '.join(typed_overrides()), 200)}): {reason}")
            raise JobFailed from error
        if not message:
            raise
        _fail(message)


def _check_words() -> None:
    """What has to be refused before Hydra sees it: a deleted key that is needed, and bytes that no file can hold."""
    for word in sys.argv[1:]:
        if not word.isprintable() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in word):
            _leave_it_to_the_first()
            raise UserError(f"{word}: is not UTF-8")
        if word.startswith("~") and not re.match(rf"~(callbacks\.(?!({NEEDED})\b)|logger\.)\w+(=|$)|~hydra", word):
            _leave_it_to_the_first()
            others = f"callbacks (~callbacks.NAME) but {NEEDED.replace('|', ' and ')}, and loggers (~logger.NAME)"
            raise UserError(f"{word}: the key is needed; only {others} can be left out")


def _folders(cfg: DictConfig) -> dict[str, Path]:
    """That a job writes to, by the key that sets each."""
    chosen = {key: OmegaConf.select(cfg, key) for key in ("store", "cache", "vast.ledger")}
    hydra = HydraConfig.get()
    own = "sweep" if hydra.mode == RunMode.MULTIRUN else "run"
    return {f"hydra.{own}.dir": Path(hydra[own].dir)} | {
        key: Path(value) for key, value in chosen.items() if isinstance(value, str)
    }


def _join_torchrun(config_name: str) -> None:
    """Of the processes that torchrun started, the first alone has a run's folder."""
    words = sys.argv[1:]
    refusal = ""
    if config_name != "train":
        refusal = f"torchrun is for train.py: start {sys.argv[0]} with python"
    elif any(word in ("-m", "--multirun") or word.startswith("hydra.mode=") for word in words):
        refusal = "a sweep is no work for torchrun: start it with python, or each of its jobs with torchrun"
    if refusal:
        _leave_it_to_the_first()
        _fail(refusal)
    if rank() > 0:
        # After the last override: Hydra's parser takes them in one piece, and the last of a key counts.
        last = max((k for k, word in enumerate(words, 2) if "=" in word and word[0] != "-"), default=len(sys.argv))
        sys.argv[last:last] = ["hydra.output_subdir=null", "hydra.run.dir=."]


def _leave_it_to_the_first() -> None:
    """Before an error that every process meets. torchrun ends the others when the first has told it and left."""
    if rank() > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(30)
        sys.exit(1)


def _fail(message: str) -> None:
    stderr.print(f"error: {shortened(message, 1000)}")
    sys.exit(1)


def _known_keys(config_name: str) -> list[str]:
    """All dotted keys of the config as it composes with the command line's choice of groups."""
    groups = [word for word in sys.argv[1:] if re.match(r"([^-.=@][^.=@]*|hydra\.searchpath)=", word)]
    placed = [word for word in sys.argv[1:] if re.match(r"[^-.=@]+@[^=]+=", word)]
    for overrides in ([*groups, *placed], groups, []):
        GlobalHydra.instance().clear()
        try:
            return list(keys(composed(config_name, overrides)))
        except (HydraException, OmegaConfBaseException):
            continue  # a choice is what was wrong: try without
    return []
