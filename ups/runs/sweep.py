"""What the jobs of a sweep came to, in one table at its end."""

import sys
from dataclasses import dataclass

from rich.table import Table

from ups.console import screen


@dataclass
class Job:
    """`result`: its result.json, None if it failed or was stopped."""

    overrides: list[str]
    result: dict | None = None


def print_sweep(jobs: list[Job]) -> None:
    """A line for each job, by the overrides in which it differs from others."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set(sys.argv)
    table = Table(title="Trained by this sweep", title_justify="left")
    table.add_column("job", overflow="fold")
    for name in ("nRMSE on validation", "on test", "CRPS on test"):
        table.add_column(name, justify="right", max_width=11)
    table.add_column("checkpoint", overflow="fold")
    for job in jobs:
        cells = ["not trained"]
        if job.result:
            test = job.result["metrics"]["test"]
            scores = (job.result["score"], test["rollout_nrmse"], test.get("crps"))
            cells = [*("" if score is None else f"{score:.2e}" for score in scores), job.result["checkpoint"]]
        table.add_row(" ".join(override for override in job.overrides if override not in shared), *cells)
    screen.print(table)
