"""The grids of a multi-scale tokenizer: what a schedule means, and whether it fits. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..errors import Problems

Scale = int | tuple[int, int]
"""A grid: (height, width), or its longer side in the proportions of the finest grid."""
Grid = tuple[int, int]


def scale_grids(scales: Sequence[Scale], home: Grid, grid: Grid | None = None) -> tuple[Grid, ...]:
    """The grids of a schedule that was written for a finest grid `home`, also for pictures with another finest `grid`.

    There, 1 stays 1, the finest becomes the finest, and what lies between is scaled along.

    >>> scale_grids([1, 2, 4], (4, 8)), scale_grids([1, 2, 4], (4, 4), (8, 8))
    (((1, 1), (1, 2), (2, 4)), ((1, 1), (3, 3), (8, 8)))
    """
    longer = max(home)
    grids = [
        (max(1, round(s * home[0] / longer)), max(1, round(s * home[1] / longer))) if isinstance(s, int) else s
        for s in scales
    ]
    if grid is None or grid == home:
        return tuple(grids)

    def along(side: int, axis: int) -> int:
        return 1 + round((side - 1) * (grid[axis] - 1) / max(1, home[axis] - 1))

    return (*((along(height, 0), along(width, 1)) for height, width in grids[:-1]), grid)


def check_scales(scales: Sequence[Scale], image_size: Grid, stride: int) -> None:
    """Raises UserError unless a schedule increases and ends at the grid of the image size."""
    problems = Problems()
    problems.check(
        all(s >= 1 if isinstance(s, int) else len(s) == 2 and min(s) >= 1 for s in scales),
        f"tokenizer.scales is {list(scales)}: give numbers of at least 1, or pairs [height, width]",
    )
    problems.raise_if_any()
    height, width = image_size[0] // stride, image_size[1] // stride
    grids = scale_grids(scales, (height, width))
    fits = f"{image_size[0]}x{image_size[1]} pixels at stride {stride} make a grid of {height}x{width}"
    large = next((f"{h}x{w}" for h, w in grids if h > height or w > width), None)
    problems.check(large is None, f"tokenizer.scales has {large}, but {fits}: leave out what is larger")
    problems.check(
        large is not None or grids[-1] == (height, width),
        f"tokenizer.scales ends at {grids[-1][0]}x{grids[-1][1]}, but {fits}: let it end there",
    )
    for before, after in pairwise(grids):
        problems.check(
            after[0] >= before[0] and after[1] >= before[1] and after != before,
            f"tokenizer.scales goes from {before[0]}x{before[1]} to {after[0]}x{after[1]}: let it increase",
        )
    problems.raise_if_any()


def residual_conv_of(scale: int, convs: int, scales: int) -> int:
    """Which of `convs` shared convolutions a scale uses: the one whose place in [0, 1] is nearest, as in VAR.

    In float64 and in this order of operations, for with ten scales and four convolutions two scales lie exactly
    between, and rounding decides.

    >>> [residual_conv_of(scale, 4, 10) for scale in range(10)]
    [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    """
    share = 3 if convs == 4 else 2
    first, last = 1 / share / convs, 1 - 1 / share / convs
    step = (last - first) / max(1, convs - 1)
    places = [first + index * step for index in range(convs)]
    here = scale / max(1, scales - 1)
    return min(range(convs), key=lambda index: abs(places[index] - here))
