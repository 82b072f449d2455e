"""Signals that ask a program to stop: at once, at a step's end, or after a clean-up. A closed terminal asks too."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ups.console import console
from ups.errors import Interrupted


def stopping() -> list[signal.Signals]:
    """Those that ask this process to stop; under nohup a closed terminal does not."""
    return [
        number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]  # fmt: skip


class StopSignal:
    """`with StopSignal() as stop: ... if stop.received: ...`; the handlers before are put back after it.

    A first signal sets the flag that a loop reads at its step's end; a second one ends at once.
    """

    received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._handle) for number in stopping()}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number


@contextmanager
def undisturbed(doing: str) -> Iterator[None]:
    """A signal waits until the block is through, and then stops the program."""
    received = []
    console.print(doing)

    def wait(number: int, frame: FrameType | None) -> None:
        received.append(number)
        console.print("after that it stops")

    before = {number: signal.signal(number, wait) for number in stopping()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0], f"{signal.Signals(received[0]).name}: stopped")
