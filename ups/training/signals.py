"""SIGINT and SIGTERM set a flag that the loop reads at a step's end; a second one ends at once."""

import signal
from types import FrameType


class StopSignal:
    """`with StopSignal() as stop: ... if stop.received: ...`; the handlers before are put back after it."""

    received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number
