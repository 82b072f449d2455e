"""How every network is told nu, the time step and, in a diffusion, the flow's time."""

import math

import torch
from torch import Tensor, nn


class ConditionEmbedding(nn.Module):
    """c: (B, K) scalars of order one -> (B, width)."""

    def __init__(self, scalars: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(scalars, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, c: Tensor) -> Tensor:
        return self.layers(c)


def physical_scalars(nu: Tensor, time_step: float) -> Tensor:
    """nu: (B,) -> (B, 2): the logarithms of nu and of the time step, of order one over PDEBench's files."""
    log_step = torch.full_like(nu, math.log(time_step / 0.05))
    return torch.stack(((nu / 0.01).log(), log_step), -1) / 3
