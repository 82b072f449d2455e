"""What the convolutional networks share.

Shapes: B batch, W channels, N points, E width of the embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.models.conditioning import Modulation


def zeroed(layer: nn.Conv1d) -> nn.Conv1d:
    """The last layer of a network that is to begin as zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ModulatedGELU(Modulation):
    """h: (B, W, N), embedding: (B, E) -> gelu(h scaled and shifted by the embedding), (B, W, N)."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = super().forward(embedding)
        return F.gelu(torch.addcmul(shift[..., None], h, 1 + scale[..., None]))


class ResidualBlock(nn.Module):
    """h: (B, W, N), embedding: (B, E) -> h + conv(gelu(h scaled and shifted by the embedding))."""

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        self.modulate = ModulatedGELU(width)
        self.conv = CircularConv(width, width, kernel, dilation)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return h + self.conv(self.modulate(h, embedding))


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
