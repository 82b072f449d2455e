"""Repeats a step whose loss or gradient was not finite, and says where it began.

    python -m ups.runs.replay store/STAGE-DIGEST/nonfinite-STEP.safetensors

With the weights before the step, its batch and its noise, which the file holds, on the kind of device it was on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ups.data.batches import Batch
from ups.errors import UserError
from ups.tensors import Damaged
from ups.training.build import build_stage
from ups.training.identity import read_identity
from ups.training.load import load_chain
from ups.training.runtime import set_up
from ups.training.state import State, read_state
from ups.training.store import IDENTITY


def replay(file: Path, searchpath: Sequence[Path] = ()) -> str:
    """What the step does again, line by line."""
    file = Path(os.path.abspath(file))  # its folder and the store around it count
    takes = "it takes a nonfinite-STEP.safetensors"
    try:
        state = read_state(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {takes}") from None
    except Damaged as error:
        raise UserError(f"{file} is damaged ({error})") from None
    if "batch" not in state.tensors:
        raise UserError(f"{file} holds no step to repeat: {takes}")
    if state.facts["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{file}: its step was taken on a GPU: repeat it on a machine that has one")
    runtime = set_up(state.facts["device"], "auto", state.facts["precision"])
    identity = read_identity(file.parent / IDENTITY, searchpath)
    if identity.digest != state.facts["digest"]:
        raise UserError(f"{file} is of another stage than the {IDENTITY} beside it")
    required = load_chain(identity.requires, file.parent.parent, runtime).stage if identity.requires else None
    stage = build_stage(identity, required, runtime)
    stage.network.load_state_dict(state.tensors["network"])

    weights = dict(stage.network.named_parameters())
    largest = max(weights, key=lambda name: float(weights[name].detach().abs().max()))
    batch, found = batch_of(state, runtime.device), watch(stage.network)
    with runtime.autocast():
        loss, terms = stage.loss(batch)
    loss.backward()
    values = {name: float(value.detach()) for name, value in ({"loss": loss} | terms).items()}
    wrong = [name for name, weight in weights.items() if is_wrong(weight.grad)]
    return "\n".join((
        f"step {state.facts['step']}: {', '.join(f'{name} {value:g}' for name, value in values.items())}",
        f"its batch: values from {float(batch.u.min()):g} to {float(batch.u.max()):g}",
        f"largest weight before it: {float(weights[largest].detach().abs().max()):g} in {largest}",
        f"first output that is not finite: {found[0] if found else 'none'}",
        f"gradients that are not finite: {len(wrong)} of {len(weights)}{', first ' + wrong[0] if wrong else ''}",
    ))


def batch_of(state: State, device: torch.device) -> Batch:
    named = dict(state.tensors["batch"])
    generator = torch.Generator(device)
    generator.set_state(named.pop("generator"))
    named = {name: tensor.to(device) for name, tensor in named.items()}
    return Batch(**named, time_step=state.facts["time_step"], size=state.facts["size"], generator=generator)


def watch(network: nn.Module) -> list[str]:
    """Fills with the modules whose output is not finite, in the order of the computation."""
    found: list[str] = []
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda module, _, output, name=name: found.append(f"{name or 'the network'} ({type(module).__name__})")
            if is_wrong(output) else None
        )  # fmt: skip
    return found


def is_wrong(value) -> bool:
    if isinstance(value, tuple):
        return any(map(is_wrong, value))
    return isinstance(value, torch.Tensor) and not bool(value.isfinite().all())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ups.runs.replay", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--searchpath", type=Path, nargs="+", default=[], metavar="FOLDER", help="of your own options")
    asked = parser.parse_args()
    try:
        print(replay(asked.file, asked.searchpath))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
