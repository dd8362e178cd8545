"""Where a picture's bytes are: cells that say a place on disk, made here, and cells of tables that others made."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .decoding import PictureError
from .text_files import printable

FILE_LIMIT = 2**29
"""Bytes of one picture's file that are read."""


@dataclass(frozen=True)
class Place:
    """Where a picture's bytes are: a file, or a part of a tar."""

    path: bytes
    """As the system spells it: not every file name is text."""
    name: str
    """Short name for logs, in one line."""
    offset: int = 0
    size: int = -1
    """Bytes; -1 for the whole file."""
    problem: str | None = None
    """Why the picture or its caption cannot be used, where that is known before it is read."""


Row = tuple[Place, dict[str, Any]]
"""A picture and the columns its caption can be made of."""


class PlaceCells:
    """Reads cells with the fields of a `Place`."""

    def name(self, cell: Any, index: int) -> str:
        return str(cell["name"])

    def read(self, cell: Any, index: int) -> bytes:
        """The file bytes. Raises PictureError."""
        if cell["problem"] is not None:
            raise PictureError(cell["problem"])
        if not cell["path"]:
            raise PictureError("has no picture")
        return _read_file(os.fsdecode(cell["path"]), cell["offset"], cell["size"])

    def facts(self, cells: pa.Array) -> list[Any]:
        """Names and sizes of cells, and which have a problem, without reading pictures."""
        return [
            (cell["name"], cell["size"] if cell["size"] >= 0 else _size(cell["path"]), cell["problem"] is None)
            for cell in cells.to_pylist()
        ]


class TableCells:
    """Reads cells of a table: bytes, or {"bytes", "path"}, where the path counts when there are no bytes.

    A path in a table is somebody else's word: it is looked for in `folders`, and must not lead outside them, neither by
    `..`, nor as an absolute path, nor through a link.

    Args:
        outside: it may.
        files: the files of the table in their order, and how many rows each has, for messages.
    """

    def __init__(self, folders: Sequence[Path], outside: bool, files: Sequence[tuple[str, int]] = ()) -> None:
        self.folders, self.outside, self.files = list(folders), outside, list(files)

    def name(self, cell: Any, index: int) -> str:
        path = cell.get("path") if isinstance(cell, dict) else None
        return printable(path[-200:]) if isinstance(path, str) and path else f"row {index}"

    def read(self, cell: Any, index: int) -> bytes:
        """The file bytes. Raises PictureError."""
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data:
            return bytes(data)
        path = cell.get("path") if isinstance(cell, dict) else None
        if path:
            return _read_file(self._find(str(path), index))
        raise PictureError("has no picture" if data is None else "the file is empty")

    def facts(self, cells: pa.Array) -> list[Any]:
        """Paths and sizes of cells, without reading pictures."""
        if not pa.types.is_struct(cells.type):
            return list(pc.binary_length(cells).to_pylist())
        data = pc.struct_field(cells, "bytes")
        sizes = [None] * len(cells) if pa.types.is_null(data.type) else pc.binary_length(data).to_pylist()
        has_paths = any(part.name == "path" for part in cells.type)
        paths = _texts(pc.struct_field(cells, "path")) if has_paths else [None] * len(cells)
        return [(path, size or self._size(path)) for path, size in zip(paths, sizes, strict=True)]

    def _find(self, path: str, index: int) -> str:
        spellings = dict.fromkeys([path, path.replace("\\", "/")])
        candidates = [os.path.join(folder, spelling) for spelling in spellings for folder in self.folders]
        found = next(filter(os.path.exists, candidates), candidates[0])
        if not self.outside and not is_inside(found, self.folders):
            raise PictureError(
                f"{self._row(index)} names a file outside the data, {printable(path[:200])!r}: if that is meant, add "
                "?outside=true to the spec"
            )
        return found

    def _row(self, index: int) -> str:
        for name, count in self.files:
            if index < count:
                return f"row {index} of {printable(name)}"
            index -= count
        return f"row {index}"

    def _size(self, path: str | None) -> int | None:
        try:
            return _size(os.fsencode(self._find(path, 0))) if path else None
        except PictureError:
            return None


def _texts(column: pa.Array) -> list[str | None]:
    """Cells of text; none where a table calls bytes text that are not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [None] * len(column)


Cells = PlaceCells | TableCells


def is_inside(path: str | Path, folders: Iterable[str | Path]) -> bool:
    """Whether a path, with all links followed, leads into one of the folders."""
    try:
        real = os.path.realpath(path)
        return any(posixpath.commonpath([real, place]) == place for place in map(os.path.realpath, folders))
    except (OSError, ValueError):  # ValueError: a zero byte
        return False


def _read_file(path: str, offset: int = 0, size: int = -1) -> bytes:
    if not os.path.isfile(path) and os.path.exists(path):
        raise PictureError("is not a regular file")  # a device or a pipe may have no end
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(FILE_LIMIT + 1 if size < 0 else min(size, FILE_LIMIT + 1))
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > FILE_LIMIT:
        raise PictureError(f"too large: its file has more than {FILE_LIMIT:,} bytes")
    return data


def _size(path: bytes) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return None
