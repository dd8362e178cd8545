"""Orders in which the codes of an image come."""

from __future__ import annotations

import math
from functools import cache

import torch

from tokenizers_vq.layout import Layout

from ..config import ObjectiveSettings
from ..sampling import SampleSettings
from ..seeding import keyed_generator
from .base import Draw


def order_in_training(order: torch.Tensor, draw: Draw, settings: ObjectiveSettings, least: float = 0.0) -> torch.Tensor:
    """The order of one image in training: any order at first, ever more often `order` (L,) (RAR's annealing,
    arXiv:2411.00776). `least` is the share of images that stay permuted to the end."""
    start, end = settings.permuted_until, settings.ordered_from
    assert start is not None and end is not None, "settings are settled"
    share = 1.0 if draw.progress < start else max(least, (end - draw.progress) / max(end - start, 1e-9))
    permuted = torch.rand((), generator=draw.generator).item() < share
    return torch.randperm(len(order), generator=draw.generator) if permuted else order


def order_in_drawing(
    order: torch.Tensor, key: str, seed: int, settings: SampleSettings, known: torch.Tensor | None
) -> torch.Tensor:
    """The order in which one image is drawn: `order` (L,) or, if the settings say so, one of the seed's own. Known
    codes (L,), -1 for the others, come first, for all others to see them."""
    if settings.random_order:
        order = torch.randperm(len(order), generator=keyed_generator(seed, key, "order"))
    return order if known is None else known_first(order, known.cpu() >= 0)


def known_first(order: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """An order (L,) with the places first that are known, (L,) bool."""
    return order[(~known[order]).long().argsort(stable=True)]


def spread_order(layout: Layout) -> torch.Tensor:
    """(L,) int64: grid by grid, the places of each by the Halton sequence in bases 2 and 3. Places that come soon after
    one another lie far apart, so codes that are drawn together depend little on one another (arXiv:2503.17076). A grid
    of one row keeps its order."""
    order: list[int] = []
    for height, width in layout.scales:
        start = len(order)
        order += [start + place for place in (range(width) if height == 1 else _halton(height, width))]
    return torch.tensor(order)


@cache
def _halton(height: int, width: int) -> list[int]:
    found: dict[int, None] = {}
    number = 0
    while len(found) < height * width:
        number += 1
        found[int(_radical_inverse(number, 2) * height) * width + int(_radical_inverse(number, 3) * width)] = None
    return list(found)


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number, mirrored at the point: in [0, 1)."""
    result, place = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        place /= base
        result += digit * place
    return result


def mask_share(progress: float) -> float:
    """MaskGIT's cosine schedule: share of codes still hidden at `progress` in [0, 1]."""
    return math.cos(math.pi / 2 * progress)


def pass_sizes(codes: int, passes: int) -> list[int]:
    """How many codes each pass draws, by the cosine schedule: few at first, never fewer than before, at least one.

    >>> pass_sizes(64, 8)
    [2, 3, 6, 8, 10, 11, 12, 12]
    """
    passes = max(1, min(passes, codes))
    left = [codes]
    for done in range(1, passes):
        left.append(max(min(int(mask_share(done / passes) * codes), left[-1] - 1), passes - done))
    return sorted(before - after for before, after in zip(left, [*left[1:], 0], strict=True))
