"""What a record's caption and other texts are made of: columns, in a stated order, and what is no caption."""

from __future__ import annotations

import math
import numbers
import string
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers_vq.errors import UserError

from .text_files import CAPTION_LIMIT, TextError, decode_text, parse_foreign_json

CAPTION_COLUMNS = ("caption", "text", "txt")
"""Where a record's caption is looked for, in this order, when the spec does not say: the first that is not empty."""

TEXT_EXTENSIONS = ("json", "caption", "text", "txt", "cls")
"""Files beside a picture that make columns: the entries of a json, and the text of the others."""


class CaptionError(ValueError):
    """A caption that is there but cannot be used, and why."""


class Unusable:
    """Stands in a column for a text that cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def value_text(value: Any, column: str) -> str:
    """A cell as text, "" when it holds nothing: None, NaN, an empty list or white space. Lists are joined with commas.

    Raises:
        CaptionError: a cell that is no text and has none, such as a map, or text that no file can hold.
    """
    if isinstance(value, str):
        text = value.strip()
    elif value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        text = ""
    elif isinstance(value, Unusable):
        raise CaptionError(value.reason)
    elif isinstance(value, bytes):
        try:
            text = decode_text(value).strip()
        except TextError as error:
            raise CaptionError(f"its {column} {error}") from None
    elif isinstance(value, list | tuple):
        text = ", ".join(filter(None, (value_text(item, column) for item in value)))
    elif isinstance(value, Mapping):
        raise CaptionError(f"its {column} is a map, not a text")
    else:
        text = str(value).strip()
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise CaptionError(f"its {column} is not valid text (it has an unpaired surrogate): fix it")
    return text


class CaptionTemplate:
    """How a row becomes a caption or another text: a column's name, or a text with {column} in it.

    >>> CaptionTemplate("{text}, {style} style").render({"text": "crab", "style": "noto"})
    'crab, noto style'
    """

    def __init__(self, template: str, name: str = "caption") -> None:
        self.template = template if "{" in template or "}" in template else "{" + template + "}"
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise UserError(f"{name} template {template!r}: {error}: write {{column}}, and {{{{ for a brace") from None
        self.columns = [column for _, column, _, _ in parts if column is not None]
        if not self.columns or any(not c or f or v for _, c, f, v in parts if c is not None):
            raise UserError(f"{name} template {template!r}: write plain column names in braces, such as {{text}}")
        self._parts = [(text, column) for text, column, _, _ in parts]

    def render(self, row: Mapping[str, Any]) -> str | None:
        """The text, or None when a column is missing or empty in this row. Raises CaptionError."""
        out = ""
        for text, column in self._parts:
            out += text
            if column is not None:
                value = value_text(row.get(column), column)
                if not value:
                    return None
                out += value
        return out.strip()


class FirstColumn:
    """A caption from the first of several columns that holds one in a row."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self.template = "{" + "} or {".join(columns) + "}"

    def render(self, row: Mapping[str, Any]) -> str | None:
        """The caption, or None when all are missing or empty in this row. Raises CaptionError."""
        return next(filter(None, (value_text(row.get(column), column) for column in self.columns)), None)


Captions = CaptionTemplate | FirstColumn


def caption_template(wanted: str | None, columns: Sequence[str], where: str, advice: str) -> Captions:
    """The template of the spec's `caption` key, or those of `CAPTION_COLUMNS` that there are.

    Raises:
        UserError: a column that there is not, or, with `advice`, no column that looks like a caption.
    """
    if wanted is not None:
        return text_template(wanted, columns, where)
    found = [column for column in CAPTION_COLUMNS if column in columns]
    if not found:
        names = ", ".join(CAPTION_COLUMNS[:-1]) + " or " + CAPTION_COLUMNS[-1]
        raise UserError(
            f"data {where!r} has no captions: no column is named {names}; it has {_listed(columns)}: {advice}"
        )
    return FirstColumn(found)


def text_template(wanted: str, columns: Sequence[str], where: str, name: str = "caption") -> CaptionTemplate:
    """The template of the spec's key `name`.

    Raises:
        UserError: a column that there is not.
    """
    template = CaptionTemplate(wanted, name)
    for column in template.columns:
        if column not in columns:
            raise UserError(
                f"data {where!r} has no column {column!r} for the {name}; it has {_listed(columns)}: choose one of them"
            )
    return template


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")


def add_columns(columns: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds columns; what holds something stays, but for what holds something newer."""
    columns.update((column, value) for column, value in more.items() if not (column in columns and _is_empty(value)))


def text_columns(extension: str, data: bytes, name: str) -> dict[str, Any]:
    """The columns that a file beside a picture makes.

    Args:
        extension: one of `TEXT_EXTENSIONS`.
        data: the file, or its beginning beyond `CAPTION_LIMIT`.
        name: of the file, for a column that cannot be used.
    """
    column = "caption" if extension == "json" else extension
    if len(data) > CAPTION_LIMIT:
        return {column: Unusable(f"{name} is larger than {CAPTION_LIMIT:,} bytes, too large for a caption")}
    try:
        text = decode_text(data)
        if extension != "json":
            return {column: text}
        entries = parse_foreign_json(text)
    except TextError as error:
        return {column: Unusable(f"{name} {error}")}
    return entries if isinstance(entries, dict) else {}


def _is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, list) and not value)
    )
