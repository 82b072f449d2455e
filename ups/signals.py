"""Signals that ask a program to stop: at once, at a step's end, or after a clean-up. A closed terminal asks too, and
so does the timer that `stop_after` sets."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from ups.console import console, unheard
from ups.errors import Interrupted
from ups.machine import under_torchrun

T = TypeVar("T")


def stopping() -> list[signal.Signals]:
    """Those that ask this process to stop; under nohup a closed terminal does not."""
    return [
        number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]  # fmt: skip


def stop_after(hours: float | None) -> None:
    """Let a timer ask, by a clock that cannot be set. It is one for the process: the first call counts."""
    if hours is not None and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, hours * 3600)


def leave_closed_terminal(number: int) -> None:
    """After SIGHUP: a write to a terminal that is gone would fail, and with it what is still to be saved or ended."""
    for descriptor in (1, 2) if number == signal.SIGHUP else ():
        with suppress(OSError):  # closed before
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                unheard(descriptor)


def interruption(number: int, what: str) -> Interrupted:
    """What to raise for a signal; `what` was stopped by it. The timer ends a program as SIGTERM does."""
    if number == signal.SIGALRM:
        return Interrupted(signal.SIGTERM, f"runtime.max_hours: {what}")
    return Interrupted(number, f"{signal.Signals(number).name}: {what}")


def end_at_once_from_now_on() -> None:
    """After a first signal: another one ends the process where it is, see `_end_at_once`. What is saved is saved."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in stopping():
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Not under torchrun: there it is often the first signal again, passed on, and torchrun itself kills what stays."""
    if under_torchrun():
        return
    with suppress(OSError):
        os.write(2, f"{signal.Signals(number).name} again: ended at once\n".encode())
    os._exit(128 + number)


class Abandoned(BaseException):
    """Not an `Exception`: nothing on its way may take it for an error of its own."""


class StopSignal:
    """`with StopSignal() as stop: ... if stop.received: ...`; the handlers before are put back after it.

    A first signal sets the flag that a loop reads at its step's end; a second one ends at once (not under torchrun).
    """

    received: int | None = None
    _abandons = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._handle) for number in stopping()}
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        repeats_do_not_count = kind is Interrupted and under_torchrun()
        for number, handler in self._before.items():
            signal.signal(number, _end_at_once if repeats_do_not_count else handler)

    def unless_received(self, work: Callable[[], T]) -> T | None:
        """Work that a signal cuts short, for what takes longer than a step; None if it did."""
        try:
            try:
                self._abandons = True
                return None if self.received else work()
            finally:
                self._abandons = False
        except Abandoned:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        leave_closed_terminal(number)
        if self.received is not None:
            if number != signal.SIGALRM:  # the timer asks for no more than what is under way
                _end_at_once(number, frame)
            return
        self.received = number
        if self._abandons:
            raise Abandoned


@contextmanager
def stopped_once() -> Iterator[None]:
    """The first signal stops the block as it would without this; another one cannot stop what the block then does to
    clean up, not even before that has called itself `undisturbed`.
    """
    before = {number: handler for number in stopping() if callable(handler := signal.getsignal(number))}

    def first(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: None)
        before[number](number, frame)

    for number in before:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed(doing: str) -> Iterator[None]:
    """A signal waits until the block is through, and then stops the program."""
    received = []

    def wait(number: int, frame: FrameType | None) -> None:
        leave_closed_terminal(number)
        received.append(number)
        console.print("after that it stops")

    before = {number: signal.signal(number, wait) for number in stopping()}
    try:
        with suppress(OSError):  # what is to be done does not hang on what can be said
            console.print(doing)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise interruption(received[0], "stopped")
