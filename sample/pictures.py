"""Pictures: files that a command is given, and what a model reads of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.boxes import Box, cropped, uncropped
from unitok.data.decoding import PictureError, decode, fit_shares
from unitok.data.text_files import printable
from unitok.modalities import Picture
from unitok.model import UniTok


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


def check_size(model: UniTok, pictures: torch.Tensor) -> None:
    """
    Raises:
        UserError: pictures that are not (N, 3, H, W) of the model's size.
    """
    height, width = model.image_tokenizer.image_size
    if pictures.shape[1:] != (3, height, width):
        raise UserError(
            f"pictures are {tuple(pictures.shape[1:])}, this model reads (3, {height}, {width}): resize them"
        )


def as_read(model: UniTok, pictures: torch.Tensor) -> list[torch.Tensor | Picture]:
    """What a record holds of each of the pictures (N, 3, H, W) uint8 that a model reads: codes, or pixels where the
    model has a reader.

    Raises:
        UserError: pictures of another size than the model's.
    """
    if model.reader is None:
        return list(codes_of(model, pictures))
    check_size(model, pictures)
    return [Picture(pixels) for pixels in pictures.cpu()]


def codes_of(model: UniTok, pictures: torch.Tensor) -> torch.Tensor:
    """Codes (N, L), on the CPU, of pictures (N, 3, H, W) uint8.

    Raises:
        UserError: pictures of another size than the model's.
    """
    check_size(model, pictures)
    return model.image_tokenizer.encode(to_float(pictures).to(model.device)).cpu()
