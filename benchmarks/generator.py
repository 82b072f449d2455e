"""The generator's speed and error, beside PDEBench's own solver on the same initial fields, each on one core:

    python benchmarks/generator.py
    python benchmarks/generator.py PDEBENCH_CLONE --python PYTHON_WITH_JAX

PDEBENCH_CLONE is a clone of github.com/pdebench/PDEBench at a commit whose data_gen_NLE/utils.py runs with today's jax
(cacd7fd does; later ones have `.loc` where jax has `.at`, and the package `pdebench` 0.1.0 lacks a factor of a half in
the flux); PYTHON_WITH_JAX has jax and hydra-core. Both solve on 1024 points to time 2 with PDEBench's 201 frames, in
float32: theirs all samples in one batch, as its script does (10000 of them, 8 GB), ours in one of the generator's
batches, whose first samples are theirs. The seconds are the core's own, so that other work on the machine counts
little; the error is the mean nRMSE to the exact solution.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from pdebench_solver import FOLDER
from torch import Tensor

from ups.data.exact import cole_hopf
from ups.data.generator import CHUNK
from ups.data.initial_conditions import cell_centres, random_sinusoids
from ups.data.solver import solve
from ups.evaluation.metrics import relative_error

SAMPLES = {0.001: 16, 0.01: 8, 0.1: 3}  # of theirs, by what it takes for one
POINTS = 1024
TIMES = [0.01 * frame for frame in range(201)]
SCORED = {0.5: 50, 2.0: 200}  # time: frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", nargs="?", type=Path, metavar="PDEBENCH_CLONE")
    parser.add_argument("--python", default=sys.executable, metavar="PYTHON_WITH_JAX")
    arguments = parser.parse_args()
    if arguments.clone and not (arguments.clone / FOLDER).is_dir():
        parser.error(f"{arguments.clone} is no clone of PDEBench: it has no {FOLDER}")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

    u0 = random_sinusoids(CHUNK, POINTS, torch.Generator().manual_seed(0))
    columns = "".join(f"{f'error, t={time}':>14}" for time in SCORED)
    print(f"{'nu':>6} {'solver':<9} {'s a sample':>10} {'samples':>8}{columns}")
    for nu, samples in SAMPLES.items():
        truth = cole_hopf(u0[:samples], nu / math.pi, list(SCORED), cell_centres(POINTS))
        seconds, errors = report(nu, "ours", *ours(u0, nu), truth)
        if arguments.clone:
            theirs = pdebench(u0[:samples], nu, arguments.clone, arguments.python)
            their_seconds, their_errors = report(nu, "PDEBench", *theirs, truth)
            ratios = "".join(f"{mine / other:14.2g}" for mine, other in zip(errors, their_errors, strict=True))
            print(f"{'':6} {'':9} {their_seconds / seconds:9.1f}x {'':8}{ratios}")


def ours(u0: Tensor, nu: float) -> tuple[Tensor, float]:
    """The solution, and the core's seconds for a sample."""
    started = time.process_time()
    u = solve(u0.float(), nu / math.pi, TIMES)
    return u, (time.process_time() - started) / len(u0)


def pdebench(u0: Tensor, nu: float, clone: Path, python: str) -> tuple[Tensor, float]:
    """The same of PDEBench's solver."""
    with tempfile.TemporaryDirectory() as name:
        fields, solutions = Path(name) / "fields.npy", Path(name) / "solutions.npy"
        np.save(fields, u0.float().numpy())
        driver = Path(__file__).with_name("pdebench_solver.py")
        answer = subprocess.run(
            [python, driver, clone, str(nu), fields, solutions], stdout=subprocess.PIPE, text=True, check=True
        )
        return torch.from_numpy(np.load(solutions)), float(answer.stdout.split()[-1]) / len(u0)


def report(nu: float, name: str, u: Tensor, seconds: float, truth: Tensor) -> tuple[float, list[float]]:
    """Print a line; -> seconds a sample, and the errors at the scored times."""
    errors = relative_error(u[: len(truth), list(SCORED.values())], truth).mean(0).tolist()
    print(f"{nu:6g} {name:<9} {seconds:10.4f} {len(u):8d}" + "".join(f"{error:14.2e}" for error in errors), flush=True)
    return seconds, errors


if __name__ == "__main__":
    main()
