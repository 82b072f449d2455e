"""Dilated residual convolutions on the circle (after Stachenfeld et al., arXiv 2112.15275), at the field's resolution.

Shapes: B batch, C channels, N points, K condition scalars.
"""

from torch import nn

from ups.models.conditioning import ConditionEmbedding
from ups.models.layers import CircularConv, ResidualBlock, ResidualNetwork, zeroed


class DilatedResNet(ResidualNetwork):
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
