"""Imports run one way: a package imports only itself and what stands before it."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

BASE = (
    "cli", "config", "console", "errors", "faults", "files", "machine", "memory", "paths", "provenance", "signals",
    "tensors",
)  # fmt: skip
LAYERS = {  # package -> the others that it may import, beside the base
    "data": (),
    "models": ("data",),
    "evaluation": ("data",),
    "stages": ("data", "models", "evaluation"),
    "wandb": (),
    "loggers": ("wandb",),
    "callbacks": ("loggers", "evaluation"),
    "training": ("data", "models", "stages", "callbacks"),
    "runs": ("data", "evaluation", "stages", "training", "callbacks", "loggers", "wandb"),
    "launch": ("wandb",),
}
FILES = sorted((ROOT / "ups").rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The names below `ups` that a file imports when it runs: not for its annotations alone."""
    modules = set()
    tree = ast.parse(file.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" if node.module == "ups" else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("ups.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "ups")))
def test_imports_run_one_way(file):
    place = file.relative_to(ROOT / "ups").parts[0].removesuffix(".py")
    if place in LAYERS:
        assert imported(file) <= {place, *BASE, *LAYERS[place]}
    else:
        assert place in (*BASE, "__init__") and imported(file) <= set(BASE)
