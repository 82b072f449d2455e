"""What a store holds: each stage, trained or not yet, its errors, and the keys in which it differs from the defaults.

    python -m ups.runs.stored [STORE]
"""

import sys
from functools import cache
from pathlib import Path

from ups.cli import run
from ups.config.compose import composed
from ups.console import screen
from ups.errors import UserError
from ups.files import read_json
from ups.paths import CONFIG_FOLDER
from ups.training.identity import canonical, flatten, from_content, identity_of, typed
from ups.training.store import IDENTITY, Entry


def main() -> None:
    store = Path(sys.argv[1] if len(sys.argv) > 1 else composed("train").store)
    files = sorted(store.glob(f"*/{IDENTITY}"))
    if not files:
        raise UserError(f"{store}: no stage is there; python train.py trains one")
    for file in files:
        try:
            told = lines_of(Entry(store, from_content(read_json(file))))
        except UserError as error:
            told = [str(error)]
        except (KeyError, TypeError):
            told = [f"{file} is no stage's"]
        screen.print(f"{file.parent.name}  " + "\n    ".join(told))


def lines_of(entry: Entry) -> list[str]:
    content = entry.identity.content
    steps = content["stage"]["steps"]
    if entry.is_trained:
        result = entry.result()
        test = result["metrics"]["test"]
        told = f"{steps} steps, nRMSE {result['score']:.2e} on validation, {test['rollout_nrmse']:.2e} on test"
        told += f", CRPS {test['crps']:.2e}" if "crps" in test else ""
    else:
        told = f"{entry.saved_step() or 0} of {steps} steps"
    usual = defaults(entry.identity.name)
    changed = [f"{key}={typed(value)}" for key, value in flatten(canonical(content)) if usual.get(key, ...) != value]
    return [told, " ".join(changed)] if changed else [told]


@cache
def defaults(stage: str) -> dict:
    """The values of the stage of that name, by their dotted keys; of one of somebody's own, of the default stage."""
    known = (CONFIG_FOLDER / "stage" / f"{stage}.yaml").exists()
    identity = identity_of(composed("train", [f"stage={stage}"] if known else []))
    return dict(flatten(canonical(identity.content)))


if __name__ == "__main__":
    run(main, "train")
