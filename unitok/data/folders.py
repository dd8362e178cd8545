"""Files on disk -> which of them belong to a split, and tables of loose pictures and of WebDataset tars.

Files are always taken in sorted order, so that an index means the same picture on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers_vq.errors import UserError

_ALIASES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def choose_split(wanted: str | None, splits: Sequence[str], where: str) -> str:
    """The wanted split under any of its usual names (val = validation = dev); without a wish `train`, or the only one.

    Raises:
        UserError: there is no such split, or the choice is not clear.
    """
    if wanted in splits:
        return str(wanted)
    same = [
        split
        for split in splits
        if _ALIASES.get(split.lower(), split) == _ALIASES.get((wanted or "train").lower(), wanted)
    ]
    if same:
        return same[0]
    if wanted is None and len(splits) == 1:
        return splits[0]
    missing = "has several splits" if wanted is None else f"has no split {wanted!r}"
    raise UserError(f"data {where!r} {missing}; it has {', '.join(splits)}: choose with SOURCE@SPLIT")


def split_of_file(path: Path, root: Path) -> str:
    """The split a shard's name speaks of: `val-00000.parquet`, `data/val-00000-of-00004.parquet` and `val/0.tar` are of
    `val`; a name that speaks of none is of `train`."""
    word = re.sub(r"[-_.]?\d+(-of-\d+)?$", "", path.name.split(".")[0])
    for name in (word, *reversed(path.relative_to(root).parts[:-1])):
        if name.lower() in _ALIASES:
            return _ALIASES[name.lower()]
    return word if re.search(r"-\d+-of-\d+$", path.name.split(".")[0]) and word else "train"


def shard_files(source: Path, pattern: str, split: str | None, where: str) -> list[Path]:
    """The shards of a folder that match `pattern` and belong to the split, sorted."""
    files = [path for path in sorted(source.rglob(pattern)) if not _hidden(path.relative_to(source))]
    splits = {path: split_of_file(path, source) for path in files}
    chosen = choose_split(split, sorted(set(splits.values())), where)
    return [path for path in files if splits[path] == chosen]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
