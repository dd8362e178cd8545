"""A file of records: one JSON object a line, for every task.

    {"image": "a.png", "caption": "a red circle"}
    {"image": "a.png", "question": "what colour is the circle", "answer": "red"}
    {"source": "a.png", "instruction": "make it blue", "image": "b.png"}
    {"image": "a.png", "phrase": "the red circle", "boxes": [[0.1, 0.2, 0.5, 0.6]]}
    {"image": "a.png", "box": [0.1, 0.2, 0.5, 0.6], "description": "a red circle"}
    {"image": "a.png", "named": ["a red circle", [0.1, 0.2, 0.5, 0.6], " left of a square", [0.6, 0.2, 0.9, 0.5]]}
    {"parts": [{"text": "Here is a circle."}, {"image": "a.png"}, {"text": "It is red."}]}
    {"source": "a.png", "instruction": "make the circle blue", "boxes": [[0.1, 0.2, 0.5, 0.6]], "image": "b.png"}
    {"parts": [{"text": ["Here is a circle.", [0.1, 0.2, 0.5, 0.6]]}, {"image": "a.png"}]}
    {"caption": "a text without a picture"}

Pictures are files beside the file of records; `source` may be a list of them. Boxes are [left, top, right, bottom] as
shares of the picture `image`, upright and whole: where it is cropped, they follow; those of `parts` are shares of what
is read of a picture. `name` names a record in messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenizers_vq.errors import UserError, shown

from ..boxes import BOX_RULE, cropped, is_box
from ..tasks import is_several
from .captions import CaptionError, value_text
from .cells import TableCells
from .decoding import MAX_PIXELS, PictureError, decode, fit_shares, upright_size
from .fingerprint import digest
from .records import TEXT_FIELDS, LeftOut, Record
from .text_files import LINE_LIMIT, TextError, decode_text, parse_foreign_json

KEYS = ("name", "image", "caption", *TEXT_FIELDS, "source", "boxes", "box", "named", "parts")


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
        starts: list[tuple[int, int, int]] = []
        start, number, digested = 0, 0, hashlib.sha256()
        try:
            with open(self.path, "rb") as file:
                for line in iter(lambda: file.readline(LINE_LIMIT + 2), b""):
                    number += 1
                    if len(line) > LINE_LIMIT + 1:
                        raise UserError(f"{self.path}, line {number} is longer than {LINE_LIMIT:,} bytes: cut it")
                    if line.strip():
                        starts.append((start, len(line), number))
                    start += len(line)
                    digested.update(line)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): check the file") from None
        self._lines = np.array(starts, np.int64).reshape(-1, 3)
        """(first byte, bytes, number) of each line that is not blank."""
        self._sha256 = digested.hexdigest()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, index is {index}")
        name = where = f"{self.path.name}, line {self._lines[index][2]}"
        try:
            values = self._values(index)
            name = str(values.get("name") or name)[:200]
            return self._record(name, values, index)
        except (PictureError, CaptionError, TextError) as error:
            return Record(name=where if name == where else f"{name} ({where})", problem=str(error))

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
        start, length, _ = (int(number) for number in self._lines[index])
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
            field: _texts(values[field], field) for field in TEXT_FIELDS if values.get(field) is not None
        }
        for field, read in BOXED.items():
            if values.get(field) is not None:
                fields[field] = read(values[field])
        if (source := values.get("source")) is not None:
            paths = _list(source, "source") if isinstance(source, list) else [source]
            pictures = [self._picture(path, index) for path in paths]
            fields["source"] = pictures if isinstance(source, list) else pictures[0]
        if values.get("parts") is not None:
            parts = _list(values["parts"], "parts")
            fields["parts"] = [read_part(part, lambda path: self._picture(path, index)) for part in parts]
        image = None
        if values.get("image") is not None:
            data = self._bytes_of(values["image"], index)
            image = decode(data, self.size, max_pixels=self.max_pixels)
            if self.size is not None and not fields.keys().isdisjoint(BOXED):
                window = fit_shares(upright_size(data), self.size)
                fields |= {field: _cropped(fields[field], window) for field in BOXED if field in fields}
        if self.caption_needed and not caption:
            raise CaptionError("has no caption")
        return Record(name=name, caption=caption, image=image, fields=fields)

    def _picture(self, path: Any, index: int) -> torch.Tensor:
        return decode(self._bytes_of(path, index), self.size, max_pixels=self.max_pixels)

    def _bytes_of(self, path: Any, index: int) -> bytes:
        if not isinstance(path, str):
            raise PictureError(f"names a picture {shown(path)}: give a path")
        return self.cells.read({"path": path}, index)


def read_part(part: Any, picture: Callable[[Any], torch.Tensor]) -> tuple[str, Any]:
    """A part of `parts`; `picture` reads what stands there for one.

    Raises:
        CaptionError: what is no part.
    """
    if isinstance(part, dict) and part.keys() == {"text"}:
        text = part["text"]
        return "text", named_value(text, "text") if isinstance(text, list) else value_text(text, "text")
    if isinstance(part, dict) and part.keys() == {"image"}:
        return "image", picture(part["image"])
    raise CaptionError(f'has a part {shown(part)}: give {{"text": ...}} or {{"image": ...}}')


def _texts(value: Any, key: str) -> str | list[str]:
    """A text, or a list of several, as the questions to one picture and their answers."""
    return [value_text(one, key) for one in value] if isinstance(value, list) else value_text(value, key)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise CaptionError(f"has {key} {shown(value)}: give a list")
    return value


def _box(value: Any) -> list[float]:
    if not is_box(value):
        raise CaptionError(f"has a box {shown(value)}: {BOX_RULE}")
    return [float(side) for side in value]


def _one_or_several(value: Any) -> Any:
    """A box, or a list of those of several descriptions."""
    return [_box(one) for one in value] if is_several("box", value) else _box(value)


def _boxes(value: Any) -> Any:
    """The boxes of a phrase, also none, or a list of those of several phrases."""
    if not isinstance(value, list):
        raise CaptionError(f"has boxes {shown(value)}: give a list")
    return [_boxes(one) for one in value] if is_several("boxes", value) else [_box(one) for one in value]


def named_value(value: Any, key: str = "named") -> list[str | list[float]]:
    """A text with boxes in it: strings and boxes. Strings stay as they are, white space at their ends too.

    Raises:
        CaptionError: something else.
    """
    parts = _list(value, key)
    for part in parts:
        if not isinstance(part, str | list):
            raise CaptionError(f"has {shown(part)} in {key}: give strings and boxes")
    value_text([part for part in parts if isinstance(part, str)], key)
    return [part if isinstance(part, str) else _box(part) for part in parts]


def _cropped(value: Any, window: tuple[float, float, float, float]) -> Any:
    """Boxes of a picture, in lists or alone, as those of what a window keeps of it; strings beside them stay."""
    if isinstance(value, str):
        return value
    if not is_box(value):
        return [_cropped(one, window) for one in value]
    kept = cropped(value, window)
    if kept is None:
        raise CaptionError(
            f"has a box {shown(value)} outside of what is read of the picture, whose centre is cropped: crop the "
            "picture, or leave the record out"
        )
    return kept


BOXED: dict[str, Callable[[Any], Any]] = {"boxes": _boxes, "box": _one_or_several, "named": named_value}
"""Fields with boxes of the picture, and who reads each."""
