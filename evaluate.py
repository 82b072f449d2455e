"""Score a trained stage on trajectories it has not seen, beside persistence and the classical solver.

    python evaluate.py checkpoint=store/operator-DIGEST dataset=pdebench_burgers dataset.path=FILE
"""

import hydra
from omegaconf import DictConfig

from ups.cli import one_line_errors, run


@hydra.main(config_path="conf", config_name="evaluate", version_base=None)
def main(cfg: DictConfig) -> float:
    with one_line_errors(cfg):
        from ups.runs.evaluate import run_evaluation

        return run_evaluation(cfg)


if __name__ == "__main__":
    run(main, "evaluate")
