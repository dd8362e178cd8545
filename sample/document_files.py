"""Documents in files: beginnings that are read, and what was written, as a data set and as a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.images import save_png
from tokenizers_vq.storage.files import atomic_path
from unitok.boxes import written_out
from unitok.data.captions import CaptionError
from unitok.data.cells import TableCells
from unitok.data.decoding import PictureError, decode
from unitok.data.records_file import read_part
from unitok.data.text_files import TextError, parse_foreign_json, read_lines

from .documents import Part

FILE, PAGE, PICTURES = "documents.jsonl", "documents.html", "pictures"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #8884; padding: 1rem 0; } .given { color: #888; }
img { min-width: 8rem; image-rendering: pixelated; border-radius: 4px; } p { white-space: pre-wrap; }
"""


def read_beginnings(path: Path, size: tuple[int, int]) -> list[tuple[int, list[Part]]]:
    """(number of the line, parts with pictures as pixels (3, H, W) uint8) of every document of a file of records.

    Raises:
        UserError: lines that hold no document.
    """
    problems, found = Problems(), []
    cells = TableCells([path.absolute().parent], outside=True)  # the user's own file, not somebody's data
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            try:
                found.append((number, _parts(parse_foreign_json(line), cells, size)))
            except (CaptionError, PictureError, TextError) as error:
                problems.check(False, f"{path}, line {number} {error}")
    problems.check(
        bool(found or problems.messages), f'{path} holds no document: write one a line, such as {{"parts": []}}'
    )
    problems.raise_if_any()
    return found


def _parts(values: Any, cells: TableCells, size: tuple[int, int]) -> list[Part]:
    example = 'give {"parts": [{"text": ...}, {"image": ...}]}'
    if not isinstance(values, dict) or not isinstance(values.get("parts"), list):
        raise CaptionError(f"has no list of parts: {example}")
    others = sorted(values.keys() - {"parts", "name"})
    if others:
        raise CaptionError(f"has {shown(others[0])}, which is no part of a document: {example}")

    def picture(name: Any) -> torch.Tensor:
        if not isinstance(name, str):
            raise PictureError(f"names a picture {shown(name)}: give a path")
        try:
            return decode(cells.read({"path": name}, 0), size)
        except PictureError as error:
            raise PictureError(f"names {shown(name)}, which cannot be read as a picture: {error}") from None

    return [read_part(part, picture) for part in values["parts"]]


def save_documents(
    path: Path, documents: Sequence[Sequence[Part]], pictures: str = PICTURES
) -> list[list[dict[str, str]]]:
    """Writes a file of records, a document a line, and its pictures (3, H, W) uint8 into a folder beside it. Returns
    the records' parts."""
    found = []
    digits = len(str(len(documents)))
    try:
        for number, document in enumerate(documents, 1):
            parts = [{"text": ""}] if not document else []  # a list of no parts is no record
            for kind, value in document:
                if kind == "image":
                    name = f"{pictures}/{number:0{digits}}-{len(parts) + 1}.png"
                    (path.parent / pictures).mkdir(parents=True, exist_ok=True)
                    save_png(path.parent / name, value)
                    value = name
                parts.append({kind: value})
            found.append(parts)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or free space"
        ) from error
    with atomic_path(path) as temporary:
        lines = [json.dumps({"parts": parts}, ensure_ascii=False) + "\n" for parts in found]
        temporary.write_text("".join(lines), encoding="utf-8")
    return found


def save_page(path: Path, documents: Sequence[Sequence[dict[str, str]]], titles: Sequence[str]) -> None:
    """Writes a page that shows the parts of every document in their order."""
    body = []
    for title, parts in zip(titles, documents, strict=True):
        shown_parts = [
            f'<p><img src="{escape(value)}" alt=""></p>' if kind == "image" else f"<p>{escape(written_out(value))}</p>"
            for part in parts
            for kind, value in part.items()
        ]
        body.append(f"<article><small>{escape(title)}</small>\n" + "\n".join(shown_parts) + "</article>")
    head = f'<meta charset="utf-8"><title>Documents</title><style>{STYLE}</style>'
    with atomic_path(path) as temporary:
        page = f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"
        temporary.write_text(page, encoding="utf-8")
