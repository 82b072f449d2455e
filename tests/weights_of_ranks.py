"""Run by torchrun: each process trains its part of small batches and writes the weights that it ends with."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_training import RUNTIME, operator, training

from ups.data.trajectories import Splits, Trajectories
from ups.machine import rank
from ups.training.distributed import process_group
from ups.training.loop import train


def main(folder: Path) -> None:
    torch.manual_seed(0)
    fields = Trajectories(torch.randn(16, 6, 32).cumsum(-1) / 8, torch.full((16,), 0.01), 0.05)
    task = training(operator(), Splits(fields, fields, fields), folder / "store", steps=30)
    with process_group():
        train(task, [], RUNTIME)
        save_file(task.optimizer.state_dict() | dict(task.stage.network.state_dict()), folder / f"{rank()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
