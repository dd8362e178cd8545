"""Large pictures in tiles: memory that does not grow with the picture, but for the picture itself.

A network runs over windows that overlap, one after the other, and its results are blended where two meet. A network
that looks at each place alone gives what it gives of the whole. Others differ from it, for each window stands by
itself: group norms take their mean and deviation over the window, attention looks no further, and convolutions find
zeros behind its edge. What is next to such an edge is left to the neighbour.

B = pictures, C, D = channels, H, W = places of the input
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Which pictures are cut, and how. In pixels, so that the codes of a picture do not depend on the machine."""

    whole: int = 2**20
    """Pixels of the largest picture that goes through as a whole."""
    side: int = 512
    """Of a window; of a model whose own pictures are larger, theirs."""
    overlap: int = 128
    """Of two windows, at the least."""

    def windows(self, length: int, own: int, stride: int) -> list[tuple[int, int]]:
        """(start, stop) along a side of `length` codes, evenly spread. `own`: pixels of the model's own pictures.

        >>> Tiles(side=32, overlap=8).windows(20, 16, 4), Tiles().windows(16, 256, 16)
        ([(0, 8), (6, 14), (12, 20)], [(0, 16)])
        """
        side, overlap = max(self.side, own) // stride, max(1, self.overlap // stride)
        side = max(side, 2 * overlap)
        if length <= side:
            return [(0, length)]
        steps = -(-(length - side) // (side - overlap))
        starts = [round(step * (length - side) / steps) for step in range(steps + 1)]
        return [(start, start + side) for start in starts]


def run_in_windows(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    rows: list[tuple[int, int]],
    columns: list[tuple[int, int]],
    per_input: int,
    per_output: int,
) -> Tensor:
    """What a network makes of (B, C, H, W), window by window and picture by picture.

    Args:
        network: (1, C, h * per_input, w * per_input) -> (1, D, h * per_output, w * per_output).
        x: (B, C, H, W).
        rows, columns: (start, stop) of the windows along each side, in codes.
        per_input, per_output: places of the input and of the output that belong to a code, along each side.
    """
    import torch

    def strip(picture: Tensor, top: int, bottom: int) -> Iterator[Tensor]:
        across = picture[:, :, top * per_input : bottom * per_input]
        return (network(across[..., left * per_input : right * per_input]) for left, right in columns)

    def rows_of(picture: Tensor) -> Iterator[Tensor]:
        return (_blended(strip(picture, top, bottom), columns, per_output, 3) for top, bottom in rows)

    return torch.cat([_blended(rows_of(picture), rows, per_output, 2) for picture in x.split(1)])


def _blended(pieces: Iterator[Tensor], windows: list[tuple[int, int]], per_code: int, axis: int) -> Tensor:
    """Pieces laid over each other along an axis. Where two meet, the quarter of the common part at either end is of one
    alone; between, the one goes over into the other."""
    import torch

    whole: Tensor | None = None
    before = 0
    for piece, (start, stop) in zip(pieces, windows, strict=True):
        if whole is None:
            size = list(piece.shape)
            size[axis] = windows[-1][1] * per_code
            whole = piece.new_empty(size)
        first, shared = start * per_code, max(0, before - start) * per_code
        if shared:
            place = (torch.arange(shared, device=piece.device, dtype=piece.dtype) + 0.5) / shared
            share = ((place - 0.25) * 2).clamp(0, 1).reshape([-1 if axis == 2 else 1, -1 if axis == 3 else 1])
            common = whole.narrow(axis, first, shared)
            common.copy_(torch.lerp(common, piece.narrow(axis, 0, shared), share))
        length = piece.shape[axis]
        whole.narrow(axis, first + shared, length - shared).copy_(piece.narrow(axis, shared, length - shared))
        before = stop
    assert whole is not None, "there is at least one window"
    return whole
