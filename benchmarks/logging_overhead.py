"""What logging costs: the loop with the default callbacks and loggers against the bare loop.

    python benchmarks/logging_overhead.py

Both loops train the default model on random fields, alternating in one process; the medians of the rounds are compared.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from ups.callbacks.progress import Progress
from ups.callbacks.step_metrics import StepMetrics
from ups.config.build import build
from ups.config.compose import composed
from ups.data.trajectories import Splits, Trajectories
from ups.loggers.csv import CSVLogger
from ups.loggers.wandb import WandbLogger
from ups.stages.operator import Operator
from ups.training.identity import from_content
from ups.training.loop import LoopSettings, Training, training_step
from ups.training.optimizer import OptimizerSettings
from ups.training.runtime import set_up
from ups.training.store import Entry

ROUNDS, STEPS = 8, 40


def main() -> None:
    cfg = composed("train")
    folder = Path(tempfile.mkdtemp())
    runtime = set_up("cpu", 1)
    loggers = [
        CSVLogger(folder / "metrics.csv"),
        build(cfg.logger.wandb, "logger.wandb", folder=folder, config={}),
    ]
    assert isinstance(loggers[1], WandbLogger) and not loggers[1].given_up
    callbacks = [
        build(cfg.callbacks.step_metrics, "callbacks.step_metrics", loggers=loggers),
        build(cfg.callbacks.progress, "callbacks.progress"),
    ]
    assert isinstance(callbacks[0], StepMetrics) and isinstance(callbacks[1], Progress)

    fields = Trajectories(torch.randn(64, 41, cfg.dataset.points), torch.full((64,), 0.001), 0.05)
    model = build(cfg.model, "model", partial=True)
    node = cfg.stage
    stage = Operator(model, None, node.unroll, node.round_trip, list(node.input_noise), node.error_floor)
    settings = LoopSettings(
        "operator", 10**6, cfg.stage.batch_size, 1, OptimizerSettings(1e-4, 0.0, [0.95, 0.95], 10, 0.0, 1.0, 0.999), 0
    )
    content = {"stage": {"name": "operator", "requires": None}}
    training = Training(stage, settings, Splits(fields, fields, fields), Entry(folder, from_content(content)))

    seconds = {"bare": [], "logged": []}
    for callback in callbacks:
        callback.on_start(training)
    lap(training, runtime, [])
    for _ in range(ROUNDS):
        seconds["bare"].append(lap(training, runtime, []))
        seconds["logged"].append(lap(training, runtime, callbacks))
    ratios = [logged / bare for bare, logged in zip(seconds["bare"], seconds["logged"], strict=True)]
    # What the hooks take by themselves, which a noisy machine's difference of laps cannot resolve.
    hooks = hook_seconds(training, callbacks)
    step = statistics.median(seconds["bare"]) / STEPS
    for logger in loggers:
        logger.finish(0)
    print(f"one step {step * 1e3:.2f} ms; hooks {hooks * 1e6:.0f} us a step: {hooks / step:.2%} of it")
    print(f"loop with hooks / bare loop, median of {ROUNDS} rounds in turn: {statistics.median(ratios):.3f}")


def lap(training: Training, runtime, callbacks) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        training_step(training, runtime)
        for callback in callbacks:
            callback.on_step(training)
    seconds = time.perf_counter() - started
    training.seconds += seconds
    return seconds


def hook_seconds(training: Training, callbacks, steps: int = 2000) -> float:
    """Per step, with the values of the last step."""
    started = time.perf_counter()
    for _ in range(steps):
        training.step += 1
        for callback in callbacks:
            callback.on_step(training)
    return (time.perf_counter() - started) / steps


if __name__ == "__main__":
    main()
