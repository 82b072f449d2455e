"""What a person sees while waiting: a bar on a terminal, a plain line every few seconds where there is none."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ups.machine import rank

SECONDS_BETWEEN_LINES = 10.0

# Of several processes one speaks. A text in brackets is no markup: overrides have them.
console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=rank() > 0)
screen = Console(highlight=False, markup=False, soft_wrap=True)  # what was asked for: tables, states, logs


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
