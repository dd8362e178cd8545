"""Files on disk: which of them a spec means.

Files are always taken in sorted order, so that an index means the same picture on every machine.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers_vq.errors import UserError

from .decoding import EXTENSIONS, UNREAD
from .metadata import NAMES as METADATA
from .records import LeftOut
from .spec import DataSpec
from .text_files import printable

KINDS = ("parquet", "pictures", "tar")
_FILES = {"parquet": "parquet file(s)", "pictures": "loose picture(s)", "tar": "tar(s)"}
MAX_FOLDERS = 1_000_000
"""Folders that are listed, links included: two links in each of 30 folders would make a billion."""

_ALIASES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files of one kind that a spec means, as sorted paths under `root`."""

    kind: str
    """One of `KINDS`."""
    root: Path
    names: list[str]
    listed: list[str]
    """All files that were looked at, of every kind and split."""
    whole: bool
    """A folder was named, not a glob or a file: what lies in it belongs to the data."""
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was chosen where something else could have been meant."""
    splits: dict[str, str] = field(default_factory=dict)
    """Of loose pictures: folder -> split, where folders are splits; others are of `train`."""
    split: str | None = None

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]


def find_files(spec: DataSpec, count_pictures: Callable[[str, Sequence[Path]], int]) -> Files:
    """The files of a folder, a glob or a single file, of the wanted split.

    A folder may hold parquet files, tars and loose pictures. `?kind=` says which are the data; else loose pictures if
    there is a `metadata.jsonl` or `.csv`, else the kind with most pictures. Without a split, a folder stands for its
    `train` part, and a glob or a file for itself.

    Args:
        count_pictures: how many pictures are in files of a kind.

    Raises:
        UserError: no such file, nothing of use in it, or no such split.
    """
    where = str(spec)
    root, listed, troubles = _look(spec)
    whole = os.path.isdir(_expanded(spec.source))
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in listed:
        kinds[kind_of(name)].append(name)
    kind, notes = _choose_kind(spec, root, kinds, len(listed), troubles, count_pictures)
    unread = [(name, UNREAD[_extension(name)]) for name in kinds["unread"]] if kind == "pictures" else []
    if kind == "pictures":
        splits = _split_folders([*kinds["pictures"], *(name for name, _ in unread)], notes)
        of = {name: split_of_picture(name, splits) for name in kinds["pictures"]}
    else:
        splits, of = {}, {name: _split_of_file(name) for name in kinds[kind]}
    readable = {os.path.splitext(name)[0] for name in kinds["pictures"]}
    unread = [(name, reason) for name, reason in unread if os.path.splitext(name)[0] not in readable]
    if spec.split is None and not whole:
        return Files(kind, root, kinds[kind], listed, whole, troubles + unread, notes)
    counts = Counter(of.values())
    try:
        chosen = choose_split(spec.split, sorted(counts), where)
    except UserError as error:
        raise UserError("; ".join([str(error), *notes])) from None
    others = [f"{split} {count}" for split, count in sorted(counts.items()) if split != chosen]
    if others:
        notes.append(f"split {chosen} (also there: {', '.join(others)})")
    unread = [(name, reason) for name, reason in unread if split_of_picture(name, splits) == chosen]
    names = [name for name in kinds[kind] if of[name] == chosen]
    return Files(kind, root, names, listed, whole, troubles + unread, notes, splits, chosen)


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


def split_of_picture(name: str, splits: dict[str, str]) -> str:
    """The split of a loose picture. (Its own name says nothing: it may show a train.)"""
    folder = name.rpartition("/")[0]
    return splits.get(folder, "train")


def _look(spec: DataSpec) -> tuple[Path, list[str], list[LeftOut]]:
    """(root, sorted names of files under it, what could not be listed)."""
    path = _expanded(spec.source)
    if os.path.isdir(path):
        root = Path(path)
        return (root, *list_files(root))
    if os.path.isfile(path):
        root, chosen = Path(path).parent, [os.path.basename(path)]
    elif glob.has_magic(spec.source):
        # What is there by its name is meant by its name: a folder may be called [1].
        parts = Path(path).parts
        there = (number for number in range(len(parts)) if not os.path.lexists(os.path.join(*parts[: number + 1])))
        plain = next(there, len(parts) - 1)
        root, pattern = Path(*parts[:plain]), os.path.join(*parts[plain:])
        hits = glob.glob(pattern, root_dir=root, recursive=True)
        chosen = sorted({hit for hit in hits if os.path.isfile(root / hit)})
    else:
        raise UserError(
            f"data {str(spec)!r}: there is no file or folder {spec.source!r}: give a path, a glob, hf:owner/name or "
            "shapes, then @SPLIT and ?key=value as needed"
        )
    return root, chosen, []


def list_files(root: Path) -> tuple[list[str], list[LeftOut]]:
    """Sorted names of all files under a folder, and the folders that cannot be listed. Links to folders are followed,
    but for those into a folder above; hidden files and folders are left.

    Raises:
        UserError: more than `MAX_FOLDERS` folders.
    """
    names: list[str] = []
    troubles: list[LeftOut] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    count = 0
    while waiting:
        prefix, above = waiting.pop()
        try:
            facts = os.stat(root / prefix)
            here = (facts.st_dev, facts.st_ino)
            if here in above:
                continue
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        waiting.append((f"{prefix}{entry.name}/", above | {here}))
                    else:
                        names.append(prefix + entry.name)
        except OSError as error:
            troubles.append((prefix or str(root), f"cannot be listed: {error.strerror}"))
        count += 1
        if count > MAX_FOLDERS:
            raise UserError(
                f"{root} holds more than {MAX_FOLDERS:,} folders, links included: remove links, or use tars"
            )
    return sorted(names), sorted(troubles)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def beside(files: Files) -> list[str]:
    """All files that may say something of the chosen ones: those of the whole folder, or of the folders that a glob's
    hits are in, and of the folders above them."""
    if files.whole:
        return files.listed
    folders = {""}
    for name in files.names:
        parts = name.split("/")[:-1]
        folders |= {"/".join(parts[: number + 1]) + "/" for number in range(len(parts))}
    found = set(files.names)
    for folder in folders:
        try:
            found |= {folder + name for name in os.listdir(files.root / folder) if not name.startswith(".")}
        except OSError:
            continue  # its pictures are named all the same
    return sorted(found)


def is_metadata(name: str) -> bool:
    return name.rsplit("/", 1)[-1].lower() in METADATA


def _expanded(source: str) -> str:
    return os.path.expanduser(source)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def kind_of(name: str) -> str:
    """One of `KINDS`, "metadata", "unread" for formats that are not read, or "other"."""
    if is_metadata(name):
        return "metadata"
    extension = _extension(name)
    if extension in (".parquet", ".tar"):
        return extension[1:]
    return "pictures" if extension in EXTENSIONS else "unread" if extension in UNREAD else "other"


def _choose_kind(
    spec: DataSpec,
    root: Path,
    kinds: dict[str, list[str]],
    count: int,
    troubles: list[LeftOut],
    count_pictures: Callable[[str, Sequence[Path]], int],
) -> tuple[str, list[str]]:
    """(kind, what to say about it)."""
    where, wanted = str(spec), spec.options.get("kind")
    there = [kind for kind in KINDS if kinds[kind]]
    if wanted is not None:
        if wanted not in there:
            raise UserError(
                f"data {where!r}: {spec.source!r} holds no {wanted}, but {', '.join(there) or 'nothing of use'}: "
                "choose another kind"
            )
        return wanted, []
    if not there:
        found = f"{count} file(s) of other kinds" if count else "nothing"
        lost = [(name, UNREAD[_extension(name)]) for name in kinds["unread"]] + troubles
        known = f"{printable(lost[0][0])} {lost[0][1]}" if lost else ", ".join(sorted(EXTENSIONS))
        raise UserError(
            f"data {where!r}: {spec.source!r} holds {found}, no .parquet, no .tar and no pictures that can be read "
            f"({known})"
        )
    if len(there) == 1:
        return there[0], []
    counts = {one: count_pictures(one, [root / name for name in kinds[one]]) for one in there if one != "pictures"}
    counts["pictures"] = len(kinds["pictures"])
    kind = "pictures" if kinds["metadata"] and kinds["pictures"] else max(there, key=lambda one: counts[one])
    left = [
        f"{len(kinds[one])} {_FILES[one]}{'' if counts[one] else ' without pictures'}" for one in there if one != kind
    ]
    return kind, [f"took {len(kinds[kind])} {_FILES[kind]}, left {' and '.join(left)} (?kind= decides)"]


def _split_folders(names: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Folder -> split, for loose pictures. Folders of one depth are splits when all of them have the name of one;
    otherwise they are classes, as `test` is beside `cats`."""
    folders = sorted({name.rpartition("/")[0] for name in names} - {""})
    parts = [folder.split("/") for folder in folders]
    doubtful: set[str] = set()
    for depth in range(max(map(len, parts), default=0)):
        here = {part[depth].lower() for part in parts if len(part) > depth}
        if all(name in _ALIASES for name in here):
            return {
                folder: _ALIASES[part[depth].lower()]
                for folder, part in zip(folders, parts, strict=True)
                if len(part) > depth
            }
        doubtful |= here & _ALIASES.keys()
    if doubtful:
        notes.append(f"folders {', '.join(sorted(doubtful))} are no splits: other folders stand beside them")
    return {}


def _split_of_file(name: str) -> str:
    """The split a parquet file or tar speaks of: that of `val-00000.parquet`, `data/val-00000-of-00004.tar` and
    `val/0.tar` is val; a name that speaks of none is of train."""
    *folders, base = name.split("/")
    word = re.sub(r"[-_]?\d+(-of-\d+)?$", "", base.split(".")[0])
    for part in [word, *reversed(folders)]:
        if part.lower() in _ALIASES:
            return _ALIASES[part.lower()]
    return word if word and re.search(r"-\d+-of-\d+$", base.split(".")[0]) else "train"
