"""WebDataset tars (https://github.com/webdataset/webdataset): files of one base name are one sample.

An index of where each picture lies is made by reading the tar's headers once (about 0.1 ms a member); pictures are read
by random access in the workers. The reader of `datasets` copies every tar into its cache, and refuses a tar
when one of the first samples lacks its caption.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers_vq.errors import UserError

from .decoding import EXTENSIONS
from .folders import Place, Row

_TEXTS = ("txt", "text", "caption", "cls")
_TEXT_LIMIT = 2**20  # bytes of a caption or json member that are read into memory


def tar_rows(files: Sequence[Path], image: str | None, where: str) -> list[Row]:
    """Samples of the tars, in their order: columns `key`, `txt` and the like, and the entries of a `json` member.

    Args:
        image: the extension that holds the picture, when samples have several.

    Raises:
        UserError: a tar that is damaged or compressed, a sample with several pictures, or no picture at all.
    """
    rows: list[Row] = []
    for file in files:
        rows += _samples(file, image, where)
    if not any(place.size > 0 for place, _ in rows):
        what = f"member .{image}" if image else "picture"
        raise UserError(
            f"data {where!r}: no sample of the tars has a {what}: choose the extension with ?image=EXTENSION"
        )
    return rows


def _samples(file: Path, image: str | None, where: str) -> list[Row]:
    samples: dict[str, tuple[dict[str, Place], dict[str, Any]]] = {}  # key -> (pictures by extension, columns)
    end = 0
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, base = os.path.split(member.name)
                stem, _, extension = base.lower().partition(".")
                if not member.isfile() or not stem or not extension:
                    continue
                key = os.path.join(folder, base[: len(stem)])
                pictures, columns = samples.setdefault(key, ({}, {"key": key}))
                if os.path.splitext(base.lower())[1] in EXTENSIONS:
                    name = f"{file.name}/{member.name}"
                    pictures[extension] = Place(str(file), name, member.offset_data, member.size)
                elif extension in ("json", *_TEXTS) and member.size <= _TEXT_LIMIT:
                    stream = tar.extractfile(member)
                    assert stream is not None  # a plain file has contents
                    columns |= _columns(extension, stream.read())
        with open(file, "rb") as raw:  # tarfile takes a damaged header for the end of the archive
            raw.seek(end)
            damaged = bool(raw.read(tarfile.BLOCKSIZE).strip(b"\0"))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"data {where!r}: {file} cannot be read as an uncompressed tar ({error}): unpack .gz, or download it again"
        ) from error
    if damaged:
        raise UserError(f"data {where!r}: {file} is damaged after byte {end}: download it again or leave it out")
    return [
        (_picture(pictures, image, f"{file.name}/{key}", where), columns)
        for key, (pictures, columns) in samples.items()
    ]


def _columns(extension: str, data: bytes) -> dict[str, Any]:
    text = data.decode("utf-8-sig", errors="replace")
    if extension != "json":
        return {extension: text}
    try:
        entries = json.loads(text)
    except ValueError:
        return {}  # then the sample has no caption, which is counted
    return entries if isinstance(entries, dict) else {}


def _picture(pictures: dict[str, Place], image: str | None, name: str, where: str) -> Place:
    """The picture of a sample; an empty place when it has none, which is counted as a broken picture."""
    if image is None and len(pictures) > 1:
        found = ", ".join(sorted(pictures))
        raise UserError(f"data {where!r}: sample {name} has several pictures, {found}: choose with ?image=EXTENSION")
    place = next(iter(pictures.values()), None) if image is None else pictures.get(image.lower())
    return place or Place("", name, 0, 0)
