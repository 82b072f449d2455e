"""PDEBench's own solver on given initial fields, for benchmarks/generator.py, in a Python that has jax and hydra-core:

    python benchmarks/pdebench_solver.py PDEBENCH_CLONE NU FIELDS.npy SOLUTIONS.npy

Prints the seconds of one core, compilation excluded. Their script runs as it is but for its initial fields.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = "pdebench/data_gen/data_gen_NLE/BurgersEq"


class Done(Exception):
    """Leaves their script before it saves."""


def main(clone: str, nu: str, fields: str, solutions: str) -> None:
    fields, solutions = Path(fields).resolve(), Path(solutions).resolve()
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.chdir(Path(clone) / FOLDER)
    sys.path[:0] = [".", ".."]

    import burgers_multi_solution_Hydra as script
    import jax
    import numpy as np
    from omegaconf import OmegaConf

    u0 = np.load(fields)
    exponent = {0.1: 1, 0.01: 2, 0.001: 3}[float(nu)]
    settings = OmegaConf.load(f"config/multi/1e-{exponent}.yaml")
    settings.numbers = len(u0)

    def measured(function, axis_name: str):
        def run(u):
            compiled = pmap(function, axis_name=axis_name).lower(u).compile()
            started = time.process_time()
            answer = np.asarray(compiled(u))
            print(time.process_time() - started)
            np.save(solutions, answer[0])
            raise Done

        return run

    pmap, jax.pmap = jax.pmap, measured
    script.init_multi = lambda *arguments, **named: jax.numpy.asarray(u0)
    with suppress(Done):
        script.main.__wrapped__(OmegaConf.create({"multi": settings}))


if __name__ == "__main__":
    main(*sys.argv[1:])
