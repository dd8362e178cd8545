"""Loose pictures with their captions as rows: NAME.txt and the like beside NAME.png, and `metadata.jsonl` or `.csv`."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import read_bytes

from .captions import TEXT_EXTENSIONS, Unusable, add_columns, text_columns
from .cells import Place, Row, is_inside
from .folders import Files, beside, is_metadata, kind_of, split_of_picture
from .metadata import read_metadata
from .records import LeftOut
from .text_files import CAPTION_LIMIT, printable

_SHOWN = 200  # characters of a name that others wrote


def picture_rows(files: Files, texts: bool, outside: bool, where: str) -> tuple[list[Row], list[LeftOut]]:
    """(rows, pictures that metadata names and that are no rows).

    Columns are `file_name`, `label` (the folder it is in), those of files beside the picture (`txt`, `text`, `caption`,
    the entries of a .json), and those of its metadata. A picture with several entries there is several rows.

    Args:
        texts: files beside pictures are read.
        outside: metadata may name files outside the folder.

    Raises:
        UserError: a metadata file that cannot be read, or whose names match nothing.
    """
    near = beside(files)
    named, left_out = _named(files, near, outside, where)
    near_texts = _texts_beside(files.names, near) if texts else {}
    rows: list[Row] = []
    for name in sorted({*files.names, *named}):
        path = files.root / name
        columns: dict[str, Any] = {}
        for text in near_texts.get(name, ()):
            add_columns(columns, _read_beside(files.root / text, text))
        fixed = {"file_name": name, "label": path.absolute().parent.name}
        for entry in named.get(name, ({},)):
            row = fixed | columns
            add_columns(row, {column: value for column, value in entry.items() if column != "file_name"})
            rows.append((Place(os.fsencode(path), printable(name)), row))
    return rows, left_out


def _named(
    files: Files, near: list[str], outside: bool, where: str
) -> tuple[dict[str, list[dict[str, Any]]], list[LeftOut]]:
    """(entries of metadata by picture, what is named but is no picture of the data)."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    left_out: list[LeftOut] = []
    chosen = set(files.names)
    names = _Names(files.root, near, outside)
    example = ""
    matched = False
    for metadata in filter(is_metadata, near):
        folder = posixpath.dirname(metadata)
        for number, entry in read_metadata(files.root / metadata):
            name, trouble = names.find(folder, entry["file_name"])
            if trouble is None:
                matched = True
                # What is listed as a picture was chosen or not; other names are pictures because metadata says so.
                extra = name not in names.listed or kind_of(name) == "other"
                if name in chosen or (files.whole and extra and _of_split(name, files)):
                    found[name].append(entry)
            elif files.whole and _of_split(name, files):
                example = example or f"{metadata}, line {number} names {entry['file_name'][:_SHOWN]!r}, which {trouble}"
                left_out.append((printable(entry["file_name"])[:_SHOWN], f"{trouble} ({metadata})"))
    if example and not matched:
        there = f"; there is {printable(files.names[0])!r}" if files.names else ""
        raise UserError(f"data {where!r}: none of the pictures in the metadata exists: {example}{there}: fix file_name")
    return found, left_out


def _of_split(name: str, files: Files) -> bool:
    return files.split is None or split_of_picture(name, files.splits) == files.split


class _Names:
    """Finds the file that metadata means: by the letter, else with Windows' separators, else whatever its case.

    A name never leads outside the folder, unless that is allowed: neither by `..`, nor as an absolute path, nor through
    a link that is not among the listed files.
    """

    def __init__(self, root: Path, listed: list[str], outside: bool) -> None:
        self.root, self.outside = root, outside
        self.listed = {name for name in listed if not is_metadata(name)}
        self._folded: dict[str, list[str]] | None = None

    def find(self, folder: str, written: str) -> tuple[str, str | None]:
        """(name under the root, what is wrong with it, if anything)."""
        first = ""
        for spelling in dict.fromkeys([written, written.strip(), written.strip().replace("\\", "/")]):
            name = posixpath.normpath(posixpath.join(folder, spelling))
            if name.startswith("/"):
                name = self._relative(name)
            first = name
            if name in self.listed:
                return name, None
            alike = self._alike(name)
            if alike is not None:
                return alike, None
            path = self.root / name
            leads_out = name.startswith(("/", "../")) or (os.path.lexists(path) and not is_inside(path, [self.root]))
            if leads_out and not self.outside:
                return name, "lies outside the data: if that is meant, add ?outside=true to the spec"
            if os.path.isfile(path):
                return name, None
        return first, "is not there"

    def _relative(self, path: str) -> str:
        root = os.path.abspath(self.root)
        return path[len(root) + 1 :] if path.startswith(root + "/") else path

    def _alike(self, name: str) -> str | None:
        if self._folded is None:
            self._folded = defaultdict(list)
            for listed in self.listed:
                self._folded[_fold(listed)].append(listed)
        found = self._folded.get(_fold(name), [])
        return found[0] if len(found) == 1 else None


def _texts_beside(pictures: list[str], near: list[str]) -> dict[str, list[str]]:
    """Picture -> the files beside it that make columns. Case counts only where two names differ by nothing else."""
    texts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(near, key=_order_of_text):
        stem, extension = os.path.splitext(name)
        if extension[1:].lower() in TEXT_EXTENSIONS:
            texts[stem].append(name)
    stems = {os.path.splitext(name)[0] for name in pictures}
    folded: dict[str, list[str]] = defaultdict(list)
    for stem in texts.keys() - stems:
        folded[_fold(stem)].append(stem)
    found = {}
    for name in pictures:
        stem = os.path.splitext(name)[0]
        alike = folded.get(_fold(stem), []) if stem not in texts else []
        found[name] = texts.get(alike[0] if len(alike) == 1 else stem, [])
    return found


def _fold(name: str) -> str:
    """What is equal in names that differ by case alone, or by how an accent is encoded."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _order_of_text(name: str) -> tuple[int, str]:
    extension = os.path.splitext(name)[1][1:].lower()
    return (TEXT_EXTENSIONS.index(extension) if extension in TEXT_EXTENSIONS else -1, name)


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    extension = path.suffix[1:].lower()
    try:
        return text_columns(extension, read_bytes(path, CAPTION_LIMIT), printable(name))
    except UserError as error:
        return {"caption" if extension == "json" else extension: Unusable(str(error))}
