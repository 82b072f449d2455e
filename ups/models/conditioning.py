"""Conditioning of every network on nu, the time step and, in a diffusion, the flow's time.

Shapes: B batch, K condition scalars, E width of the embedding, W channels.
"""

import math

import torch
from torch import Tensor, nn

CONDITIONS = 2  # what `physical_scalars` gives
EMBEDDING = 16


class ConditionEmbedding(nn.Module):
    """c: (B, K) scalars of order one -> (B, E)."""

    def __init__(self, scalars: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(scalars, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU()
        )  # fmt: skip

    def forward(self, c: Tensor) -> Tensor:
        return self.layers(c)


class Modulation(nn.Linear):
    """embedding: (B, E) -> scale and shift of a block's channels, (B, W) each; zero at initialisation."""

    def __init__(self, width: int):
        super().__init__(EMBEDDING, 2 * width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(embedding).chunk(2, -1)


def physical_scalars(nu: Tensor, time_step: float) -> Tensor:
    """nu: (B,) -> (B, 2): the logarithms of nu and of the time step, of order one over PDEBench's files."""
    log_step = torch.full_like(nu, math.log(time_step / 0.05))
    return torch.stack(((nu / 0.01).log(), log_step), -1) / 3
