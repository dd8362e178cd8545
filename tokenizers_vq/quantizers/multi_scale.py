"""Residual quantization over scales with one codebook (VAR, arXiv:2404.02905; numbers as in its released tokenizer).

A latent grid f of h x w is written as maps of 1x1, 2x2, ... up to h x w codes. With rest = f, for each scale:

    down  = area(rest, grid of the scale)            nearest codes of these vectors are the scale's codes
    part  = conv(bicubic(code vectors, h x w))       conv(x) = (x + conv3x3(x)) / 2
    total = total + part,   rest = rest - part

The running total after k scales is what the picture is decoded from, and, shrunk to the next grid, what a next-scale
model sees before it writes the next map. With `scale_residual` off (FlexVAR, arXiv:2502.20313) nothing is left over or
added up: rest stays f, and total is the newest part.

B = images, D = width of a code vector, h, w = finest grid, L = codes per image, N = rows of vectors
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..config import ConvVQConfig
from ..layout import Layout
from .base import Quantized, pass_gradient, ranks, to_grid, to_rows
from .scales import residual_conv_of
from .single_scale import make_quantizer


class ScaleQuantizer(nn.Module, ABC):
    """Latents (B, C, h, w) <-> codes (B, L), coarse to fine: what a next-scale model asks of it."""

    width: int
    """D: numbers that a place of a picture has, as such a model sees it."""
    channels: int
    """C: those of latents."""
    codebook_size: int
    config: ConvVQConfig

    @abstractmethod
    def forward(self, z: Tensor, accumulate: bool = False) -> Quantized:
        """Quantizes (B, C, h, w); `accumulate` as in `Quantizer`."""

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, L) of latents (B, C, h, w); never changes the quantizer."""

    @abstractmethod
    def vectors(self, codes: Tensor, layout: Layout) -> Tensor:
        """Latents (B, C, h, w) float32 as known from the scales that the codes (B, n) hold."""

    @abstractmethod
    def table(self) -> Tensor:
        """As `Quantizer.table`."""

    @abstractmethod
    def blank(self, batch: int, layout: Layout, device: torch.device) -> Tensor:
        """The total before any scale, (B, C, h, w)."""

    @abstractmethod
    def add(self, total: Tensor, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        """The total after one more scale, whose codes are (B, n)."""

    @abstractmethod
    def shrink(self, total: Tensor, scale: int, layout: Layout) -> Tensor:
        """A total as seen on the grid of a scale, (B, n, D) row-major."""

    def total(self, codes: Tensor, layout: Layout) -> Tensor:
        """The total (B, C, h, w) after the scales that the codes (B, n) hold."""
        total = self.blank(codes.shape[0], layout, codes.device)
        for scale, part in enumerate(layout.split(codes)):
            total = self.add(total, part, scale, layout)
        return total

    @torch.no_grad()
    def seen_before(self, codes: Tensor, layout: Layout) -> Tensor:
        """(B, L, D): at the positions of each scale, the total of all coarser scales on its grid; zeros for the
        first."""
        total = self.blank(codes.shape[0], layout, codes.device)
        seen = []
        for scale, part in enumerate(layout.split(codes)):
            seen.append(self.shrink(total, scale, layout))
            total = self.add(total, part, scale, layout)
        return torch.cat(seen, 1)


class MultiScaleQuantizer(ScaleQuantizer):
    """The codebook is that of any quantizer whose code vectors can have any length (`vq`, `simvq`)."""

    mean: Tensor
    """(D,): what all latents have in common. It is taken out before and added after, for the first map would otherwise
    write little else, in a corner of the codebook that no other map uses. (A constant that the layers around could hold
    as well: published tokenizers have 0 here.)"""

    def __init__(self, config: ConvVQConfig) -> None:
        super().__init__()
        self.config = config
        self.book = make_quantizer(config.quantizer)
        self.width, self.channels, self.codebook_size = self.book.width, self.book.width, self.book.codebook_size
        number = max(residual_conv_of(scale, config.scale_convs, len(config.scales)) for scale in self._scales) + 1
        self.register_buffer("mean", torch.zeros(self.width))
        self._pending: Tensor | None = None
        self._started = False  # whether the mean has been looked at: on a GPU, looking waits
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(number))

    @property
    def _scales(self) -> range:
        return range(len(self.config.scales))

    def forward(self, z: Tensor, accumulate: bool = False) -> Quantized:
        """Quantizes (B, D, h, w); `accumulate` as in `Quantizer`.

        With `scale_dropout`, training leaves out the finest scales of some pictures, so that the coarse ones say as
        much as they can.
        """
        with torch.autocast(z.device.type, enabled=False):
            layout = self._layout(z)
            learn = self.training and torch.is_grad_enabled()
            latents_in = z.detach().float()
            if learn and not self._started:
                self._started = True
                if not self.mean.any():  # the first batch of a run, as for k-means; not one that goes on
                    self._follow_mean(latents_in, accumulate=False, share=1.0)
            z = self._centred(z)
            if learn:
                self.book.start(self._pyramid(z.detach(), layout))
            totals, codes, rows = self._write(z.detach(), layout)
            if learn:
                # Every scale has the same say in where the codes lie. Counted one by one, the finest map alone would
                # decide, and the coarse ones would be left with a few codes each.
                shares = [z.new_full((len(part),), len(rows[-1]) / len(part)) for part in rows]
                chosen = torch.cat([part.reshape(-1) for part in codes])
                self.book.follow(torch.cat(rows), chosen, accumulate, torch.cat(shares) / len(rows))
            # As published: each total pulls the latents, and the latents pull codebook and convolutions, every scale
            # alike. The picture's gradient passes straight through.
            weight = getattr(self.config.quantizer, "commitment_weight", 1.0)
            losses = {
                "commitment": weight * torch.stack([F.mse_loss(total.detach(), z) for total in totals]).mean(),
                "codebook": torch.stack([F.mse_loss(total, z.detach()) for total in totals]).mean(),
            }
            value = self._drop_scales(totals) if self.training else totals[-1]
            rotate = getattr(self.config.quantizer, "rotation_trick", False)
            latents = pass_gradient(to_rows(z), to_rows(value.detach()), rotate) + self.mean
            if learn:
                self._follow_mean(latents_in, accumulate)
            return Quantized(to_grid(latents, len(z), *layout.grid), torch.cat(codes, 1), losses)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat(self._write(self._centred(z), self._layout(z))[1], 1)

    def vectors(self, codes: Tensor, layout: Layout) -> Tensor:
        return self.total(codes, layout) + self.mean[:, None, None]

    def table(self) -> Tensor:
        """As `Quantizer.table`: all scales have one codebook."""
        return self.book.table()

    # --- one scale at a time ---------------------------------------------------------------------------------------

    def blank(self, batch: int, layout: Layout, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.width, *layout.grid, device=device)

    def add(self, total: Tensor, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        part = self._part(codes, scale, layout)
        return total + part if self.config.scale_residual else part

    def mix(self, total: Tensor, vectors: Tensor, scale: int, layout: Layout) -> Tensor:
        """As `add`, of vectors (B, n, D) in place of those of codes."""
        part = self._spread(to_grid(vectors.flatten(0, 1), len(vectors), *layout.scales[scale]), scale, layout)
        return total + part if self.config.scale_residual else part

    def shrink(self, total: Tensor, scale: int, layout: Layout) -> Tensor:
        return _area(total, layout.scales[scale]).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def rewrite(self, codes: Tensor, layout: Layout, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pictures of codes (B, L) written anew, with mistakes in every map that the next maps correct: codes
        (B, L) without the map's own mistake; (B, L, D), as of `seen_before`, with those of all maps before; and the
        codes (B, L) with their mistakes.

        `noise` (B, L, D) is added to the vectors that are looked up; 1 is the root mean square of the picture's vectors
        of that scale. (Codes drawn near the right one: RQ-Transformer, arXiv:2203.01941.)
        """
        goal, total = self.total(codes, layout), self.blank(len(codes), layout, codes.device)
        parts = layout.split(codes)
        right, seen, wrong = [], [], []
        for scale, shake in enumerate(noise.split(layout.lengths, 1)):
            seen.append(self.shrink(total, scale, layout))
            rest = goal - total if self.config.scale_residual else goal
            down = _area(rest, layout.scales[scale])  # (B, D, h_k, w_k)
            right.append(self.book.nearest(down) if self.config.scale_residual else parts[scale])
            shake = to_grid(shake.flatten(0, 1), len(codes), *layout.scales[scale])
            wrong.append(self.book.nearest(down + shake * down.square().mean((1, 2, 3), keepdim=True).sqrt()))
            total = self.add(total, wrong[-1], scale, layout)
        return torch.cat(right, 1), torch.cat(seen, 1), torch.cat(wrong, 1)

    @torch.no_grad()
    def placed(self, seen: Tensor, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        """(B, n, D): what is seen on the grid of a scale (B, n, D), its codes (B, n) put in their places."""
        vectors = self.book.vectors(codes, layout.scales[scale]).flatten(2).transpose(1, 2)
        return seen + vectors if self.config.scale_residual else vectors

    # --- parts -----------------------------------------------------------------------------------------------------

    def _part(self, codes: Tensor, scale: int, layout: Layout) -> Tensor:
        """What the codes (B, n) of one scale add to the total, (B, D, h, w)."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._spread(self.book.vectors(codes, layout.scales[scale]), scale, layout)

    def _spread(self, part: Tensor, scale: int, layout: Layout) -> Tensor:
        """What vectors (B, D, h_k, w_k) on the grid of a scale add to the total."""
        with torch.autocast(part.device.type, enabled=False):
            if layout.scales[scale] != layout.grid:
                part = F.interpolate(part, layout.grid, mode="bicubic")
            conv = self.convs[residual_conv_of(scale, self.config.scale_convs, len(layout.scales))]
            return 0.5 * part + 0.5 * conv(part)

    def _centred(self, z: Tensor) -> Tensor:
        return z.float() - self.mean[:, None, None]

    def _follow_mean(self, z: Tensor, accumulate: bool, share: float = 0.01) -> None:
        """Moves the mean a share of the way to that of the step's latents (B, D, h, w), of all micro-batches and
        ranks."""
        sums = torch.cat([z.sum((0, 2, 3)), z.new_tensor([z.numel() / self.width])])
        self._pending = sums if self._pending is None else self._pending + sums
        if accumulate:
            return
        sums, self._pending = self._pending, None
        if ranks() > 1:
            distributed.all_reduce(sums)
        self.mean.lerp_(sums[:-1] / sums[-1], share)

    def _layout(self, z: Tensor) -> Layout:
        stride = self.config.stride
        return self.config.layout_for(z.shape[2] * stride, z.shape[3] * stride)

    def _write(self, z: Tensor, layout: Layout) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each scale: the total after it (B, D, h, w), its codes (B, n), the vectors that were looked up
        (B * n, D)."""
        rest, total = z, torch.zeros_like(z)
        totals, codes, rows = [], [], []
        for scale, grid in enumerate(layout.scales):
            down = _area(rest, grid)
            codes.append(self.book.nearest(down))
            rows.append(to_rows(down))
            part = self._part(codes[-1], scale, layout)
            if self.config.scale_residual:
                total = total + part
                rest = rest - part.detach()  # in this order as published: rounding can decide between two codes
            else:
                total = part
            totals.append(total)
        return totals, codes, rows

    def _pyramid(self, z: Tensor, layout: Layout) -> Tensor:
        """(N, D): what the scales would have to write if each could write everything, equally many vectors of each;
        k-means starts there."""
        rest, rows = z, []
        for grid, length in zip(layout.scales, layout.lengths, strict=True):
            down = _area(rest, grid)
            rows.append(to_rows(down).repeat(max(1, layout.lengths[-1] // length), 1))
            if self.config.scale_residual:
                rest = rest - F.interpolate(down, layout.grid, mode="bicubic")
        return torch.cat(rows)

    def _drop_scales(self, totals: list[Tensor]) -> Tensor:
        """(B, D, h, w): the last total, or for a share of the pictures an earlier one."""
        share, batch, device = self.config.scale_dropout, len(totals[0]), totals[0].device
        if share == 0 or len(totals) == 1:
            return totals[-1]
        dropped = torch.rand(batch, device=device) < share
        kept = torch.randint(len(totals) - 1, (batch,), device=device).where(dropped, len(totals) - 1)
        return torch.stack(totals)[kept, torch.arange(batch, device=device)]


def _area(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means over areas; the same tensor where the grid is its own."""
    return x if tuple(x.shape[2:]) == grid else F.interpolate(x, grid, mode="area")
