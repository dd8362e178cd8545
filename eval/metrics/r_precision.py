"""CLIP R-precision: among R captions, the picture's own and R - 1 others, is its own the nearest?

The measure of Xu et al. 2018 (arXiv:1711.10485) with CLIP's embeddings (Park et al. 2021). The others are drawn at
random from the captions that read differently. Chance is 1 / R, so R belongs to the number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.seeding import fold

CAPTIONS = 100
"""R, where there are as many different captions."""


class RPrecision(NamedTuple):
    share: float
    candidates: int
    """R."""
    right: list[bool]
    """Of each picture."""


def r_precision(
    images: Tensor, texts: Tensor, captions: Sequence[str], candidates: int = CAPTIONS, seed: int = 0
) -> RPrecision:
    """R-precision of pictures by embeddings of length 1.

    Args:
        images: (N, E) of the pictures.
        texts: (N, E) of their captions.
        captions: the captions themselves, to know which are the same.
        candidates: R; less where there are fewer different captions.
        seed: of the other captions.

    Raises:
        UserError: counts that do not agree, or all captions alike.
    """
    if not len(images) == len(texts) == len(captions):
        raise UserError(
            f"{len(images)} pictures, {len(texts)} text embeddings and {len(captions)} captions: give one caption for "
            "each picture"
        )
    first = {caption: row for row, caption in reversed(list(enumerate(captions)))}
    distinct = list(first)
    if len(distinct) < 2:
        raise UserError("R-precision needs at least two different captions")
    number = {caption: place for place, caption in enumerate(distinct)}
    known = texts[[first[caption] for caption in distinct]]  # (U, E)
    candidates = min(candidates, len(distinct))
    right = []
    for row, caption in enumerate(captions):
        own = number[caption]
        drawn = random.Random(fold(seed, "r-precision", row)).sample(range(len(distinct) - 1), candidates - 1)
        others = torch.tensor([place + (place >= own) for place in drawn])
        right.append(bool((known[others] @ images[row]).max() < known[own] @ images[row]))
    return RPrecision(sum(right) / len(right), candidates, right)
