"""What a training may lower when memory runs out, under the keys that stand in its config."""

import torch

from ups.machine import processes
from ups.memory import Lever, Memory
from ups.training.identity import Identity


def of_network(identity: Identity, key: str) -> list[Lever]:
    """`key` is the stage's place in the config: stage, stage.requires, ..."""
    stage = identity.content["stage"]
    while stage["requires"] and "network" not in stage:  # a student's is its teacher's
        stage, key = stage["requires"], f"{key}.requires"
    place, node = (f"{key}.network", stage["network"]) if "network" in stage else ("model", identity.content["model"])
    return [Lever(f"{place}.width", node["width"], power=2)] if "width" in node else []


def building(identity: Identity, key: str | None, device: torch.device) -> Memory:
    """`key` is None where a finished training is loaded: nothing of it can be lowered any more."""
    levers = lambda: of_network(identity, key) if key else []
    return Memory(f"building the network of {identity.name}", levers, device)


def stepping(identity: Identity, key: str, device: torch.device) -> Memory:
    def levers() -> list[Lever]:
        stage = identity.content["stage"]
        levers = [Lever(f"{key}.batch_size", stage["batch_size"], least=processes())]
        if stage.get("unroll", 1) > 1:
            levers.append(Lever(f"{key}.unroll", stage["unroll"]))
        return [*levers, *of_network(identity, key)]

    return Memory(f"a training step of {identity.name}", levers, device)


def evaluating(identity: Identity, key: str, device: torch.device, split: str) -> Memory:
    """Rollouts of a split's trajectories by all members: the larger number is lowered first."""

    def levers() -> list[Lever]:
        found = [Lever(f"dataset.{split}", identity.content["dataset"][split])]
        if "members" in identity.content["stage"]:
            found.append(Lever(f"{key}.members", identity.content["stage"]["members"], least=2))  # one has no spread
        return [*sorted(found, key=lambda lever: -lever.value), *of_network(identity, key)]

    return Memory(f"rollouts of {identity.name} on the {split} data", levers, device)
