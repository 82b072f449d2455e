"""Rent a Vast.ai GPU that trains the pushed commit with this config, proves its results saved and destroys itself.

    python launch_vast.py stage=diffusion_residual +auto_shutdown=true
"""

import hydra
from omegaconf import DictConfig

from ups.cli import one_line_errors, run

outcomes = []  # of a sweep's jobs


@hydra.main(config_path="conf", config_name="launch", version_base=None)
def main(cfg: DictConfig) -> None:
    with one_line_errors(cfg):
        from ups.launch.command import run_launch

        run_launch(cfg, outcomes)


def report() -> None:
    if outcomes:
        from ups.launch.command import print_sweep

        print_sweep(outcomes)


if __name__ == "__main__":
    run(main, "launch", report)
