"""Masks: which pixels are drawn anew, and which codes of a picture that takes along."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.data.decoding import fit
from unitok.model import UniTok

WHITE = 128
"""Pixels of a mask that are at least so bright are white."""
GREY = 128
"""What pixels that are drawn anew are shown as."""


def mask_of_box(box: tuple[int, int, int, int], height: int, width: int) -> torch.Tensor:
    """(H, W) bool: the pixels from left and top up to, and without, right and bottom.

    Raises:
        UserError: a box that is empty or upside down, or not wholly inside the picture.
    """
    left, top, right, bottom = box
    name = ",".join(map(str, box))
    if left >= right or top >= bottom:
        raise UserError(f"--box {name} holds no pixel: give left,top,right,bottom with left < right and top < bottom")
    if left < 0 or top < 0 or right > width or bottom > height:
        raise UserError(f"--box {name} is not inside the picture, which is {width} wide and {height} high: move it in")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def mask_of_picture(picture: torch.Tensor) -> torch.Tensor:
    """(H, W) bool: the white pixels of a picture (3, H, W) uint8."""
    return picture.float().mean(0) >= WHITE


def fit_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scales and crops a mask (H, W) bool as `fit` does its picture. A pixel is in the mask if any part of it was."""
    picture = Image.fromarray(mask.numpy().astype(np.float32))
    return torch.from_numpy(np.array(fit(picture, size, Image.Resampling.BOX)) > 0)


def has_places(tokenizer: ImageTokenizer) -> bool:
    """Whether each code stands for a part of the picture."""
    height, width = tokenizer.image_size
    return tokenizer.layout.grid == (height // tokenizer.stride, width // tokenizer.stride)


def check_places(tokenizer: ImageTokenizer) -> None:
    """
    Raises:
        UserError: codes of this tokenizer stand for the whole picture, so that no part of it can be drawn alone.
    """
    if not has_places(tokenizer):
        raise UserError(
            "the codes of this model's tokenizer (queries) have no place in the picture, so no part of it can be drawn "
            "alone: take a model whose tokenizer has a grid"
        )


def box_around(mask: torch.Tensor) -> list[float]:
    """[left, top, right, bottom] around the pixels of a mask (H, W) bool that has some, as shares of the picture."""
    height, width = mask.shape
    rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
    return [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]


def drawn_anew(model: UniTok, masks: torch.Tensor) -> torch.Tensor:
    """(N, L) bool: the codes that masks (N, H, W) bool let be drawn anew.

    Raises:
        UserError: a mask that covers the middle of no code, where a model goes by that.
    """
    found = covered(model, masks, model.layout)
    if not found.any(1).all():
        raise UserError("the mask covers the middle of no code, so there is nothing to draw: mark more pixels")
    return found


def covered(model: UniTok, masks: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(N, L) bool: the codes of a layout that masks (N, H, W) bool cover, as far as a model asks for it."""
    return (in_the_middle if model.config.trunk.fills_codes else touched)(masks, layout)


def touched(masks: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(N, L) bool: the codes whose places cover any pixel of the masks (N, H, W) bool.

    >>> mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> mask[0, 3, 0] = True
    >>> touched(mask, Layout(((1, 1), (2, 2)))).tolist()
    [[True, False, False, True, False]]
    """
    _, height, width = masks.shape
    parts = []
    for rows, columns in layout.scales:
        down, across = _covers(rows, height), _covers(columns, width)
        parts.append((down @ masks.float() @ across.T).flatten(1) > 0)
    return torch.cat(parts, 1)


def in_the_middle(masks: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(N, L) bool: the codes of one grid whose middles the masks (N, H, W) bool cover, by bicubic interpolation
    (Show-o, arXiv:2408.12528).

    >>> mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    >>> mask[0, 1:, :5] = True
    >>> in_the_middle(mask, Layout(((2, 2),))).tolist(), touched(mask, Layout(((2, 2),))).tolist()
    ([[True, False, True, False]], [[True, True, True, True]])
    """
    return F.interpolate(masks[:, None].float(), layout.grid, mode="bicubic").flatten(1) >= 0.5


def _covers(places: int, pixels: int) -> torch.Tensor:
    """(places, pixels) float32: 1 where a place covers a pixel, or a part of it."""
    place, pixel = torch.arange(places)[:, None], torch.arange(pixels)
    return ((pixel * places < (place + 1) * pixels) & ((pixel + 1) * places > place * pixels)).float()


def without(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pictures (..., 3, H, W) with grey where masks (..., H, W) say that they are drawn anew."""
    return pictures.masked_fill(masks[..., None, :, :], GREY)
