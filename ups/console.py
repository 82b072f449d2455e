"""What a person sees while waiting: a bar on a terminal, a plain line every few seconds where there is none.

A reader may leave: `2>&1 | tee log` dies of the same Ctrl-C, and a terminal may be closed. What is to be saved or ended
then goes on unheard.
"""

import os
import time
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ups.machine import rank

SECONDS_BETWEEN_LINES = 10.0


class Voice(Console):
    """Plain text: what looks like markup or an emoji's name is part of an override or a path."""

    def __init__(self, **settings):
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **settings)

    def on_broken_pipe(self) -> None:
        """Rich would end the program here."""
        unheard(self.file.fileno())


def unheard(descriptor: int) -> None:
    """What is written there from now on goes nowhere."""
    with suppress(OSError):  # closed before
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


console = Voice(stderr=True, quiet=rank() > 0)  # of several processes one speaks,
stderr = Voice(stderr=True)  # but for what ends any of them
screen = Voice()  # what was asked for: tables, states, logs


class Bar:
    """`with Bar("operator", total) as bar: bar.update(done, "loss 1e-3")`."""

    def __init__(self, title: str, total: int, done: int = 0):
        self.title, self.total, self.first = title, total, done
        self.started = self.printed = time.monotonic()
        self.rich = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self.rich = Progress(*columns, console=console, refresh_per_second=4)
            self.task = self.rich.add_task(title, total=total, completed=done, note="")
            self.rich.start()

    def update(self, done: int, note: str = "") -> None:
        if self.rich:
            self.rich.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self.printed < SECONDS_BETWEEN_LINES and done < self.total:
            return
        self.printed = now
        left = (now - self.started) / max(done - self.first, 1) * (self.total - done)
        console.print(f"{self.title} {done}/{self.total}  {note}  {left:.0f} s left".replace("    ", "  "))

    def close(self) -> None:
        if self.rich:
            self.rich.stop()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        self.close()
