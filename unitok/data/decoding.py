"""Picture files -> uint8 RGB, guarded: a broken or hostile file becomes a `PictureError` with a reason."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image

Image.init()
FORMATS = tuple(name for name in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") if name in Image.OPEN)
"""What is opened; Pillow knows more, but some of those start other programs (EPS) or are no pictures of this kind."""

EXTENSIONS = frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
"""File names taken for pictures in a folder."""

MAX_PIXELS = 2**27
"""Default limit, 134 million pixels: 400 MB once decoded. (Pillow refuses more than about 179 million in any case.)"""

_ORIENTATION = 0x0112  # EXIF tag; the values are in the EXIF standard, 4.6.4 A
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """A picture that cannot be used, and why, in one line."""


def decode(data: bytes, size: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """A picture file's bytes -> (3, H, W) uint8, upright, RGB, transparent parts on white, an animation's first frame.

    Args:
        size: (H, W) to scale and crop to, see `fit`; None keeps the picture's own size.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        PictureError: not a picture, truncated, empty, too large, or of an unknown pixel format.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd EXIF; refusals below are our answer
        picture = _open(data, size, max_pixels)
        if size is not None:
            picture = fit(picture, size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to cover (H, W) and crop the centre; antialiased bicubic, one resampling."""
    height, width = size
    if picture.size == (width, height):
        return picture
    scale = max(height / picture.height, width / picture.width)
    box_width, box_height = min(width / scale, picture.width), min(height / scale, picture.height)
    left, top = (picture.width - box_width) / 2, (picture.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _open(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    if not data:
        raise PictureError("the file is empty")
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(picture, max_pixels)
        if size is not None:
            picture.draft(
                None, (2 * max(size), 2 * max(size))
            )  # a large JPEG is decoded at 1/2, 1/4 or 1/8: much faster
        picture.load()
        turn = _turn(picture)
        picture = _to_rgb(picture)
        return picture if turn is None else picture.transpose(turn)
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f"not a picture file that can be read (known: {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"too large: the limit is {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise PictureError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check_pixels(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise PictureError(f"has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise PictureError(f"too large: {width}x{height} is more than {max_pixels} pixels")


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the picture unusable
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I"):  # 16-bit grey: I;16 and its byte orders, or I (32-bit integers that hold 16-bit values)
        grey = np.asarray(picture, dtype=np.int64)
        return Image.fromarray(((grey.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode == "F":
        raise PictureError("has floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
