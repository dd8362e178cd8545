"""Text that others wrote -> str: captions, prompts, csv, json; in files and in tars. Never by guess.

UTF-8 with or without its mark, UTF-16 and UTF-32 by their mark; all else is refused.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import read_bytes

CAPTION_LIMIT = 2**20
"""Bytes of the caption or the JSON of one picture."""

PROMPTS_LIMIT = 2**24
"""Bytes of a file with prompts."""

METADATA_LIMIT = 2**28
"""Bytes of a file with the captions of many pictures."""

LINE_LIMIT = 2**20
"""Characters of one line of it."""

_MARKS = (  # UTF-16's little-endian mark is the beginning of UTF-32's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NOT_TEXT = "is not UTF-8 text: save it as UTF-8"


class TextError(ValueError):
    """Bytes that are no text, and what to do, in a few words that follow the file's name."""


def decode_text(data: bytes) -> str:
    """Text of a file, with "\\n" at line ends. Raises TextError."""
    length, encoding = _encoding(data)
    try:
        text = data[length:].decode(encoding)
    except UnicodeDecodeError:
        raise TextError(_NOT_TEXT) from None
    if "\0" in text:  # as UTF-16 without its mark has, which is often valid UTF-8
        raise TextError(_NOT_TEXT)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, limit: int = PROMPTS_LIMIT) -> str:
    """The text of a file; UserError when it cannot be read, is larger than `limit` bytes, or is not text."""
    try:
        return decode_text(read_bytes(path, limit))
    except TextError as error:
        raise UserError(f"{path} {error}") from None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, all "\\n"; a long file is never in memory as a whole.

    Raises:
        UserError: (while iterating) as `read_text`, or a line beyond `LINE_LIMIT`.
    """
    try:
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):  # a device or a pipe may have no end
            raise UserError(f"cannot read {path}: it is not a regular file")
        if facts.st_size > METADATA_LIMIT:
            raise UserError(f"cannot read {path}: it is larger than {METADATA_LIMIT:,} bytes: use parquet or tars")
        with open(path, "rb") as file:
            length, encoding = _encoding(file.read(4))
            file.seek(length)
            text = io.TextIOWrapper(file, encoding)
            number = 0
            while line := text.readline(LINE_LIMIT):
                number += 1
                if "\0" in line:
                    raise UserError(f"{path} {_NOT_TEXT}")
                if len(line) == LINE_LIMIT:
                    raise UserError(f"{path}, line {number} is longer than {LINE_LIMIT:,} characters: cut it")
                yield line
    except UnicodeDecodeError:
        raise UserError(f"{path} {_NOT_TEXT}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def parse_foreign_json(text: str) -> Any:
    """JSON of others -> values. NaN is taken as Python writes it: one such value must not cost the other records.

    Raises:
        TextError: not JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise TextError("is nested too deep") from None
    except ValueError as error:
        raise TextError(f"is not JSON ({' '.join(str(error).split())[:100]})") from None


def printable(name: str) -> str:
    """A file name as one line that can be printed and stored: what is not text, and control characters, as \\x0a."""
    if name.isprintable():
        return name
    return "".join(_escaped(sign) if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") else sign for sign in name)


def _escaped(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8, as Python holds it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _encoding(start: bytes) -> tuple[int, str]:
    """(length of the mark, encoding) by the first bytes."""
    return next(((len(mark), name) for mark, name in _MARKS if start.startswith(mark)), (0, "utf-8"))
