"""Picture files -> uint8 RGB, guarded: a broken or hostile file becomes a `PictureError` with a reason."""

from __future__ import annotations

import io
import warnings
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageCms

try:
    from pillow_heif import register_heif_opener  # the extra `heic`
except ImportError:
    _HEIF: tuple[str, ...] = ()
else:
    register_heif_opener()
    _HEIF = ("HEIF",)

Image.init()
_KNOWN = ("AVIF", "BMP", "GIF", *_HEIF, "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)
"""What is opened; Pillow knows more, but some of those start other programs (EPS) or are no pictures of this kind."""

EXTENSIONS = frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
"""File names taken for pictures in a folder."""

_UNREAD = {
    "is HEIC, which needs another package: pip install 'unitok-vq[heic]'": "heic heif hif",
    "is AVIF, which this Pillow does not read: save it as PNG or JPEG": "avif",
    "is of a format that is not read: save it as PNG or JPEG": (
        "3fr arw cr2 cr3 dng nef orf pef raf rw2 srw dds eps exr hdr ico j2k jp2 jpf jpx jxl pcx psd svg tga xcf"
    ),
}
UNREAD = {
    f".{name}": reason for reason, names in _UNREAD.items() for name in names.split() if f".{name}" not in EXTENSIONS
}
"""File names of pictures that are not read, and why."""

MAX_PIXELS = 2**27
"""Default limit, 134 million pixels: 400 MB once decoded. (Pillow refuses more than about 179 million in any case.)"""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BITS = 24  # where a PNG says its bits per sample
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PROFILE_LIMIT = 2**23  # bytes; printers' profiles have one or two million
_MAX_SIDE = 2**20
_STRIP = 2**22  # pixels
_SAME = 3  # of 255: versions of sRGB differ by so much, and rounding a little more would only blur them

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
_SIDEWAYS = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}


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


