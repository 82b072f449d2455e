"""Stages of a problem of a few seconds, and their training; the data are the fixture `data`."""

from dataclasses import replace
from functools import partial

import torch

from ups.models.dilresnet import DilatedResNet
from ups.stages.consistency_distill import ConsistencyDistill
from ups.stages.diffusion_residual import DiffusionResidual
from ups.stages.operator import Operator
from ups.training.identity import from_content
from ups.training.loop import LoopSettings, Training
from ups.training.optimizer import OptimizerSettings
from ups.training.runtime import set_up
from ups.training.store import Entry

RUNTIME = set_up("cpu", 1)
NETWORK = partial(DilatedResNet, width=8, kernel=3, dilations=[1, 2])
OPTIMIZER = OptimizerSettings(
    lr=3e-3, warmup=0.1, betas=[0.95, 0.95], basis_interval=10, weight_decay=0.0, clip=1.0, ema_decay=0.9
)


def operator(unroll=1, noise=(0.0, 0.0), round_trip=1.0):
    torch.manual_seed(0)
    return Operator(NETWORK, None, unroll, round_trip, list(noise), 1e-5)


def diffusion():
    torch.manual_seed(0)
    return DiffusionResidual(NETWORK, operator(), 5, 2)


STUDENT = {"intervals": 6, "unroll": 2, "evaluations_per_step": 1, "members": 2, "operator_relative_lr": 0.2}


def student(**settings):
    return ConsistencyDistill(diffusion(), **STUDENT | settings)


def disturb(*networks):
    """A new network's outputs are zero, and much is zero with them."""
    for network in networks:
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


STAGES = {"operator": operator, "diffusion_residual": diffusion, "consistency_distill": student}


def training(stage, data, folder, steps=20, validations=2, symmetries=(), **optimizer):
    """`optimizer`: what is other than in OPTIMIZER."""
    content = {"stage": {"name": "any", "requires": None, "steps": steps}}
    optimizer = replace(OPTIMIZER, **optimizer)
    settings = LoopSettings("any", steps, 4, validations, optimizer, seed=0, symmetries=symmetries)
    return Training(stage, settings, data, Entry(folder, from_content(content)), made_by=RUNTIME.facts)
