"""U-Net (Ronneberger et al., arXiv 1505.04597) of circular convolutions.

Shapes: B batch, C channels, N points, K condition scalars.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.errors import UserError
from ups.models.conditioning import ConditionEmbedding
from ups.models.layers import CircularConv, ResidualBlock, zeroed


class UNet(nn.Module):
    """x: (B, in_channels, N), c: (B, condition) -> (B, out_channels, N); zero at initialisation.

    Each of the `levels` halves the resolution and doubles the channels, and passes its field across to the way up.
    """

    def __init__(self, in_channels: int, out_channels: int, condition: int, width: int, kernel: int, levels: int):
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.embed = ConditionEmbedding(condition)
        self.lift = CircularConv(in_channels, width, kernel, 1)
        self.down = nn.ModuleList(ResidualBlock(channels, kernel, 1) for channels in widths[:-1])
        self.widen = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for channels in widths[:-1])
        self.bottom = ResidualBlock(widths[-1], kernel, 1)
        self.narrow = nn.ModuleList(nn.Conv1d(3 * channels, channels, 1) for channels in widths[:-1])
        self.up = nn.ModuleList(ResidualBlock(channels, kernel, 1) for channels in widths[:-1])
        self.project = zeroed(nn.Conv1d(width, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        levels = len(self.down)
        if x.shape[-1] % 2**levels:
            raise UserError(f"levels={levels}: {2**levels} must divide the {x.shape[-1]} points of the field")
        embedding = self.embed(c)
        h, across = self.lift(x), []
        for block, widen in zip(self.down, self.widen, strict=True):
            h = block(h, embedding)
            across.append(h)
            h = widen(F.avg_pool1d(h, 2))
        h = self.bottom(h, embedding)
        for block, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            h = narrow(torch.cat((h.repeat_interleave(2, -1), across.pop()), 1))
            h = block(h, embedding)
        return self.project(F.gelu(h))
