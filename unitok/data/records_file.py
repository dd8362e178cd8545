"""A file of records: one JSON object a line, for every task.

    {"image": "a.png", "caption": "a red circle"}
    {"image": "a.png", "question": "what colour is the circle", "answer": "red"}
    {"source": "a.png", "instruction": "make it blue", "image": "b.png"}
    {"image": "a.png", "phrase": "the red circle", "boxes": [[0.1, 0.2, 0.5, 0.6]]}
    {"parts": [{"text": "Here is a circle."}, {"image": "a.png"}, {"text": "It is red."}]}
    {"caption": "a text without a picture"}

Pictures are files beside the file of records. Boxes are [left, top, right, bottom] as shares of the picture as it is
read. `name` names a record in messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_vq.errors import UserError, shown

from .captions import CaptionError, value_text
from .cells import TableCells
from .decoding import MAX_PIXELS, PictureError, decode
from .fingerprint import digest
from .records import TEXT_FIELDS, LeftOut, Record
from .text_files import LINE_LIMIT, TextError, decode_text, parse_foreign_json

KEYS = ("name", "image", "caption", *TEXT_FIELDS, "source", "boxes", "parts")


class RecordsFile:
    """A file of records as a `RecordDataset`. A line that cannot be used becomes a record with a `problem`.

    Args:
        path: the file.
        size: (H, W) of every picture, None for each one's own.
        outside: pictures may lie outside the file's folder.
        caption_needed: a record without a caption is broken.

    Raises:
        UserError: the file cannot be read.
    """

    endless = False
    left_out: Sequence[LeftOut] = ()

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int] | None = None,
        *,
        outside: bool = False,
        caption_needed: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path, self.size, self.max_pixels = Path(path), size, max_pixels
        self.name, self.caption_needed = str(path), caption_needed
        self.cells = TableCells([self.path.absolute().parent], outside)
        starts: list[tuple[int, int]] = []
        start, digested = 0, hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                for line in iter(lambda: file.readline(LINE_LIMIT + 2), b""):
                    if len(line) > LINE_LIMIT + 1:
                        raise UserError(
                            f"{self.path}, line {len(starts) + 1} is longer than {LINE_LIMIT:,} bytes: cut it"
                        )
                    if line.strip():
                        starts.append((start, len(line)))
                    start += len(line)
                    digested.update(line)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): check the file") from None
        self._lines = np.array(starts, np.int64).reshape(-1, 2)
        self._sha256 = digested.hexdigest()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        name = f"{self.path.name} record {index + 1}"
        try:
            values = self._values(index)
            name = str(values.get("name") or name)[:200]
            return self._record(name, values, index)
        except (PictureError, CaptionError, TextError) as error:
            return Record(name=name, problem=str(error))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file, and of some of the pictures."""
        return digest([self._sha256, self.size], len(self), self._bytes)

    def _bytes(self, index: int) -> bytes:
        try:
            path = self._values(index).get("image")
            return self.cells.read({"path": path}, index) if isinstance(path, str) else b""
        except (PictureError, CaptionError, TextError):
            return b""

    def _values(self, index: int) -> dict[str, Any]:
        start, length = (int(number) for number in self._lines[index])
        with open(self.path, "rb") as file:
            file.seek(start)
            line = file.read(length)
        values = parse_foreign_json(decode_text(line))
        if not isinstance(values, dict):
            raise CaptionError(f"is {shown(values)}, not an object with keys")
        unknown = sorted(values.keys() - set(KEYS))
        if unknown:
            raise CaptionError(f"has an unknown key {shown(unknown[0])}: known are {', '.join(KEYS)}")
        return values

    def _record(self, name: str, values: dict[str, Any], index: int) -> Record:
        caption = value_text(values.get("caption"), "caption") or None
        fields: dict[str, Any] = {
            field: value_text(values[field], field) for field in TEXT_FIELDS if values.get(field) is not None
        }
        if values.get("boxes") is not None:
            fields["boxes"] = _boxes(values["boxes"])
        if values.get("source") is not None:
            fields["source"] = self._picture(values["source"], index)
        if values.get("parts") is not None:
            parts = _list(values["parts"], "parts")
            fields["parts"] = [read_part(part, lambda path: self._picture(path, index)) for part in parts]
        image = self._picture(values["image"], index) if values.get("image") is not None else None
        if self.caption_needed and not caption:
            raise CaptionError("has no caption")
        return Record(name=name, caption=caption, image=image, fields=fields)

    def _picture(self, path: Any, index: int) -> torch.Tensor:
        if not isinstance(path, str):
            raise PictureError(f"names a picture {shown(path)}: give a path")
        return decode(self.cells.read({"path": path}, index), self.size, max_pixels=self.max_pixels)


def read_part(part: Any, picture: Callable[[Any], torch.Tensor]) -> tuple[str, Any]:
    """A part of `parts`; `picture` reads what stands there for one.

    Raises:
        CaptionError: what is no part.
    """
    if isinstance(part, dict) and part.keys() == {"text"}:
        return "text", value_text(part["text"], "text")
    if isinstance(part, dict) and part.keys() == {"image"}:
        return "image", picture(part["image"])
    raise CaptionError(f'has a part {shown(part)}: give {{"text": ...}} or {{"image": ...}}')


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise CaptionError(f"has {key} {shown(value)}: give a list")
    return value


def _boxes(value: Any) -> list[list[float]]:
    for box in _list(value, "boxes"):
        sides = box if isinstance(box, list) else []
        if len(sides) != 4 or not all(type(side) in (int, float) and 0 <= side <= 1 for side in sides):
            raise CaptionError(f"has a box {shown(box)}: give [left, top, right, bottom] from 0 to 1")
    return [[float(side) for side in box] for box in value]
