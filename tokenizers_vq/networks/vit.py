"""Encoder and decoder as transformers over patches (ViT-VQGAN, arXiv 2110.04627): large matrix products instead of
convolutions at full resolution, which is what a GPU is fast at.

Pre-norm blocks; queries and keys are normalised, so that bf16 is safe. Positions are rotary over (row, column)
(arXiv 2104.09864): any grid works, also one larger than in training. `conv_in` and `conv_out` have the names of the
convolutional network's first and last layer.

B = images, C = channels, H, W = pixels, h, w = places (H/patch, W/patch), T = h*w, D = head size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .vit_config import HEAD_SIZE, ViTConfig

BASE = 100.0
"""Of the rotary waves: the slowest is longer than a grid of a hundred places."""
PIXEL_CHANNELS = 16
"""Channels in which patches are put together before the last convolution."""


def turn(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (T, D/2) float32: half of the pairs turn with the row, half with the column."""
    waves = BASE ** -(torch.arange(HEAD_SIZE // 4, device=device) / (HEAD_SIZE // 4))
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    angles = torch.cat([rows.reshape(-1, 1) * waves, columns.reshape(-1, 1) * waves], 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns x (B, heads, T, D); pair i is (x[i], x[i + D/2])."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class Block(nn.Module):
    """Self-attention over all places, then two layers on each place; each plus its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.Parameter(torch.ones(HEAD_SIZE))
        self.key_norm = nn.Parameter(torch.ones(HEAD_SIZE))
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, places, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, places, 3, -1, HEAD_SIZE)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D)
        q = rotate(F.rms_norm(q, (HEAD_SIZE,), self.query_norm.to(q.dtype), 1e-6), cosine.to(q), sine.to(q))
        k = rotate(F.rms_norm(k, (HEAD_SIZE,), self.key_norm.to(k.dtype), 1e-6), cosine.to(k), sine.to(k))
        seen = F.scaled_dot_product_attention(q, k, v)  # (B, heads, T, D)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, places, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Trunk(nn.Module):
    """(B, C, h, w) -> the same, normalised."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.checkpointing = False
        """Activation checkpointing: recompute a block in the backward pass instead of keeping its activations."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        cosine, sine = turn(height, width, x.device)
        x = x.flatten(2).transpose(1, 2)  # (B, T, C)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, cosine, sine, use_reentrant=False)
            else:
                x = block(x, cosine, sine)
        return self.norm(x).transpose(1, 2).reshape(batch, channels, height, width)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, latent_dim, h, w)."""

    def __init__(self, config: ViTConfig, latent_dim: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.trunk = Trunk(config)
        self.conv_out = nn.Conv2d(config.width, latent_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.trunk(self.conv_in(x)))


class Decoder(nn.Module):
    """(B, latent_dim, h, w) -> (B, 3, H, W), not clamped. The last layer is a 3x3 convolution across the borders of the
    patches, as a guard against their showing."""

    def __init__(self, config: ViTConfig, latent_dim: int) -> None:
        super().__init__()
        self.patch = config.patch
        self.conv_in = nn.Conv2d(latent_dim, config.width, 1)
        self.trunk = Trunk(config)
        self.to_pixels = nn.Conv2d(config.width, PIXEL_CHANNELS * config.patch**2, 1)
        self.conv_out = nn.Conv2d(PIXEL_CHANNELS, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.to_pixels(self.trunk(self.conv_in(z)))  # (B, 16 * patch**2, h, w)
        return self.conv_out(F.pixel_shuffle(x, self.patch))
