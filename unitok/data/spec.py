"""The data spec string, the one syntax for `--data` everywhere: SOURCE[@SPLIT][?key=value&key=value].

shapes?size=32          the embedded data set          pictures/          a folder
shapes@val              its held-out combinations      shards/*.tar       WebDataset tars
emoji/@val              one split of a folder          file.parquet       one file
"emoji/?caption={text}, {style} style"                 hf:owner/name@train   a data set of the Hugging Face hub
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tokenizers_vq.errors import UserError

CODES_INDEX = "codes.json"
"""The file that makes a folder one of code shards."""

KEYS = ("caption", "config", "image", "limit", "seed", "size")
_INTEGERS = {"limit": 1, "seed": 0, "size": 1}  # key -> smallest value


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

    A `?` without `name=` behind it is part of a glob, and an `@` before a dot or a slash part of a path.

    Raises:
        UserError: an unknown or repeated key, a number that is none, or no source.
    """
    source, _, query = _cut(text.strip(), r"\?(?=\w+=)")
    options: dict[str, str] = {}
    for part in re.split(r"&(?=\w+=)", query) if query else []:
        key, _, value = part.partition("=")
        if key not in KEYS:
            raise UserError(f"data {text!r}: unknown key {key!r}: choose from {', '.join(KEYS)}")
        if key in options:
            raise UserError(f"data {text!r}: {key!r} is given twice: keep one")
        if not value:
            raise UserError(f"data {text!r}: {key!r} has no value: write {key}=VALUE or remove it")
        if key in _INTEGERS and not (value.isascii() and value.isdigit() and int(value) >= _INTEGERS[key]):
            raise UserError(f"data {text!r}: {key} is {value!r}: give a whole number from {_INTEGERS[key]} up")
        options[key] = value
    source, _, split = _cut(source, r"@(?=[\w-]+$)")
    if not source:
        raise UserError(
            f"data {text!r} names no source: write SOURCE[@SPLIT][?key=value&...], such as pictures/ or shapes"
        )
    return DataSpec(source, split or None, options)


def _cut(text: str, pattern: str) -> tuple[str, str, str]:
    match = re.search(pattern, text)
    return (text, "", "") if match is None else (text[: match.start()], match.group(), text[match.end() :])
