"""From the command to the request that creates an instance, the network left out: python benchmarks/launch_latency.py

Launches from a clean, pushed clone of this repository against the stand-in for the service on loopback.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from git_repos import git, public_git  # noqa: E402

from ups.launch.rehearsal.vast_server import VastServer  # noqa: E402

RUNS = 7
CREATE = r"PUT /api/v0/asks/\d+/"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        git(folder, "clone", "-q", "--bare", str(ROOT), "remote.git")
        git(folder, "clone", "-q", "remote.git", "ups")
        with public_git(folder) as url:
            git(folder / "ups", "remote", "set-url", "origin", f"{url}/remote.git")
            seconds = [launch(folder) for _ in range(RUNS)]
    median = statistics.median(seconds)
    print(f"command to create request: median {median:.2f} s, {min(seconds):.2f} to {max(seconds):.2f} ({RUNS} runs)")


def launch(folder: Path) -> float:
    with VastServer("key") as server:
        started = time.time()
        subprocess.run(
            [sys.executable, "ups/launch_vast.py", "logger=none", "+auto_shutdown=true", "vast.allow_loss=true",
             "vast.poll_seconds=0.1", "vast.dry_run=false"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"VAST_URL": server.url, "VAST_API_KEY": server.key},
        )  # fmt: skip
        return server.sent(CREATE)[0].time - started


if __name__ == "__main__":
    main()
