"""Dilated residual convolutions on the circle (after Stachenfeld et al., arXiv 2112.15275), at the field's resolution.

Shapes: B batch, C channels, N points, K condition scalars.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.models.conditioning import ConditionEmbedding


class DilatedResNet(nn.Module):
    """x: (B, in_channels, N), c: (B, condition) -> (B, out_channels, N); zero at initialisation.

    Equivariant to shifts of the grid. It sees (kernel - 1) (1 + sum of dilations) / 2 points to each side: it must be
    more than a wave travels in one time step (13 points at speed 1, 256 points, a step of 0.05).
    """

    def __init__(
        self, in_channels: int, out_channels: int, condition: int, width: int, kernel: int, dilations: list[int]
    ):
        super().__init__()
        self.embed = ConditionEmbedding(condition, 16)
        self.lift = CircularConv(in_channels, width, kernel, 1)
        self.blocks = nn.ModuleList(Block(width, kernel, dilation) for dilation in dilations)
        self.project = nn.Conv1d(width, out_channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        embedding = self.embed(c)
        h = self.lift(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.project(F.gelu(h))


class Block(nn.Module):
    """h + conv(gelu(h scaled and shifted by the condition))."""

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        self.modulate = nn.Linear(16, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.conv = CircularConv(width, width, kernel, dilation)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[..., None].chunk(2, 1)
        return h + self.conv(F.gelu(torch.addcmul(shift, h, 1 + scale)))


class CircularConv(nn.Conv1d):
    """`padding_mode="circular"`, with a padding that may be wider than the field: coarse grids work too."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int):
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd, to be centred")
        super().__init__(in_channels, out_channels, kernel, dilation=dilation)
        self.reach = dilation * (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        reach, points = self.reach, x.shape[-1]
        while reach >= points:  # F.pad wraps around once at most
            x, reach = F.pad(x, (points, points), mode="circular"), reach - points
        return super().forward(F.pad(x, (reach, reach), mode="circular"))
