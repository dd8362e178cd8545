"""`metadata.jsonl` and `metadata.csv`: the columns of the pictures that they name.

A table in which one line is damaged is refused as a whole: a quote that does not end, or a comma too many, may have
moved the captions of the lines behind it as well.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers_vq.errors import UserError

from .text_files import TextError, parse_foreign_json, read_lines

NAMES = ("metadata.jsonl", "metadata.csv")
MAX_ENTRIES = 2_000_000
"""Entries of one file; each takes about half a kilobyte of memory."""

_DELIMITERS = ",;\t|"


def read_metadata(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each entry; `file_name` is a text in all of them.

    Raises:
        UserError: (while iterating) a file, line or entry that cannot be read, by its number.
    """
    entries = _csv_entries(file) if file.suffix.lower() == ".csv" else _json_entries(file)
    for count, (number, entry) in enumerate(entries):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise UserError(
                f"{file}, line {number} has no file_name: each entry needs the name of its picture, as text"
            )
        if count == MAX_ENTRIES:
            raise UserError(f"{file} has more than {MAX_ENTRIES:,} entries: use parquet or tars")
        yield number, entry


def _json_entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            entry = parse_foreign_json(line)
        except TextError as error:
            raise UserError(f"{file}, line {number} {error}: give one JSON object per line") from None
        if not isinstance(entry, dict):
            raise UserError(f"{file}, line {number} is not a JSON object: give one per line, with a file_name")
        yield number, entry


def _csv_entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = read_lines(file)
    first = next(lines, "")
    skipped = 0
    if first.lower().startswith("sep="):  # Excel writes it for itself
        first, skipped = next(lines, ""), 1
    delimiter = next((one for one in _DELIMITERS if "file_name" in _header(first, one)), None)
    if delimiter is None:
        raise UserError(
            f"{file}: its first line names no column file_name, but reads {first.strip()[:100]!r}: give a header such "
            "as file_name,text"
        )
    header = _header(first, delimiter)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        next(rows)
        for row in rows:
            while len(row) > len(header) and not row[-1].strip():
                row.pop()
            if not any(cell.strip() for cell in row):
                continue
            number = rows.line_num + skipped
            if len(row) != len(header):
                many = f"put a text that holds {delimiter!r} in double quotes"
                advice = many if len(row) > len(header) else "fill in the others, if with nothing"
                raise UserError(f"{file}, line {number} has {len(row)} cell(s), its header {len(header)}: {advice}")
            yield number, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{file}, line {rows.line_num + skipped} is not CSV ({error}): put texts in double quotes, and write a "
            "double quote in them twice"
        ) from None


def _header(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
