"""What an image tokenizer makes of a picture: how much its codes keep, and what each of them adds."""

from __future__ import annotations

import math
from typing import Any

import torch

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.images import to_float

from ..masks import has_places
from .partial import Partial, decode_one

MOST_SHOWN = 12
"""Pictures by the first codes alone."""


@torch.inference_mode()
def reconstruct(tokenizer: ImageTokenizer, picture: torch.Tensor) -> dict[str, Any]:
    """A picture (3, H, W) uint8 of the tokenizer's size as codes, and back. All pictures are (3, H, W) uint8.

    Returns:
        grids, codes; `picture` as it was given; `reconstruction`; `error`, the mean difference of a pixel's colours,
        white where it is `largest_error` (in steps of 255); `psnr` in dB, None where nothing differs; `first`: pairs
        (n, the picture by the first n codes).
    """
    codes = tokenizer.encode(to_float(picture[None]).to(tokenizer.last_layer.device))[0]
    back = decode_one(tokenizer, codes)
    difference = (back.double() - picture.double()).abs()
    error = difference.mean(0)
    largest, square = float(error.max()), float(difference.square().mean())
    shown = (255 * error / max(largest, 1.0)).round().to(torch.uint8)
    partial = Partial(tokenizer)
    length = torch.arange(len(codes), device=codes.device)
    return {
        "grids": [list(grid) for grid in tokenizer.layout.scales],
        "codes": codes.tolist(),
        "picture": picture,
        "reconstruction": back,
        "error": shown.expand(3, *shown.shape),
        "largest_error": round(largest, 2),
        "psnr": round(10 * math.log10(255**2 / square), 2) if square else None,
        "first": [(n, partial.picture(codes.masked_fill(length >= n, -1))) for n in shown_after(tokenizer)],
    }


def shown_after(tokenizer: ImageTokenizer) -> list[int]:
    """Numbers of first codes by which a picture can be shown: whole scales, or what else the tokenizer decodes; where
    each code has its place, any number. Of many, those next to 1, 2, 4, ..."""
    enough, length = tokenizer.known_after(tokenizer.layout), tokenizer.layout.length
    if enough == [length] and has_places(tokenizer):
        enough = list(range(1, length + 1))
    if len(enough) <= MOST_SHOWN:
        return enough
    doubled = [2**power for power in range(length.bit_length())]
    return sorted({next(n for n in enough if n >= least) for least in [*doubled, length]})
