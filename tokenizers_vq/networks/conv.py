"""The convolutional encoder and decoder of VQGAN (arXiv 2012.09841), with its wiring and its parameter names.

Names and order of layers are those of taming-transformers, so that its checkpoints map one to one. Departures, all
off by default: pixels folded into channels (`stem`), fewer groups where 32 do not divide the channels, less attention.

B = images, C = channels, H, W = pixels, h, w = codes (H/stride, W/stride)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config_base import ConvConfig


def fast_memory(x: Tensor) -> Tensor:
    """The memory order that all following layers keep: channels-last, but plain where a CPU trains.

    Channels-last convolutions are the faster ones everywhere, but the gradient of the CPU's group norm loses far more
    in that order than they win: a bf16 training step took 1.3 to 2.3 times longer (torch 2.15, AVX-512).
    """
    plain = torch.is_grad_enabled() and not x.is_cuda
    return x.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)


def fast_weights(network: nn.Module) -> None:
    """Puts kernels into channels-last order, for a network that is not trained: small pictures wait less for them to be
    reordered, and results stay the same to the bit. (Those of 1x1 kernels do not, so these stay as they are.)"""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.to(memory_format=torch.channels_last)


WIDE = 128
"""Channels from which pictures of one position are trained on as rows. Narrow ones gain less, and what they learn is
pinned (docs/log.md, 2026-11-27)."""


def _rows(x: Tensor) -> Tensor | None:
    """(N, C): pictures of one position as a CPU trains on them fastest, where convolutions and group norms of single
    positions take three to ten times as long as products and layer norms. None: x has more, or is narrow, or nothing
    is learned, and then codes are those of the published operations to the bit."""
    one = x.shape[-2] == x.shape[-1] == 1 and x.shape[1] >= WIDE
    return x.flatten(1) if one and torch.is_grad_enabled() and not x.is_cuda else None


class Convolution(nn.Conv2d):
    """A convolution that keeps height and width."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows(x) if self.kernel_size == (1, 1) else None
        if rows is None:
            return super().forward(x)
        return F.linear(rows, self.weight.flatten(1), self.bias)[..., None, None]


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        rows = _rows(x) if self.num_groups == 1 else None
        if rows is None:
            return super().forward(x)
        return F.layer_norm(rows, rows.shape[1:], self.weight, self.bias, self.eps)[..., None, None]


def group_norm(channels: int) -> GroupNorm:
    """32 groups as published where they divide the channels, else the most groups of at least 4 channels."""
    groups = 32
    if channels % groups:
        groups = max(count for count in range(1, max(1, channels // 4) + 1) if channels % count == 0)
    return GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input (through a 1x1 when the channel count changes)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = Convolution(channels_in, channels_out, kernel, bias)
        self.norm2 = group_norm(channels_out)
        self.conv2 = Convolution(channels_out, channels_out, kernel, bias)
        self.nin_shortcut = Convolution(channels_in, channels_out, 1, bias) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One head of self-attention over all positions, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)

        def rows(t: Tensor) -> Tensor:  # (B, C, h, w) -> (B, 1, h*w, C); a view when the memory is channels-last
            return t.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)

        h = F.scaled_dot_product_attention(rows(self.q(h)), rows(self.k(h)), rows(self.v(h)))
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halves the resolution; pads right and bottom only, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution: nearest, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it, and the change of resolution."""

    def __init__(self, blocks: Iterable[ResidualBlock], attention: Iterable[AttentionBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attention)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None
        self.checkpointing = False
        """Activation checkpointing: recompute a block in the backward pass instead of keeping its activations."""

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if self.attn:
                x = self.attn[index](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, attention: bool, kernel: int = 3) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, kernel)
        self.attn_1 = AttentionBlock(channels) if attention else None
        self.block_2 = ResidualBlock(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        return self.block_2(x)


def _level(
    config: ConvConfig, index: int, levels: int, channels_in: int, channels_out: int, blocks: int, kernel: int = 3
) -> Level:
    lowest = index == levels - 1
    inputs = [channels_in] + [channels_out] * (blocks - 1)
    attends = (config.attention == "lowest" and lowest) or index in config.attention_levels
    attention = blocks if attends and kernel == 3 else 0
    return Level(
        [ResidualBlock(width, channels_out, kernel) for width in inputs],
        [AttentionBlock(channels_out) for _ in range(attention)],
    )


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, latent_dim, h, w)."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        levels = config.encoder_levels
        self.stem = config.stem
        self.patch = config.stride if config.patchwise else None
        # Folded by the stem, a patch may be a single position: nothing stands beside it, and 1x1 does all that 3x3 can.
        alone = self.patch == config.stem
        kernel = 1 if alone else 3
        attention = config.attention != "none" and not alone
        self.conv_in = Convolution(3 * config.stem**2, config.channels, kernel)
        self.down = nn.ModuleList()
        width = config.channels
        for index, (width_out, blocks) in enumerate(levels):
            level = _level(config, index, len(levels), width, width_out, blocks, kernel)
            if index < len(levels) - 1:
                level.downsample = Downsample(width_out)
            self.down.append(level)
            width = width_out
        self.mid = Middle(width, attention, kernel)
        self.norm_out = group_norm(width)
        self.conv_out = Convolution(width, config.latent_dim, kernel)
        if config.patchwise:
            # A small patch ends as one position, where a group of four channels has little left after its own mean and
            # deviation are taken out. One group of all channels keeps what the patch looks like.
            for module in self.modules():
                if isinstance(module, nn.GroupNorm):
                    module.num_groups = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.patch is None:
            return self._encode(x)
        batch, _, height, width = x.shape
        h, w = height // self.patch, width // self.patch
        x = F.pixel_unshuffle(x, self.patch)  # (B, 3*p*p, h, w), then every patch as a picture: (B*h*w, 3, p, p)
        x = x.permute(0, 2, 3, 1).reshape(batch * h * w, 3, self.patch, self.patch)
        return self._encode(x).reshape(batch, h, w, -1).permute(0, 3, 1, 2)

    def _encode(self, x: Tensor) -> Tensor:
        if self.stem > 1:
            x = F.pixel_unshuffle(x, self.stem)  # (B, 3*stem*stem, H/stem, W/stem)
        x = self.conv_in(fast_memory(x))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, latent_dim, h, w) -> (B, 3, H, W), not clamped."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.stem = config.decoder_stem
        width = config.decoder_levels[-1][0]
        self.conv_in = nn.Conv2d(config.latent_dim, width, 3, padding=1)
        self.mid = Middle(width, attention=config.attention != "none")
        levels = []
        for index, (width_out, blocks) in reversed(list(enumerate(config.decoder_levels))):
            level = _level(config, index, len(config.decoder_levels), width, width_out, blocks)
            if index > 0:
                level.upsample = Upsample(width_out)
            levels.append(level)
            width = width_out
        # As published, up[0] is the full resolution and runs last.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3 * self.stem**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(fast_memory(z)))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.stem) if self.stem > 1 else x
