"""What every quantizer has in common: latents (B, D, h, w) <-> codes (B, L) int64.

B = images, D = width of a code vector, h, w = grid, N = B*h*w vectors, K = codes, L = h*w codes of an image, or G*h*w
where a vector is written in G codes: then one grid follows the other
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ..errors import UserError
from .config import QuantizerConfig
from .library import library_vq


class Quantized(NamedTuple):
    """What a quantizer makes of latents."""

    latents: Tensor
    """(B, D, h, w) float32: the code vectors; gradients pass to the encoder."""
    codes: Tensor
    """(B, L) int64, row-major, grid by grid."""
    losses: dict[str, Tensor]
    """Weighted scalars to add to the training loss; the same names in training and in evaluation."""


def to_rows(z: Tensor) -> Tensor:
    """(B, D, h, w) -> (N, D) float32."""
    return z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_grid(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(N, D) -> (B, D, h, w)."""
    return rows.reshape(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def pass_gradient(source: Tensor, target: Tensor, rotate: bool) -> Tensor:
    """The value of `target` with the gradient of `source`."""
    if rotate and source.requires_grad:
        return library_vq.rotate_to(source, target)
    return source + (target - source).detach()


class Quantizer(nn.Module, ABC):
    """Latents <-> codes. Made by `make_quantizer`."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.codebook_size = config.size

    def forward(self, z: Tensor, accumulate: bool = False) -> Quantized:
        """Quantizes (B, D, h, w).

        The codebook moves only in training mode with gradients enabled. `accumulate=True` puts its move off to the next
        call without: then micro-batches move it as their joint batch would.
        """
        batch, _, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            rows, codes, losses = self._quantize(to_rows(z), accumulate)
            return Quantized(to_grid(rows, batch, height, width), _grid_by_grid(codes, batch), losses)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Codes (B, L) int64 of latents (B, D, h, w); never changes the codebook."""
        with torch.autocast(z.device.type, enabled=False):
            return _grid_by_grid(self._nearest(to_rows(z)), z.shape[0])

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, D, h, w) float32: the code vectors of codes (B, L), or of their first grids, as `forward` gives them.

        Raises:
            UserError: an id is outside the codebook. (The library would wrap some of them silently.)
        """
        check_codes(codes, self.codebook_size)
        batch, cells = codes.shape[0], grid[0] * grid[1]
        # (N, grids); counted, not -1, which an empty batch leaves open
        places = codes.long().reshape(batch, codes.shape[1] // cells, cells).transpose(1, 2).flatten(0, 1)
        with torch.autocast(codes.device.type, enabled=False):
            # Not squeeze(1), which a graph of ONNX keeps even where there are several.
            return to_grid(self._vectors(places[:, 0] if places.shape[1] == 1 else places), batch, *grid)

    @torch.no_grad()
    def table(self) -> Tensor:
        """(G, K, D) float32: of each codebook its code vectors, in the order of their ids. Vectors of a later codebook
        hold the first code of those before it."""
        grids, device = self.config.grids, next(chain(self.parameters(), self.buffers())).device
        codes = torch.arange(self.codebook_size, device=device).reshape(grids, -1)
        tables = []
        for book, own in enumerate(codes):
            before = codes[:book, 0].expand(len(own), -1)
            tables.append(self._vectors(torch.cat([before, own[:, None]], 1).squeeze(1)))
        return torch.stack(tables).float()

    def start(self, rows: Tensor) -> None:
        """Sees training latents (N, D) before they are quantized; a codebook may start from the first ones."""

    def follow(self, rows: Tensor, codes: Tensor, accumulate: bool, weights: Tensor | None = None) -> None:
        """Sees training latents (N, D) and the codes they got; a codebook may move. `accumulate` as in `forward`;
        `weights` (N,) say how much each latent counts."""

    @abstractmethod
    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(N, D) -> code vectors (N, D), codes (N,) or (N, G), losses."""

    @abstractmethod
    def _nearest(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N,) or (N, G) int64."""

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """(N,), or (N, n) of the first n grids, -> (N, D)."""


def _grid_by_grid(codes: Tensor, batch: int) -> Tensor:
    """(N,) or (N, G) -> (B, L)."""
    return codes.reshape(batch, -1, codes[0].numel()).transpose(1, 2).reshape(batch, -1)


def check_codes(codes: Tensor, codebook_size: int, first: int = 0) -> None:
    """Raises UserError for ids outside [first, codebook_size), with the worst one."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise UserError(f"codes are {codes.dtype}: give integer ids from 0 to {codebook_size - 1}")
    if torch.compiler.is_exporting() or codes.numel() == 0:  # a graph has no errors of ours
        return
    if codebook_size == 2**64:  # all int64 are codes
        return
    low, high = (int(value) for value in torch.aminmax(codes))
    if low < first or high >= codebook_size:
        worst = low if low < first else high
        raise UserError(
            f"code {worst} is outside the codebook of {codebook_size - first}: ids go from {first} to "
            f"{codebook_size - 1}; "
            "were these codes made by another tokenizer?"
        )


def ranks() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def entropy_loss(probabilities: Tensor, diversity: float) -> Tensor:
    """Mean entropy of the rows of (N, K), minus that of their mean: sure each by itself, varied all together."""

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-5).log()).sum(dim=-1)

    return entropy(probabilities).mean() - diversity * entropy(probabilities.mean(dim=0))
