"""WebDataset tars (https://github.com/webdataset/webdataset): files of one base name are one sample.

An index of where each picture lies is made by reading the tar's headers once (about 0.1 ms a member); pictures are read
by random access in the workers. The reader of `datasets` copies every tar into its cache, and refuses a tar
when one of the first samples lacks its caption.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers_vq.errors import UserError

from .captions import TEXT_EXTENSIONS, add_columns, text_columns
from .cells import Place, Row
from .decoding import EXTENSIONS, UNREAD
from .records import LeftOut
from .text_files import CAPTION_LIMIT, printable

_HEADER_LIMIT = 2**20  # bytes of one header; names and the like are read into memory as long as they claim to be


@dataclass(frozen=True)
class _Member:
    """A picture or a text of a tar."""

    folder: str
    base: str
    place: Place | None = None
    columns: dict[str, Any] | None = None

    def key(self, dotted: bool) -> str:
        """What the members of one sample share: the name up to its last dot, if names are dotted, or to its first."""
        stem = posixpath.splitext(self.base)[0] if dotted else self.base.partition(".")[0]
        return posixpath.join(self.folder, stem)

    def extension(self, dotted: bool) -> str:
        return (posixpath.splitext(self.base)[1][1:] if dotted else self.base.partition(".")[2]).lower()


class _Headers:
    """A tar as `tarfile` may see it: one header must not take all memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def tar_rows(files: Sequence[Path], image: str | None, where: str) -> tuple[list[Row], list[LeftOut]]:
    """Samples of the tars, in their order, and pictures that are no samples. Columns are `key`, `txt` and the like, and
    the entries of a `json` member.

    Args:
        image: the extension that holds the picture, when samples have several.

    Raises:
        UserError: a tar that is damaged or compressed, a sample with several pictures, or no picture at all.
    """
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    for file in files:
        rows += _samples(file, image, where, left_out)
    if not any(place.size > 0 for place, _ in rows):
        what = f"member .{image}" if image else "picture"
        first = f"; {left_out[0][0]} {left_out[0][1]}" if left_out else ""
        raise UserError(
            f"data {where!r}: no sample of the tars has a {what}: choose the extension with ?image=EXTENSION{first}"
        )
    return rows, left_out


def count_samples(file: Path) -> int:
    """Pictures of a tar, as far as it can be read."""
    count = 0
    with contextlib.suppress(UserError):
        for member in _members(file, ""):
            count += member.place is not None
    return count


def _samples(file: Path, image: str | None, where: str, left_out: list[LeftOut]) -> list[Row]:
    members = list(_members(file, where))
    # `shot 1.0.png` beside `shot 1.0.txt` is a name with a dot; `1.depth.png` beside `1.txt` is a second picture of 1.
    texts = {member.key(True) for member in members if member.columns is not None}
    dotted = image is None and any(
        member.key(True) != member.key(False) and member.key(True) in texts for member in members if member.place
    )
    samples: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        samples[member.key(dotted)].append(member)
    rows = []
    for key, parts in samples.items():
        columns: dict[str, Any] = {}
        for extension in TEXT_EXTENSIONS:
            for part in parts:
                if part.columns is not None and part.extension(dotted) == extension:
                    add_columns(columns, part.columns)
        pictures = {part.extension(dotted): part.place for part in parts if part.place}
        place = _picture(pictures, image, f"{file.name}/{key}", where)
        if place.problem is None:
            rows.append((place, {"key": key, **columns}))
        else:
            left_out.append((place.name, place.problem))
    return rows


def _members(file: Path, where: str) -> Iterator[_Member]:
    """The pictures and texts of a tar; a picture that cannot be read has a problem."""
    pictures: dict[str, Place] = {}  # what links may lead to
    end = 0
    try:
        with open(file, "rb") as raw:
            length = os.fstat(raw.fileno()).st_size
            with tarfile.open(fileobj=_Headers(raw), mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # a million of them would take a gigabyte
                    if not end < tar.offset <= length + tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(f"{printable(member.name)[:100]} claims a size that the file has not")
                    end = tar.offset
                    name = posixpath.normpath(member.name)
                    folder, base = posixpath.split(name)
                    extension = posixpath.splitext(base)[1].lower()
                    if base.startswith(".") or member.isdir():
                        continue
                    if extension in EXTENSIONS or extension in UNREAD:
                        pictures[name] = _place(file, member, name, pictures)
                        yield _Member(folder, base, pictures[name])
                    elif extension[1:] in TEXT_EXTENSIONS and member.isfile() and not member.issparse():
                        raw.seek(member.offset_data)
                        data = raw.read(min(member.size, CAPTION_LIMIT + 1))
                        yield _Member(folder, base, columns=text_columns(extension[1:], data, printable(name)))
            raw.seek(end)  # tarfile takes a damaged header for the end of the archive
            damaged = bool(raw.read(tarfile.BLOCKSIZE).strip(b"\0"))
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        reason = "headers of headers without end" if nested else " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data {where!r}: {file} cannot be read as an uncompressed tar ({reason}): unpack .gz, or download it again"
        ) from error
    if damaged:
        raise UserError(f"data {where!r}: {file} is damaged after byte {end}: download it again or leave it out")


def _place(file: Path, member: tarfile.TarInfo, name: str, pictures: dict[str, Place]) -> Place:
    """Where a picture lies; a link is what it leads to, which lies before it in the same tar."""
    shown = printable(f"{file.name}/{name}")
    extension = posixpath.splitext(name)[1].lower()
    if extension in UNREAD:
        return Place(b"", shown, problem=UNREAD[extension])
    if member.isfile() and not member.issparse():
        return Place(os.fsencode(file), shown, member.offset_data, member.size)
    target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
    found = pictures.get(posixpath.normpath(target)) if member.islnk() or member.issym() else None
    return replace(found, name=shown) if found else Place(b"", shown, problem="is no plain file in its tar")


def _picture(pictures: dict[str, Place], image: str | None, name: str, where: str) -> Place:
    """The picture of a sample; an empty place when it has none, which is counted as a broken picture."""
    if image is not None:
        return pictures.get(image.lower()) or Place(b"", printable(name), 0, 0)
    readable = {extension: place for extension, place in pictures.items() if place.problem is None}
    if len(readable) > 1:
        found = ", ".join(sorted(readable))
        raise UserError(
            f"data {where!r}: sample {printable(name)} has several pictures, {found}: choose with ?image=EXTENSION"
        )
    return next(iter([*readable.values(), *pictures.values()]), None) or Place(b"", printable(name), 0, 0)
