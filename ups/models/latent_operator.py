"""Encoder, latent tokens, transformer, decoder: the field's patches are tokens on a circle.

Shapes: B batch, C channels, N points, K condition scalars, M = N / patch tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.errors import UserError
from ups.models.conditioning import ConditionEmbedding, Modulation
from ups.models.layers import CircularConv, ResidualBlock, zeroed

HARMONICS = 16  # of the bias of a distance
KERNEL = 5  # points of the decoder's convolutions


class LatentOperator(nn.Module):
    """x: (B, in_channels, N), c: (B, condition) -> (B, out_channels, N); zero at initialisation.

    The decoder sees the field too (a skip): a latent of N / patch tokens alone cannot hold a shock. Both are joined
    and, in a residual block for each of `dilations`, refined at the field's resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition: int,
        patch: int,
        width: int,
        blocks: int,
        heads: int,
        dilations: list[int],
    ):
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"width={width} must be even and a multiple of heads={heads}")
        self.patch = patch
        self.embed = ConditionEmbedding(condition)
        # Patches overlap by half on each side, so that a token knows the flow across its borders.
        self.encode = nn.Conv1d(in_channels, width, 2 * patch, stride=patch)
        self.blocks = nn.ModuleList(AttentionBlock(width, heads) for _ in range(blocks))
        self.decode = nn.ConvTranspose1d(width, width // 2, patch, stride=patch)
        self.skip = CircularConv(in_channels, width // 2, KERNEL, 1)
        self.join = CircularConv(width, width // 2, KERNEL, 1)
        self.refine = nn.ModuleList(ResidualBlock(width // 2, KERNEL, dilation) for dilation in dilations)
        self.project = zeroed(nn.Conv1d(width // 2, out_channels, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if x.shape[-1] % self.patch:
            raise UserError(f"patch={self.patch}: must divide the {x.shape[-1]} points of the field")
        embedding = self.embed(c)
        before = self.patch // 2
        tokens = self.encode(F.pad(x, (before, self.patch - before), mode="circular")).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        h = self.join(F.gelu(torch.cat((self.decode(tokens.transpose(1, 2)), self.skip(x)), 1)))
        for block in self.refine:
            h = block(h, embedding)
        return self.project(F.gelu(h))


class AttentionBlock(nn.Module):
    """tokens: (B, M, W), embedding: (B, E) -> (B, M, W); equivariant to shifts by a token."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.modulate = Modulation(width)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        # The bias of a distance on the circle: a sum of HARMONICS cosines and sines for each head, any M.
        self.relative = nn.Parameter(torch.zeros(heads, 2 * HARMONICS))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)
        normed = self.attention_norm(tokens) * (1 + scale[:, None]) + shift[:, None]
        split = self.query_key_value(normed).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, M, W / heads)
        bias = self._bias(tokens.shape[1]).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        tokens = tokens + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.mlp_norm(tokens))

    def _bias(self, count: int) -> Tensor:
        """(heads, M, M), a function of (i - j) / M."""
        position = torch.arange(count, device=self.relative.device)
        angle = 2 * torch.pi * (position[:, None] - position) / count
        angles = torch.arange(1, HARMONICS + 1, device=angle.device)[:, None, None] * angle
        waves = torch.cat((angles.cos(), angles.sin()))
        return torch.einsum("hk,kij->hij", self.relative, waves)
