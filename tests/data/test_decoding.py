from __future__ import annotations

import importlib.util
import io
import struct
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from unitok.data.decoding import EXTENSIONS, UNREAD, PictureError, decode, fit


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def ramp(height: int = 8, width: int = 12) -> np.ndarray:
    """(H, W, 3) uint8, different everywhere."""
    row, column = np.mgrid[:height, :width]
    return np.stack([row * 20, column * 15, row + column], -1).astype(np.uint8)


def pixels(data: bytes) -> np.ndarray:
    return decode(data).permute(1, 2, 0).numpy()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_lossless_formats_come_back_exactly() -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        image = decode(encoded(Image.fromarray(ramp()), kind, **options))
        assert image.dtype == torch.uint8 and image.shape == (3, 8, 12)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), ramp()), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    upright = Image.fromarray(np.kron(ramp(4, 6), np.ones((16, 16, 1), np.uint8)))  # large blocks survive JPEG
    # The pixels are stored such that the tag's turn brings them back: the inverses of EXIF's turns.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for data in (encoded(stored, exif=exif), encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif)):
        found = pixels(data).astype(int)
        assert found.shape == (64, 96, 3)
        assert np.abs(found - np.asarray(upright).astype(int)).mean() < 2


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encoded(Image.fromarray(ramp()), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert pixels(data).shape == (8, 12, 3)


def test_transparent_parts_are_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 128, 255)
    expected = [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    assert np.abs(pixels(encoded(Image.fromarray(rgba)))[0].astype(int) - expected).max() <= 1

    grey_alpha = Image.frombytes("LA", (2, 1), bytes([10, 0, 10, 255]))
    assert pixels(encoded(grey_alpha))[0].tolist() == [[255] * 3, [10] * 3]

    palette = Image.frombytes("P", (2, 1), bytes([0, 1]))
    palette.putpalette([9, 8, 7, 0, 0, 255])
    assert pixels(encoded(palette, transparency=0))[0].tolist() == [[255] * 3, [0, 0, 255]]
    assert pixels(encoded(palette, "GIF", transparency=0))[0].tolist() == [[255] * 3, [0, 0, 255]]

    colour_key = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(encoded(colour_key, transparency=(1, 2, 3)))[0].tolist() == [[255] * 3, [4, 5, 6]]


def grey_png(bits: int, transparent: int, row: bytes) -> bytes:
    """A grey PNG of one row, one of whose values is transparent."""
    header = struct.pack(">IIBBBBB", len(row) * 8 // bits, 1, bits, 0, 0, 0, 0)
    parts = {
        b"IHDR": header,
        b"tRNS": struct.pack(">H", transparent),
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())


@pytest.mark.parametrize(
    ("bits", "transparent", "row", "shown"),
    [
        (1, 0, b"\x0f", [255] * 8),
        (1, 1, b"\x0f", [0] * 4 + [255] * 4),
        (2, 1, b"\x1b", [0, 255, 170, 255]),
        (4, 3, b"\x3f\x03", [255, 255, 0, 255]),
        (8, 0, b"\x00\x40", [255, 64]),
        (16, 0, b"\x00\x00\x40\x00\x00\x01", [255, 64, 0]),
    ],
)
def test_a_transparent_grey_is_white_at_every_depth(bits: int, transparent: int, row: bytes, shown: list[int]) -> None:
    assert pixels(grey_png(bits, transparent, row))[0, :, 0].tolist() == shown


def test_large_pictures_are_composed_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), np.uint16)
    for picture in (Image.fromarray(rgba), Image.fromarray(deep)):
        whole = pixels(encoded(picture))
        monkeypatch.setattr("unitok.data.decoding._STRIP", 14)
        assert np.array_equal(pixels(encoded(picture)), whole)
        monkeypatch.undo()


