"""Train a stage of a neural surrogate of Burgers' equation, its prerequisites first.

    python train.py stage=diffusion_residual
"""

import hydra
from omegaconf import DictConfig

from ups.cli import one_line_errors, run

jobs = []  # of a sweep


@hydra.main(config_path="conf", config_name="train", version_base=None)
def main(cfg: DictConfig) -> float:
    with one_line_errors(cfg):
        from ups.runs.train import run_training  # torch is imported here: --help and --cfg job answer at once

        return run_training(cfg, jobs)


def report() -> None:
    if jobs:
        from ups.runs.sweep import print_sweep

        print_sweep(jobs)


if __name__ == "__main__":
    run(main, "train", report, after_stop="; what was saved is kept, and the same command goes on from it")
