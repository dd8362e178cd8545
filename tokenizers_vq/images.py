"""Pictures outside the program (uint8) and inside (float in [-1, 1]), as PNG files and as contact sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .storage.files import atomic_path


def to_float(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 in [-1, 1]; exact inverse: `to_uint8`."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1.0)  # in place, for pictures may be large


def to_uint8(images: Tensor) -> Tensor:
    """float (..., 3, H, W) in [-1, 1] -> uint8; rounds, and clamps what lies outside."""
    return (images.detach().float() + 1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 (3, H, W) -> PIL."""
    return Image.fromarray(image.cpu().permute(1, 2, 0).contiguous().numpy())


def png_bytes(image: Tensor) -> bytes:
    """uint8 (3, H, W) -> a PNG file."""
    file = io.BytesIO()
    to_pil(image).save(file, format="PNG")
    return file.getvalue()


def save_png(path: str | Path, image: Tensor) -> None:
    """Writes one uint8 (3, H, W) picture, atomically. It can be made again, so nobody waits for the disk."""
    with atomic_path(path, sync=False) as temporary:
        temporary.write_bytes(png_bytes(image))


def save_grid(
    path: str | Path,
    images: Tensor,
    columns: int,
    labels: Sequence[str] | None = None,
    scale: int = 1,
    margin: int = 2,
) -> None:
    """Writes a contact sheet as PNG, row by row.

    Args:
        path: file to write, atomically.
        images: uint8 (N, 3, H, W).
        columns: pictures per row.
        labels: one text under each picture, wrapped to its width.
        scale: each pixel becomes a square of this side.
        margin: white pixels around each picture.
    """
    count, _, height, width = images.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    cell_width, cell_height = width * scale + 2 * margin, height * scale + 2 * margin
    font = ImageFont.load_default()
    texts = [wrap(label, font, cell_width - 2) for label in labels] if labels is not None else []
    line = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else 11
    label_height = max((len(text) for text in texts), default=0) * line + (2 if texts else 0)
    sheet = Image.new("RGB", (columns * cell_width, max(1, rows) * (cell_height + label_height)), "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(count):
        left, top = index % columns * cell_width, index // columns * (cell_height + label_height)
        picture = to_pil(images[index])
        if scale > 1:
            picture = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(picture, (left + margin, top + margin))
        for number, text in enumerate(texts[index] if texts else []):
            draw.text((left + 1, top + cell_height + number * line), text, fill="black", font=font)
    with atomic_path(path, sync=False) as temporary:
        sheet.save(temporary, format="PNG")


def wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most `width` pixels; breaks at spaces, and inside words that are too long alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while len(word) > 1 and font.getlength(word) > width:
            fit = max(1, sum(font.getlength(word[:end]) <= width for end in range(1, len(word))))
            lines.append(word[:fit])
            word = word[fit:]
        lines.append(word)
    return lines
