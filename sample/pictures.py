"""Picture files that a command is given."""

from __future__ import annotations

from pathlib import Path

import torch

from tokenizers_vq.errors import UserError
from unitok.data.decoding import PictureError, decode
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
