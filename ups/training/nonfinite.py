"""A loss or a gradient that is not finite: told before the optimizer's step, with all that it takes to see it again."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ups.console import console
from ups.data.batches import Batch
from ups.errors import UserError
from ups.training.distributed import by_first
from ups.training.runtime import Runtime
from ups.training.state import State, write_state

if TYPE_CHECKING:
    from ups.training.loop import Training


def refuse_or_skip(training: "Training", batch: Batch, loss: Tensor, grad_norm: Tensor, runtime: Runtime) -> None:
    """Raise, or count the step as skipped, as `runtime.on_nonfinite` says. `batch`: the whole step's, not yet used."""
    name, step = training.settings.name, training.step
    file = training.entry.path / f"nonfinite-{step}.safetensors"
    by_first(lambda: write_reproduction(file, training, batch, runtime))
    saved = training.entry.saved_step()
    what = (
        f"{name}: loss {float(loss):g}, gradient {float(grad_norm):g} at step {step}, trajectories "
        f"{','.join(map(str, batch.sample.tolist()))}; no weight was changed by it, the last checkpoint is "
        f"{'none' if saved is None else f'of step {saved}'}. `python -m ups.runs.replay {shlex.quote(str(file))}` "
        "shows where"
    )
    lower = f"lower {training.settings.key}.optimizer.lr"
    if runtime.on_nonfinite == "stop":
        raise UserError(f"{what}: {lower}, or set runtime.on_nonfinite=skip")
    if training.skipped >= runtime.max_skipped:
        raise UserError(
            f"{what}. {training.skipped} were skipped before it, runtime.max_skipped={runtime.max_skipped}: {lower}"
        )
    training.skipped += 1
    console.print(f"warning: {what}. Skipped, {training.skipped} of at most {runtime.max_skipped}")


def write_reproduction(file: Path, training: "Training", batch: Batch, runtime: Runtime) -> None:
    """The state before the step, and its batch with the generator's state."""
    state: State = training.state()
    fields = {"u": batch.u, "nu": batch.nu, "sample": batch.sample, "frame": batch.frame}
    facts = state.facts | {"time_step": batch.time_step, "size": batch.size} | runtime.facts
    training.entry.begin()
    write_state(file, replace(
        state, facts=facts, tensors=state.tensors | {"batch": fields | {"generator": batch.generator.get_state()}}
    ))  # fmt: skip
