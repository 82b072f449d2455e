"""Dilated residual convolutions on the circle (after Stachenfeld et al., arXiv 2112.15275), at the field's resolution.

Shapes: B batch, C channels, N points, K condition scalars.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ups.models.conditioning import ConditionEmbedding
from ups.models.layers import CircularConv, ResidualBlock, zeroed


class DilatedResNet(nn.Module):
    """x: (B, in_channels, N), c: (B, condition) -> (B, out_channels, N); zero at initialisation.

    Equivariant to shifts of the grid. It sees (kernel - 1) (1 + sum of dilations) / 2 points to each side: it must be
    more than a wave travels in one time step (13 points at speed 1, 256 points, a step of 0.05).
    """

    def __init__(
        self, in_channels: int, out_channels: int, condition: int, width: int, kernel: int, dilations: list[int]
    ):
        super().__init__()
        self.embed = ConditionEmbedding(condition)
        self.lift = CircularConv(in_channels, width, kernel, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width, kernel, dilation) for dilation in dilations)
        self.project = zeroed(nn.Conv1d(width, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        embedding = self.embed(c)
        h = self.lift(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.project(F.gelu(h))
