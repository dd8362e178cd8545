"""Picture files that a command is given."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import Box, cropped, uncropped
from unitok.data.decoding import PictureError, decode, fit_shares
from unitok.data.text_files import printable


def read_picture(path: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A picture (3, H, W) uint8, scaled and cropped to a size (H, W), or as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return decode(path.read_bytes(), size)
    except (PictureError, OSError) as error:
        raise UserError(f"{printable(str(path))} cannot be read as a picture: {error}") from None


class ReadPicture(NamedTuple):
    """A picture, and what a model reads of it: its centre, scaled."""

    whole: torch.Tensor
    """(3, H, W) uint8."""
    seen: torch.Tensor
    """(3, H, W) uint8 of the model's size."""
    window: Box
    """Where that lies in the whole, as shares of it."""

    @classmethod
    def of(cls, path: Path, size: tuple[int, int]) -> ReadPicture:
        """The picture of a file for a model of a size (H, W).

        Raises:
            UserError: it cannot be read.
        """
        whole = read_picture(path)
        height, width = whole.shape[1:]
        return cls(whole, read_picture(path, size), fit_shares((height, width), size))

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Width, height, width, height: of each side of a box."""
        _, height, width = self.whole.shape
        return width, height, width, height

    def pixels(self, box: Box) -> list[int]:
        """A box that a model says, shares of what it reads, in pixels of the whole."""
        sides = zip(uncropped(box, self.window), self.lengths, strict=True)
        return [min(max(round(share * length), 0), length) for share, length in sides]

    def shares(self, pixels: Box) -> list[float] | None:
        """The inverse; None where the model reads nothing of the box."""
        return cropped([side / length for side, length in zip(pixels, self.lengths, strict=True)], self.window)