def profile(swapped: bool = False) -> bytes:
    """A colour profile: sRGB, or one whose red and green are exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swapped:
        red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
        data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_colour_profiles_become_srgb() -> None:
    picture = Image.fromarray(ramp(8, 12))
    for kind, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        found = pixels(encoded(picture, kind, icc_profile=profile(swapped=True), **options))
        assert np.abs(found[..., [1, 0, 2]].astype(int) - ramp(8, 12)).max() <= 1, kind
    picture.putalpha(255)
    found = pixels(encoded(picture, icc_profile=profile(swapped=True)))
    assert np.abs(found[..., [1, 0, 2]].astype(int) - ramp(8, 12)).max() <= 1


def test_profiles_that_say_srgb_or_nothing_change_nothing() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for data in (profile(), b"no profile" * 20, profile()[:200], lab, profile() + b"\0" * 2**23):
        assert np.array_equal(pixels(encoded(Image.fromarray(ramp()), icc_profile=data)), ramp())
    grey = Image.fromarray(ramp()[..., 0])
    assert np.array_equal(pixels(encoded(grey, icc_profile=profile(swapped=True)))[..., 0], ramp()[..., 0])


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_chunks_that_nobody_needs_do_not_cost_the_picture(kind: bytes) -> None:
    much = zlib.compress(b"node " * 300_000)
    body = {b"zTXt": b"history\0\0", b"iTXt": b"XML:com.adobe.xmp\0\x01\0\0\0", b"iCCP": b"profile\0\0"}[kind] + much
    data = encoded(Image.fromarray(ramp()))
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    for place in (33, len(data) - 12):  # before the pixels, and behind them
        assert np.array_equal(pixels(data[:place] + chunk(kind, body) + data[place:]), ramp())
    assert limit == PngImagePlugin.MAX_TEXT_CHUNK  # others in this process rely on it


def test_a_picture_that_another_package_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pillow-heif` adds a format to Pillow when it is there; a stand-in tells what follows from it."""

    def register_heif_opener() -> None:
        Image.register_open("HEIF", PngImagePlugin.PngImageFile, lambda prefix: prefix.startswith(b"\x89PNG"))
        Image.register_extension("HEIF", ".heic")

    stand_in = ModuleType("pillow_heif")
    stand_in.register_heif_opener = register_heif_opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    for table in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, dict(getattr(Image, table)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    spec = importlib.util.find_spec("unitok.data.decoding")
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert "HEIF" in fresh.FORMATS and ".heic" in fresh.EXTENSIONS and ".heic" not in fresh.UNREAD
    assert ".heic" in UNREAD and "pip install 'unitok-vq[heic]'" in UNREAD[".heic"]


def test_grey_bilevel_and_palette_become_rgb() -> None:
    grey = Image.fromarray(np.array([[0, 77, 255]], np.uint8))
    assert pixels(encoded(grey))[0].tolist() == [[0] * 3, [77] * 3, [255] * 3]
    assert pixels(encoded(grey.convert("1", dither=Image.Dither.NONE)))[0].tolist() == [[0] * 3, [0] * 3, [255] * 3]
    assert np.array_equal(
        pixels(encoded(Image.fromarray(ramp()).quantize(256))), pixels(encoded(Image.fromarray(ramp())))
    )


def test_cmyk_has_its_colours_and_is_not_inverted() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    for kind in ("TIFF", "JPEG"):  # Pillow writes Adobe's inverted CMYK into a JPEG
        red, green, blue = pixels(encoded(cmyk, kind))[8, 8].tolist()
        assert red > 240 and green < 15 and blue < 15, kind


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 128, 255], kind
    big_endian = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert pixels(encoded(big_endian, "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(PictureError, match="floating-point"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(data)[3, 3].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(PictureError):
        decode(data[: len(data) // 2])
    with pytest.raises(PictureError):
        decode(data[: len(data) // 2], (8, 8))


@pytest.mark.parametrize(
    "data", [b"hello, this is no picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"]
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(PictureError, match="not a picture file that can be read"):
        decode(data)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(PictureError, match="empty"):
        decode(b"")


def test_bombs_are_refused_from_their_header() -> None:
    with pytest.raises(PictureError, match="too large: 12000x12000 is more than 134217728 pixels"):
        decode(png_header(12000, 12000))
    with pytest.raises(PictureError, match="too large"):  # beyond Pillow's own limit
        decode(png_header(100_000, 100_000))
    with pytest.raises(PictureError, match="too large: 1x2000000 is longer than"):
        decode(png_header(1, 2_000_000))
    with pytest.raises(PictureError, match="too large: 12x8 is more than 95 pixels"):
        decode(encoded(Image.fromarray(ramp())), max_pixels=95)
    assert decode(encoded(Image.fromarray(ramp())), max_pixels=96).shape == (3, 8, 12)


def test_pictures_without_pixels_are_refused() -> None:
    with pytest.raises(PictureError):
        decode(png_header(0, 5))


def test_reasons_are_one_line() -> None:
    for data in (b"", b"x", png_header(0, 5), png_header(20000, 20000), encoded(Image.fromarray(ramp()))[:60]):
        with pytest.raises(PictureError) as caught:
            decode(data)
        assert "\n" not in str(caught.value)


def test_fit_covers_and_crops_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle square
    assert np.asarray(fit(Image.fromarray(wide), (10, 10))).min() == 255
    assert np.asarray(fit(Image.fromarray(wide.transpose(1, 0, 2).copy()), (10, 10))).min() == 255
    assert fit(Image.fromarray(wide), (8, 20)).size == (20, 8)
    assert fit(Image.fromarray(wide), (64, 32)).size == (32, 64)


def test_fit_leaves_a_picture_of_the_right_size_alone() -> None:
    assert np.array_equal(np.asarray(fit(Image.fromarray(ramp()), (8, 12))), ramp())


def test_fit_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(np.asarray(fit(Image.fromarray(stripes), (8, 8))).astype(int) - 128).max() <= 12


def test_a_large_jpeg_read_at_a_small_size_is_the_same_picture() -> None:
    row, column = np.mgrid[:1200, :1600] / 200
    photo = np.stack([np.sin(row) * 100 + 128, np.cos(column) * 100 + 128, np.sin(row + column) * 90 + 120], -1)
    picture = Image.fromarray(photo.astype(np.uint8))
    quick = decode(encoded(picture, "JPEG", quality=95), (48, 48)).float()
    slow = decode(encoded(picture), (48, 48)).float()
    assert (quick - slow).abs().mean() < 1.5


def test_known_extensions() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".bmp"} <= EXTENSIONS
    assert not {".txt", ".eps", ".pdf", ".mp4", ".json"} & EXTENSIONS
