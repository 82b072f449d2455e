"""Stages as W&B artifacts: one is named by the stage's folder in the store and holds that entry's files.

    python -m ups.wandb.artifacts find PROJECT ENTITY NAME...       -> {NAME: {path, size, files}} of those there
    python -m ups.wandb.artifacts download PATH FOLDER FILE...

It is a command because its caller can then put a bound on it: the client asks a server that does not answer again and
again, for minutes, and once more when its process ends.
"""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ups.errors import first_line
from ups.wandb.account import project_path

TYPE = "model"
REQUEST_TIMEOUT = 8  # seconds that the client waits for one answer


class Artifacts:
    """Those of one project. Each call asks the server; whatever the client raises goes on to the caller."""

    def __init__(self, project: str, entity: str | None):
        import wandb

        self.api = wandb.Api(timeout=REQUEST_TIMEOUT)
        self.project = project_path(self.api, project, entity)

    def find(self, name: str) -> Any | None:
        """The latest version, complete or not."""
        path = f"{self.project}/{name}:latest"
        return self.api.artifact(path) if self.api.artifact_exists(path) else None

    def difference(self, name: str, files: dict[str, Path]) -> str | None:
        """What sets the artifact apart from these files; None if the server has exactly them."""
        artifact = self.find(name)
        if artifact is None:
            return "is not there"
        if artifact.state != "COMMITTED":
            return f"is {artifact.state}"
        entries = artifact.manifest.entries
        if set(entries) != set(files):
            return f"holds {', '.join(sorted(entries)) or 'nothing'}"
        for file, path in files.items():
            if (entries[file].size, entries[file].digest) != (path.stat().st_size, md5(path)):
                return f"has another {file}"
        return None

    def run_state(self, run_id: str) -> str:
        """finished, failed, running, crashed; missing if the server has no such run."""
        import wandb

        self.api.flush()
        try:
            return self.api.run(f"{self.project}/{run_id}").state
        except (ValueError, wandb.errors.CommError) as error:
            if "Could not find run" in str(error):
                return "missing"
            raise


def log(run, name: str, files: dict[str, Path]) -> None:
    """Upload as a new version, unless the last one is the same. The files must stay as they are until it is done."""
    import wandb

    artifact = wandb.Artifact(name, TYPE)
    for file, path in files.items():
        artifact.add_file(str(path.resolve()), name=file, policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def download(path: str, folder: Path, files: Iterable[str]) -> None:
    """Of the artifact at `path`, of these files those that it holds."""
    import wandb

    artifact = wandb.Api(timeout=REQUEST_TIMEOUT).artifact(path)
    for file in files:
        # A reference may point anywhere, also into this machine.
        if file in artifact.manifest.entries and artifact.manifest.entries[file].ref is None:
            artifact.get_entry(file).download(str(folder), skip_cache=True)


def md5(path: Path) -> str:
    """As W&B writes it."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def find(project: str, entity: str, *names: str) -> dict[str, dict]:
    """Those that are there and complete."""
    artifacts = Artifacts(project, entity or None)
    found = {name: artifacts.find(name) for name in names}
    return {
        name: {
            "path": f"{artifacts.project}/{name}:{artifact.version}", "size": artifact.size,
            "files": list(artifact.manifest.entries),
        }
        for name, artifact in found.items() if artifact is not None and artifact.state == "COMMITTED"
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    command, *rest = arguments
    if command == "download":
        path, folder, *files = rest
        download(path, Path(folder), files)
    else:
        print(json.dumps(find(*rest)), flush=True)


if __name__ == "__main__":
    exit_code = 1
    try:
        main(sys.argv[1:])
        exit_code = 0
    except Exception as error:  # the client's errors have no common class
        print(first_line(error), file=sys.stderr, flush=True)
    finally:
        os._exit(exit_code)  # not through the client's own end, which would wait for the server
