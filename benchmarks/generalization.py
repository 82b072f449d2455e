"""Trained stages outside their training conditions: longer rollouts, other grids, other nu, other initial conditions.

    python benchmarks/generalization.py store/operator-DIGEST [store/operator-DIGEST ...]

Each cell is one `python evaluate.py` on 64 trajectories of `dataset.seed=1`, which no training has seen; the classical
solver is on the same grid. Writes outputs/benchmarks/generalization.md; the published one is in
docs/accuracy/.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ups.files import read_json, write
from ups.paths import ROOT

CASES = {
    "nu 0.001, 256 points, 31 steps": [],
    "400 steps": ["dataset.frames=410", "rollout_steps=400"],
    "128 points": ["dataset.points=128"],
    "512 points": ["dataset.points=512"],
    "1024 points": ["dataset.points=1024"],
    "random fields": ["dataset.initial_condition=random_field"],
    "nu 0.002": ["dataset.nu=0.002"],
    "nu 0.005": ["dataset.nu=0.005"],
    "nu 0.01": ["dataset.nu=0.01"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders in the store")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "benchmarks", help="of the report")
    asked = parser.parse_args()
    checkpoints = [path.resolve() for path in asked.checkpoints]
    columns = ["64 trajectories", *map(name_of, checkpoints), "classical solver"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for case, overrides in CASES.items():
        scores = [scores_of(checkpoint, overrides) for checkpoint in checkpoints]
        cells = [case, *map(cell, scores), cell(scores[0]["baselines"]["solver"])]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    asked.output.mkdir(parents=True, exist_ok=True)
    write(asked.output / "generalization.md", lambda partial: partial.write_text("\n".join(lines) + "\n"))


def name_of(checkpoint: Path) -> str:
    content = read_json(checkpoint / "identity.json")
    dataset = content["dataset"]
    nu = dataset.get("nu_range") or dataset.get("nu")
    trained = f"at nu {nu}" if nu else f"on {Path(dataset['path']).name}"
    return f"{content['model']['_target_'].rpartition('.')[2]}, trained {trained}"


def scores_of(checkpoint: Path, overrides: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        words = ["dataset=burgers", "dataset.seed=1", *overrides, f"hydra.run.dir={folder}"]
        subprocess.run(
            [sys.executable, "evaluate.py", f"checkpoint={checkpoint}", *words], check=True, cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return read_json(Path(folder) / "metrics.json")


def cell(scores: dict) -> str:
    """The error, and what went wrong: energy from nowhere, trajectories that were lost."""
    parts = ["not finite" if scores["nrmse"] is None else f"{scores['nrmse']:.1e}"]
    if scores["energy_excess"] is None or scores["energy_excess"] > 0.01:
        parts.append("energy excess " + ("∞" if scores["energy_excess"] is None else f"{scores['energy_excess']:.2g}"))
    if scores["diverged"]:
        parts.append(f"{scores['diverged']} diverged")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
