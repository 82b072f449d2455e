"""A machine on which commands of this repo are given to a stand-in for W&B's server."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, SMALL, clean_environment

from ups.launch.rehearsal.wandb_server import WandbServer


@dataclass
class Machine:
    """A folder where commands are given, with a home and a store of its own."""

    folder: Path
    cache: Path

    def start(self, server: WandbServer, *arguments: str, **environment: str) -> subprocess.Popen:
        self.folder.mkdir(exist_ok=True)
        environment = clean_environment(self.folder) | server.environment | {"PYTHONPATH": str(ROOT)} | environment
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def train(self, server: WandbServer, *overrides: str, **environment: str) -> subprocess.Popen:
        train = [str(ROOT / "train.py"), *SMALL, f"cache={self.cache}", "hydra.run.dir=run", *overrides]
        return self.start(server, *train, **environment)

    def trained(self, server: WandbServer, *overrides: str, **environment: str) -> tuple[dict, str]:
        """(result.json, what was printed) of a training that must succeed."""
        run = self.train(server, *overrides, **environment)
        error = run.communicate(timeout=100)[1]
        assert run.returncode == 0, error
        return json.loads((self.folder / "run" / "result.json").read_text()), error

    def prove(self, server: WandbServer, *arguments: str, **environment: str) -> tuple[int, str]:
        """(exit code, last line)."""
        proof = self.start(server, "-m", "ups.runs.proof", "run", *arguments, **environment)
        answer, error = proof.communicate(timeout=100)
        print(answer, error)
        assert "Traceback" not in error + answer
        return proof.returncode, answer.strip().splitlines()[-1]

    def rows(self) -> list[dict]:
        with open(self.folder / "run" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def entry(self) -> Path:
        (entry,) = (path for path in self.folder.glob("store/operator-*") if path.is_dir())
        return entry


def steps_of(rows: list[dict]) -> list[float]:
    return [float(row["training/operator/step"]) for row in rows if row.get("training/operator/step")]


def wait_for(holds, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
