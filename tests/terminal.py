"""A command whose reader leaves: a terminal's window is closed, or Ctrl-C ends `| tee log` too."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path
from threading import Event, Thread


class Terminal:
    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.ours, its = pty.openpty()
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its end is told by SIGHUP
        )  # fmt: skip
        os.close(its)
        self.output = b""
        self.closing = Event()
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        """Without a reader the command would soon wait."""
        while not self.closing.is_set():
            if select.select([self.ours], [], [], 0.05)[0]:
                try:
                    self.output += os.read(self.ours, 1 << 16)
                except OSError:  # it has ended
                    return

    def close(self) -> None:
        self.closing.set()
        self.reader.join()
        os.close(self.ours)


class Pipe:
    """`command 2>&1 | tee log`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]):
        self.ours, its = os.pipe()
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=its, stderr=its
        )
        os.close(its)

    def close(self) -> None:
        os.close(self.ours)
        self.process.send_signal(signal.SIGINT)


READERS = {Terminal: 129, Pipe: 130}  # and the command's exit code when it is closed