def fit(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Scale a picture to cover (H, W) and crop the centre; antialiased, one resampling."""
    height, width = size
    if picture.size == (width, height):
        return picture
    box = fit_window((picture.height, picture.width), size)
    return picture.resize((width, height), resample, box=box, reducing_gap=3.0)


def fit_window(picture: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of what `fit` keeps of a picture (H, W) at a size (H, W)."""
    scale = max(size[0] / picture[0], size[1] / picture[1])
    height, width = min(size[0] / scale, picture[0]), min(size[1] / scale, picture[1])
    left, top = (picture[1] - width) / 2, (picture[0] - height) / 2
    return left, top, left + width, top + height


def fit_shares(picture: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The same as shares of the picture."""
    left, top, right, bottom = fit_window(picture, size)
    return left / picture[1], top / picture[0], right / picture[1], bottom / picture[0]


def upright_size(data: bytes) -> tuple[int, int]:
    """(H, W) of a picture file, upright, without decoding it; of one that `decode` takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        turned = _turn(picture) in _SIDEWAYS
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _open(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    if not data:
        raise PictureError("the file is empty")
    try:
        return _decode(data, size, max_pixels)
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f"not a picture file that can be read (known: {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise PictureError(f"too large: the limit is {max_pixels} pixels") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise PictureError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _decode(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    try:
        return _load(data, size, max_pixels)
    except ValueError as error:
        if isinstance(error, PictureError) or not data.startswith(_PNG):
            raise
        refused = error
    # Pillow refuses a PNG for text that unpacks to a megabyte, such as a drawing program's history, or a large profile.
    for names in (_PNG_TEXT, (*_PNG_TEXT, b"iCCP")):
        try:
            return _load(without_chunks(data, names), size, max_pixels)
        except ValueError:
            continue
    raise refused


def _load(data: bytes, size: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_pixels(picture, max_pixels)
    if size is not None:  # a large JPEG is decoded at 1/2, 1/4 or 1/8: much faster
        picture.draft(None, (2 * max(size), 2 * max(size)))
    picture.load()
    turn = _turn(picture)
    picture = _to_rgb(picture, data)
    return picture if turn is None else picture.transpose(turn)


def without_chunks(data: bytes, names: tuple[bytes, ...]) -> bytes:
    """A PNG's bytes without the chunks of these names."""
    kept, place = [_PNG], len(_PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in names:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _check_pixels(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise PictureError(f"has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise PictureError(f"too large: {width}x{height} is more than {max_pixels} pixels")
    if max(width, height) > _MAX_SIDE:  # Pillow's table of rows alone would take a gigabyte
        raise PictureError(f"too large: {width}x{height} is longer than {_MAX_SIDE} pixels")


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the picture unusable
        return None


def _to_rgb(picture: Image.Image, data: bytes) -> Image.Image:
    """sRGB, with transparent parts on white; a large picture in strips, since each step takes memory of its own."""
    if picture.mode == "RGB" and not picture.info.keys() & {"icc_profile", "transparency"}:
        return picture
    rows = max(1, _STRIP // picture.width)
    if picture.height <= rows:
        return _strip_to_rgb(picture, data)
    whole = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        whole.paste(_strip_to_rgb(picture.crop(box), data), box)
    return whole


def _strip_to_rgb(picture: Image.Image, data: bytes) -> Image.Image:
    profile = picture.info.get("icc_profile")
    colours, alpha = _colours_and_alpha(picture, data)
    colours = to_srgb(colours, profile) if profile else colours.convert("RGB")
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _colours_and_alpha(picture: Image.Image, data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """(8-bit picture of mode L, RGB or CMYK, its opacity of mode L or None)."""
    mode, key = picture.mode, picture.info.get("transparency")
    if mode == "F":
        raise PictureError("has floating-point pixels, whose range is not known: save it with 8 or 16 bits")
    if mode.startswith("I"):  # 16-bit grey: I;16 and its byte orders, or I (32-bit integers that hold 16-bit values)
        values = np.asarray(picture, dtype=np.int64)
        alpha = Image.fromarray(((values != key) * 255).astype(np.uint8)) if isinstance(key, int) else None
        return Image.fromarray(((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)), alpha
    if isinstance(key, int) and mode in ("1", "L") and data.startswith(_PNG):
        # The key counts in the file's own steps: 0 and 1 for one bit, 0 to 15 for four.
        grey = picture.convert("L")
        bits = data[_PNG_BITS]
        value = key * 255 // (2**bits - 1) if bits < 8 else key
        return grey, Image.fromarray(((np.asarray(grey) != value) * 255).astype(np.uint8))
    if isinstance(key, tuple) and mode == "RGB" and data.startswith(_PNG) and data[_PNG_BITS] == 16:
        picture.info["transparency"] = tuple(part >> 8 for part in key)  # Pillow keeps the upper 8 bits of the pixels
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or key is not None:
        picture = picture.convert("RGBA")
        return picture.convert("RGB"), picture.getchannel("A")
    return (picture if mode in ("L", "CMYK") else picture.convert("RGB")), None


def to_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """A picture of mode L, RGB or CMYK as RGB, by its colour profile.

    A profile that is damaged, or of other colours, is ignored; one that says sRGB changes nothing.
    """
    transform = _transform(profile, picture.mode) if len(profile) <= _PROFILE_LIMIT else None
    if transform is not None:
        return ImageCms.applyTransform(picture, transform) or picture
    return picture.convert("RGB")


@lru_cache(maxsize=8)  # the pictures of one camera or program share a profile
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB, or None where there is nothing to do or the profile cannot be used."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # PyCMSError, OSError, and an ImportError where Pillow was built without colour management
        return None
    if mode == "CMYK":
        return transform
    steps = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(-1, 1, 3).astype(np.uint8)
    sample = Image.fromarray(steps).convert(mode)
    moved = np.asarray(ImageCms.applyTransform(sample, transform)).astype(int) - np.asarray(sample.convert("RGB"))
    return None if np.abs(moved).max() <= _SAME else transform
