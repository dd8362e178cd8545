"""Residual quantization over scales, bit by bit (Infinity, arXiv:2412.04431; BSQ, 2406.07548).

A latent grid z of h x w is written as maps of codes, coarse to fine. A code has a bit for each channel, its sign. With
rest = z, for each scale:

    bits  = area(rest, grid of the scale) > 0
    part  = bilinear(+-1 / sqrt(C), h x w)
    total = total + part,   rest = rest - part

Nothing is looked up and nothing is learned. Of a folded tokenizer a code holds `fold` x `fold` places of the latents,
and its maps have so many times as many places along each side.

B = images, C = channels of the latents, D = bits of a code (C * fold^2), h, w = finest grid of latents, L = codes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ConvVQConfig
from ..errors import UserError
from ..layout import Layout
from .base import Quantized
from .multi_scale import ScaleQuantizer
from .single_scale import make_quantizer

LONGEST_TABLE = 20
"""Bits of a codebook that is written out as vectors."""
SMALLEST = 1e-6
"""Of what a scale had left to write: its sign is known."""


def to_bits(codes: Tensor, number: int) -> Tensor:
    """Codes (...) int64 as bits (..., D) int64, 0 or 1, the first counting most."""
    return codes[..., None] >> torch.arange(number - 1, -1, -1, device=codes.device) & 1


def to_codes(bits: Tensor) -> Tensor:
    """The inverse of `to_bits`."""
    number = bits.shape[-1]
    return (bits.long() << torch.arange(number - 1, -1, -1, device=bits.device)).sum(-1)


class BitScales(ScaleQuantizer):
    """Latents (B, C, h, w) <-> codes (B, L) of D bits."""

    def __init__(self, config: ConvVQConfig) -> None:
        super().__init__()
        self.config, self.fold = config, config.scale_fold
        self.book = make_quantizer(config.quantizer)
        self.channels = self.book.width
        self.width = self.channels * self.fold**2
        self.codebook_size = 2**self.width

    def forward(self, z: Tensor, accumulate: bool = False) -> Quantized:
        """As of `bsq`, with the mean of its losses over the scales."""
        with torch.autocast(z.device.type, enabled=False):
            z, layout = z.float(), self._layout(z)
            rest, total = z, torch.zeros_like(z)
            codes, losses = [], []
            for scale in range(len(layout.scales)):
                quantized = self.book(self._down(rest, scale, layout), accumulate)
                codes.append(self._pack(quantized.latents > 0))
                losses.append(quantized.losses)
                part = self._up(quantized.latents, layout)
                total, rest = total + part, rest - part.detach()
            means = {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}
            return Quantized(total, torch.cat(codes, 1), means)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            rest, layout = z.float(), self._layout(z)
            codes = []
            for scale in range(len(layout.scales)):
                codes.append(self._pack(self._down(rest, scale, layout) > 0))
                rest = rest - self._part(codes[-1], scale, layout)
            return torch.cat(codes, 1)

    def vectors(self, codes: Tensor, layout: Layout) -> Tensor:
        return self.total(codes, layout)

    def table(self) -> Tensor:
        """As `Quantizer.table`.

        Raises:
            UserError: so many bits that no table can hold all codes.
        """
        if self.width > LONGEST_TABLE or self.fold > 1:
            raise UserError(f"codes of {self.width} bits have no table of vectors: leave out what looks them up")
        return self.book.table()

    # --- one scale at a time ---------------------------------------------------------------------------------------

    def blank(self, batch: int, layout: Layout, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.channels, *self._grid(-1, layout), device=device)

    def add(self, total: Tensor, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        return total + self._part(codes, scale, layout)

    def shrink(self, total: Tensor, scale: int, layout: Layout) -> Tensor:
        """Bilinear, as the authors shrink what their model sees; the latents themselves are shrunk over areas."""
        grid = self._grid(scale, layout)
        seen = total if tuple(total.shape[2:]) == grid else F.interpolate(total, grid, mode="bilinear")
        return F.pixel_unshuffle(seen, self.fold).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def rewrite(self, codes: Tensor, layout: Layout, flipped: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures of codes (B, L) written anew, with wrong bits in every map that the next maps correct: codes
        (B, L) without the map's own mistakes; and (B, L, D), as of `seen_before`, with those of all maps before.

        `flipped` (B, L, D) bool says which bits are wrong. Codes say the sign of what each scale had left to write, and
        not its size, which is taken from the finer scales: so codes stay as they are where nothing before is wrong.
        """
        goal, right, seen = self.total(codes, layout), [], []
        true, wrong = self.blank(len(codes), layout, codes.device), self.blank(len(codes), layout, codes.device)
        for scale, (part, flips) in enumerate(zip(layout.split(codes), flipped.split(layout.lengths, 1), strict=True)):
            seen.append(self.shrink(wrong, scale, layout))
            size = self._down(goal - true, scale, layout).abs().clamp(min=SMALLEST)
            left = size * self._signs(part, scale, layout)
            right.append(self._pack(left + self._down(true - wrong, scale, layout) > 0))
            true = self.add(true, part, scale, layout)
            mistaken = to_codes(to_bits(right[-1], self.width) ^ flips.long())
            wrong = self.add(wrong, mistaken, scale, layout)
        return torch.cat(right, 1), torch.cat(seen, 1)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _grid(self, scale: int, layout: Layout) -> tuple[int, int]:
        """Of the latents at a scale."""
        height, width = layout.scales[scale]
        return height * self.fold, width * self.fold

    def _layout(self, z: Tensor) -> Layout:
        stride = self.config.stride // self.fold
        return self.config.layout_for(z.shape[2] * stride, z.shape[3] * stride)

    def _down(self, x: Tensor, scale: int, layout: Layout) -> Tensor:
        """(B, C, h, w) as means over the areas of a scale's places."""
        grid = self._grid(scale, layout)
        return x if tuple(x.shape[2:]) == grid else F.interpolate(x, grid, mode="area")

    def _up(self, x: Tensor, layout: Layout) -> Tensor:
        grid = self._grid(-1, layout)
        return x if tuple(x.shape[2:]) == grid else F.interpolate(x, grid, mode="bilinear")

    def _part(self, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        """What the codes (B, n) of one scale add to the total, (B, C, h, w)."""
        return self._up(self._signs(codes, scale, layout) / self.channels**0.5, layout)

    def _signs(self, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        """Codes (B, n) as -1 and 1 on the scale's grid of latents, (B, C, h_k, w_k)."""
        bits = to_bits(codes, self.width).transpose(1, 2).unflatten(2, layout.scales[scale])
        return F.pixel_shuffle(bits.float() * 2 - 1, self.fold)

    def _pack(self, bits: Tensor) -> Tensor:
        """Bits (B, C, h_k, w_k) bool as codes (B, n)."""
        return to_codes(F.pixel_unshuffle(bits.float(), self.fold).flatten(2).transpose(1, 2))
