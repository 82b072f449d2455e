"""A stage and its networks from an identity, untrained, and whether they fit the data."""

import inspect
from collections.abc import Sequence

import torch
from omegaconf import OmegaConf

from ups.config.build import build, keyed
from ups.config.check import LOOP_KEYS
from ups.data.batches import generator_of
from ups.data.trajectories import Dataset, Splits
from ups.errors import UserError
from ups.stages.stage import Stage
from ups.training.identity import Identity
from ups.training.levers import building
from ups.training.loop import LoopSettings
from ups.training.optimizer import OptimizerSettings
from ups.training.runtime import Runtime


def build_stage(identity: Identity, required: Stage | None, runtime: Runtime, key: str | None = None) -> Stage:
    """Untrained, with initial weights that are a function of the seed. `key` is its place in the config of a training.

    Raises a `UserError` for an argument that the stage or its network refuses, and where memory does not suffice.
    """
    content = identity.content
    node = {name: value for name, value in content["stage"].items() if name not in (*LOOP_KEYS, "requires")}
    arguments = {"requires": required}
    if "network" in node:
        arguments["network"] = build(OmegaConf.create(node.pop("network")), f"{key or 'stage'}.network", partial=True)
    make = build(OmegaConf.create(node), key or "stage", partial=True)
    if "model" in inspect.signature(make).parameters:
        arguments["model"] = build(OmegaConf.create(content["model"]), "model", partial=True)
    torch.manual_seed(content["seed"])
    with building(identity, key, runtime.device):
        stage = make(**arguments)
        stage.network.to(runtime.device)
    return stage


def build_chain(identity: Identity, runtime: Runtime) -> list[Stage]:
    """Untrained; the first prerequisite comes first."""
    chain = identity.chain()
    stages: list[Stage] = []
    for place, each in enumerate(chain, 1):
        stages.append(build_stage(each, stages[-1] if stages else None, runtime, key_of(place, chain)))
    return stages


def key_of(place: int, chain: Sequence) -> str:
    """Where the stage at `place`, counted from 1, stands in the config."""
    return "stage" + ".requires" * (len(chain) - place)


def settings_of(identity: Identity, key: str) -> LoopSettings:
    node = identity.content["stage"]
    return LoopSettings(
        **{name: node[name] for name in LOOP_KEYS if name != "optimizer"},
        optimizer=OptimizerSettings(**node["optimizer"]),
        seed=identity.content["seed"],
        key=key,
    )


def try_out(identity: Identity, dataset: Dataset, runtime: Runtime) -> None:
    """Build the chain and take one step of each stage: a `UserError` for what the networks, the names and the data's
    shape do not allow, before anything is fetched or generated.
    """
    chain = identity.chain()
    stages, example = build_chain(identity, runtime), dataset.example()
    check_names(chain)
    if example is None:
        return
    u, nu = example.u[:, 0].to(runtime.device), example.nu.to(runtime.device)
    for place, (each, stage) in enumerate(zip(chain, stages, strict=True), 1):
        key = key_of(place, chain)
        check_frames(key, each.name, stage, example.u.shape[1])
        own = each.content["stage"].get("network")  # what it requires has just taken its step
        network_key, node = ("model", each.content["model"]) if own is None else (f"{key}.network", own)
        with torch.no_grad(), building(each, key, runtime.device):
            try:
                after = stage.step(u, nu, example.time_step, generator_of(runtime.device, 0))
                if after.shape != u.shape:  # which might be broadcast
                    raise UserError(f"the step must give {tuple(u.shape)}: it gives {tuple(after.shape)}")
            except UserError as error:
                raise UserError(keyed(str(error), network_key, node)) from error
    example.window(dataset.initial_frame, dataset.rollout_steps, ("dataset.initial_frame", "dataset.rollout_steps"))


def check_names(chain: Sequence[Identity]) -> None:
    """Charts, figures and W&B's axes are told apart by them, also of stages of one class."""
    for place, each in enumerate(chain, 1):
        if each.name in [other.name for other in chain[place:]]:
            taken = "another stage of the chain has that name, and its charts"
            raise UserError(f"{key_of(place, chain)}.name={each.name}: {taken}")


def check_data(settings: LoopSettings, stage: Stage, data: Splits) -> None:
    frames = data.train.u.shape[1]
    check_frames(settings.key, settings.name, stage, frames)
    samples = len(data.train) * (frames - stage.frames_per_sample + 1)
    if settings.batch_size > samples:
        raise UserError(
            f"{settings.key}.batch_size={settings.batch_size} ({settings.name}): the training data has only {samples} "
            f"samples ({len(data.train)} trajectories); choose at most that, or raise dataset.train"
        )


def check_frames(key: str, name: str, stage: Stage, frames: int) -> None:
    if stage.frames_per_sample > frames:
        raise UserError(
            f"{key}.unroll={stage.frames_per_sample - 1} ({name}): the training data has {frames} frames; choose at "
            f"most {frames - 1}"
        )
