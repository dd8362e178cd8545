"""The data spec string, the one syntax for `--data` everywhere: SOURCE[@SPLIT][?key=value&key=value].

shapes?size=32          the embedded data set          pictures/          a folder
shapes@val              its held-out combinations      shards/*.tar       WebDataset tars
emoji/@val              one split of a folder          file.parquet       one file
"emoji/?caption={text}, {style} style"                 hf:owner/name@train   a data set of the Hugging Face hub
"vqa/?question=q&answer=a"   further texts of a record
"https://host/{0000..0099}.tar"   tars, parquet files or codes (https://host/codes/) at any address of fsspec
"shapes?task=edit"           rendered scenes with the pictures and texts of a task
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from tokenizers_vq.errors import UserError

from .records import TEXT_FIELDS

CODES_INDEX = "codes.json"
"""The file that makes a folder one of code shards."""

TEXT_KEYS = (*TEXT_FIELDS, "label", "prompt")
"""Keys that name what a record's further texts are made of, as `caption` does for its caption."""

PART_KEYS = ("every", "except")
"""Keys that take a part of any data set: each so many-th record, or all but these."""

_OWN = ("cache", "caption", "config", "image", "kind", "limit", "outside", "seed", "size", "task")
KEYS = tuple(sorted((*_OWN, *PART_KEYS, *TEXT_KEYS)))
_INTEGERS = {"cache": 1, "limit": 1, "seed": 0, "size": 1, "every": 2, "except": 2}  # key -> smallest value
_CHOICES = {"kind": ("parquet", "tar", "pictures"), "outside": ("true", "false")}
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class DataSpec:
    """A parsed spec. Which keys a source takes is checked where it is opened: `check_keys`."""

    source: str
    """A path, a glob, `shapes`, or `hf:owner/name`."""
    split: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        query = "&".join(f"{key}={value}" for key, value in self.options.items())
        return self.source + (f"@{self.split}" if self.split else "") + (f"?{query}" if query else "")

    def having(self, **options: str) -> DataSpec:
        """The spec with these keys."""
        return DataSpec(self.source, self.split, {**self.options, **options})

    def without(self, *keys: str) -> DataSpec:
        """The spec without these keys."""
        left = {name: value for name, value in self.options.items() if name not in keys}
        return DataSpec(self.source, self.split, left)

    def integer(self, key: str, default: int) -> int:
        return int(self.options[key]) if key in self.options else default

    def check_keys(self, *allowed: str) -> None:
        """Raises UserError when the spec has a key that its source does not take."""
        for key in self.options:
            if key not in allowed:
                raise UserError(
                    f"data {str(self)!r}: {self.source} takes no {key!r}, only {', '.join(allowed)}: remove it"
                )


def parse_spec(text: str) -> DataSpec:
    """Split a spec into source, split and keys. Values are taken as they stand: nothing is percent-decoded.

    >>> parse_spec("emoji/@val?caption={text}, {style} style&limit=8")
    DataSpec(source='emoji/', split='val', options={'caption': '{text}, {style} style', 'limit': '8'})

    What is there by its name on disk is meant by its name: `icons@2x` is a folder, if there is one. Else a `?` without
    `name=` behind it is part of a glob, and an `@` before a dot or a slash part of a path.

    Raises:
        UserError: an unknown or repeated key, a value that is not allowed, a path that is not text, or no source.
    """
    text = text.strip()
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise UserError(f"data {text!a} is not UTF-8 text, and could not be written down: rename the folder")
    source, query = _cut_query(text)
    options: dict[str, str] = {}
    for part in re.split(r"&(?=\w+=)", query) if query else []:
        key, _, value = part.partition("=")
        if key not in KEYS:
            raise UserError(f"data {text!r}: unknown key {key!r}: choose from {', '.join(KEYS)}")
        if key in options:
            raise UserError(f"data {text!r}: {key!r} is given twice: keep one")
        if not value:
            raise UserError(f"data {text!r}: {key!r} has no value: write {key}=VALUE or remove it")
        if key in _INTEGERS and not _is_number(value, _INTEGERS[key]):
            raise UserError(f"data {text!r}: {key} is {value!r}: give a whole number from {_INTEGERS[key]} up")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise UserError(f"data {text!r}: {key} is {value!r}: choose {' or '.join(_CHOICES[key])}")
        options[key] = value
    if options.keys() >= set(PART_KEYS):
        raise UserError(f"data {text!r}: every and except are given both: keep one")
    split = ""
    if not _exists(source):
        source, split = _cut_split(source)
    if not source:
        raise UserError(
            f"data {text!r} names no source: write SOURCE[@SPLIT][?key=value&...], such as pictures/ or shapes"
        )
    return DataSpec(source, split or None, options)


def _cut_query(text: str) -> tuple[str, str]:
    """(source and split, keys): at the first `?key=` behind something that exists, else at the first of all."""
    places = [] if _exists(text) else [match.start() for match in re.finditer(r"\?(?=\w+=)", text)]
    for place in places:
        source = text[:place]
        if _exists(source) or _exists(_cut_split(source)[0]):
            return source, text[place + 1 :]
    return (text[: places[0]], text[places[0] + 1 :]) if places else (text, "")


def _cut_split(source: str) -> tuple[str, str]:
    match = re.search(r"@(?=[\w-]+$)", source)
    return (source, "") if match is None else (source[: match.start()], source[match.end() :])


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(os.path.expanduser(path))


def _is_number(value: str, smallest: int) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 20 and smallest <= int(value) <= _LARGEST
