"""Files on disk: which of them a spec means, and loose pictures with their captions as rows.

Files are always taken in sorted order, so that an index means the same picture on every machine.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tokenizers_vq.errors import UserError

from .decoding import EXTENSIONS

METADATA = ("metadata.jsonl", "metadata.csv")

_ALIASES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a picture's bytes are: a file, or a part of a tar."""

    path: str
    name: str
    """Short name for logs."""
    offset: int = 0
    size: int = -1
    """Bytes; -1 for the whole file."""


Row = tuple[Place, dict[str, Any]]
"""A picture and the columns its caption can be made of."""


@dataclass(frozen=True)
class Files:
    """The files of one kind that a spec means, as sorted paths under `root`."""

    kind: str
    """"parquet", "tar" or "pictures"."""
    root: Path
    names: list[str]

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]


def find_files(source: str, split: str | None, where: str) -> Files:
    """The files of a folder, a glob or a single file, of the wanted split.

    A folder may hold parquet files, tars or pictures; the first kind found in this order is taken, but `metadata.jsonl`
    or `.csv` says that it is a folder of pictures. Without a split, a folder stands for its `train` part, and a glob or
    a file for itself.

    Raises:
        UserError: no such file, nothing of use in it, or no such split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        root, names = path, _list(path)
    elif path.is_file():
        root, names = path.parent, [path.name]
    elif glob.has_magic(source):
        parts = path.parts
        plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:plain])
        names = sorted(Path(hit).relative_to(root).as_posix() for hit in glob.glob(str(path), recursive=True))
        names = [name for name in names if (root / name).is_file()]
    else:
        raise UserError(
            f"data {where!r}: there is no file or folder {source!r}: give a path, a glob, hf:owner/name or shapes, "
            "then @SPLIT and ?key=value as needed"
        )
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        kinds[_kind(name)].append(name)
    order = ("pictures", "parquet", "tar") if kinds["metadata"] else ("parquet", "tar", "pictures")
    kind = next((kind for kind in order if kinds[kind]), None)
    if kind is None:
        found = f"{len(names)} file(s) of other kinds" if names else "nothing"
        known = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"data {where!r}: {source!r} holds {found}, no .parquet, no .tar and no pictures ({known})")
    splits = {name: _split_of(name, kind) for name in kinds[kind]}
    if split is None and not path.is_dir():
        return Files(kind, root, kinds[kind])
    chosen = choose_split(split, sorted(set(splits.values())), where)
    return Files(kind, root, [name for name in kinds[kind] if splits[name] == chosen])


def choose_split(wanted: str | None, splits: Sequence[str], where: str) -> str:
    """The wanted split under any of its usual names (val = validation = dev); without a wish `train`, or the only one.

    Raises:
        UserError: there is no such split, or the choice is not clear.
    """
    if wanted in splits:
        return str(wanted)
    meant = _ALIASES.get((wanted or "train").lower())
    for split in splits:
        if meant is not None and _ALIASES.get(split.lower()) == meant:
            return split
    if wanted is None and len(splits) == 1:
        return splits[0]
    trouble = "has several splits" if wanted is None else f"has no split {wanted!r}"
    raise UserError(f"data {where!r} {trouble}: choose one of {', '.join(splits)}, as SOURCE@SPLIT")


def picture_rows(files: Files) -> list[Row]:
    """Loose pictures: columns `file_name`, `label` (the folder it is in), `caption` from NAME.txt beside NAME.png, and
    those of `metadata.jsonl` or `metadata.csv`, whose `file_name` is relative to it. A picture with several lines there
    is several rows; a picture that is missing on disk is a row that cannot be read.

    Raises:
        UserError: a metadata file that cannot be read.
    """
    metadata = _metadata(files.root)
    # Pictures of this split that metadata names but that are not on disk must be counted too.
    folders = {str(PurePosixPath(name).parent) for name in files.names}
    missing = [
        name for name in metadata if str(PurePosixPath(name).parent) in folders and not (files.root / name).exists()
    ]
    rows: list[Row] = []
    for name in sorted({*files.names, *missing}):
        path = files.root / name
        columns: dict[str, Any] = {"file_name": name, "label": path.absolute().parent.name}
        with contextlib.suppress(OSError):  # no such file: this picture has no caption here
            columns["caption"] = path.with_suffix(".txt").read_text(encoding="utf-8-sig", errors="replace")
        for line in metadata.get(name, [{}]):
            rows.append((Place(str(path), name), columns | line))
    return rows


def _list(root: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _kind(name: str) -> str:
    base = name.rsplit("/", 1)[-1].lower()
    if base in METADATA:
        return "metadata"
    if base.endswith((".parquet", ".tar")):
        return base.rsplit(".", 1)[-1]
    return "pictures" if os.path.splitext(base)[1] in EXTENSIONS else "other"


def _split_of(name: str, kind: str) -> str:
    """The split a file's name speaks of: that of `val/0.png`, `val-00000.parquet` and `data/val-00000-of-00004.tar` is
    val; a name that speaks of none is of train. (A picture's own name says nothing: it may show a train.)"""
    *folders, base = name.split("/")
    stem = base.split(".")[0]
    word = re.sub(r"[-_]?\d+(-of-\d+)?$", "", stem)
    for part in [*([] if kind == "pictures" else [word]), *reversed(folders)]:
        if part.lower() in _ALIASES:
            return _ALIASES[part.lower()]
    return word if kind != "pictures" and word and re.search(r"-\d+-of-\d+$", stem) else "train"


def _metadata(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of all metadata files under `root`, by the picture's path under it."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in _list(root):
        if _kind(name) == "metadata":
            for line in _metadata_lines(root / name):
                path = os.path.normpath(PurePosixPath(name).parent / line["file_name"])
                found[PurePosixPath(path).as_posix()].append(line | {"file_name": path})
    return found


def _metadata_lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            lines: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{file} cannot be read ({error}): give one JSON object per line, or a CSV with a header"
        ) from error
    for number, line in enumerate(lines):
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str) or not line["file_name"]:
            raise UserError(f"{file}: entry {number + 1} has no file_name: each entry needs the name of its picture")
    return lines
