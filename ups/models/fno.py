"""Fourier neural operator (Li et al., arXiv 2010.08895): global convolutions with learned Fourier coefficients.

The path beside them is a local convolution (Liu-Schiaffini et al., arXiv 2402.16845): a shock is not in the low modes.
With a kernel of 1 it is the original.

Shapes: B batch, C channels, N points, K condition scalars, M modes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.models.conditioning import ConditionEmbedding
from ups.models.layers import CircularConv, ModulatedGELU, zeroed


class FNO(nn.Module):
    """x: (B, in_channels, N), c: (B, condition) -> (B, out_channels, N); zero at initialisation.

    Equivariant to shifts of the grid; `modes` counts the wave numbers that a layer mixes, from 0 up.
    """

    def __init__(
        self, in_channels: int, out_channels: int, condition: int, modes: int, width: int, kernel: int, blocks: int
    ):
        super().__init__()
        self.embed = ConditionEmbedding(condition)
        self.lift = nn.Conv1d(in_channels, width, 1)
        self.blocks = nn.ModuleList(FourierBlock(width, modes, kernel) for _ in range(blocks))
        self.project = zeroed(nn.Conv1d(width, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        embedding = self.embed(c)
        h = self.lift(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.project(F.gelu(h))


class FourierBlock(nn.Module):
    """h: (B, W, N), embedding: (B, E) -> h + conv(g) + a product of g with learned coefficients in Fourier space, where
    g = gelu(h scaled and shifted by the embedding).
    """

    def __init__(self, width: int, modes: int, kernel: int):
        super().__init__()
        self.modulate = ModulatedGELU(width)
        self.local = CircularConv(width, width, kernel, 1)
        self.coefficients = nn.Parameter(torch.rand(width, width, modes, 2) / width**2)  # real and imaginary parts

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h_in = self.modulate(h, embedding)
        spectrum = torch.fft.rfft(h_in.float())  # cuFFT has no bfloat16
        coefficients = torch.view_as_complex(self.coefficients)
        modes = min(coefficients.shape[2], spectrum.shape[2])  # a coarse grid has fewer
        mixed = torch.einsum("bim,iom->bom", spectrum[..., :modes], coefficients[..., :modes])
        return h + self.local(h_in) + torch.fft.irfft(mixed, h.shape[-1])
