"""Whether a config that came from elsewhere is safe to build."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ups.errors import UserError
from ups.paths import CONFIG_FOLDER


def check_origin(content: Any, file: Path, searchpath: Sequence[Path] = ()) -> None:
    """Raise for a config from a file of somebody else's if building it could do more than conf/ does.

    `_target_` may be any callable, and `_args_` and interpolations are ways to feed one, or to read the environment.
    """
    _check(content, file, known_targets(searchpath), "")


def _check(content: Any, file: Path, targets: Collection[str], key: str) -> None:
    if isinstance(content, dict):
        for name, value in content.items():
            below = f"{key}.{name}" if key else name
            if name.startswith("_") and (name != "_target_" or value not in targets):
                refusal = f"{file}: {below}={value} is not what conf/ builds a stage of; it is not used"
                own = (
                    "; if it is your own, name the folder of its options: hydra.searchpath=[file://FOLDER] "
                    "(from Python searchpath=[FOLDER], of ups.runs.replay --searchpath FOLDER)"
                )
                raise UserError(refusal + own * (name == "_target_"))
            _check(value, file, targets, below)
    elif isinstance(content, list):
        for position, value in enumerate(content):
            _check(value, file, targets, f"{key}[{position}]")
    elif isinstance(content, str) and "${" in content:
        raise UserError(f"{file}: {key}={content} is not resolved, as it would be in an identity that train.py wrote")


def known_targets(searchpath: Sequence[Path] = ()) -> list[str]:
    """The classes that the options of the groups of an identity name: in conf/, in the caller's `searchpath` and in the
    call's own hydra.searchpath, neither of which a checkpoint can set.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    folders = [CONFIG_FOLDER, *searchpath, *(Path(source.path) for source in sources if source.schema == "file")]
    groups = [folder / group for folder in folders for group in ("stage", "model", "dataset")]
    files = [file for group in groups for file in group.rglob("*.yaml")]
    target = re.compile(r"""^[^#\n]*\b_target_:\s*["']?([\w.]+)""", re.MULTILINE)
    return [name for file in files for name in target.findall(file.read_text())]
