"""`open_data`: a data spec string -> a data set of records."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

from tokenizers_vq.errors import UserError

from .addresses.cache import is_remote
from .decoding import MAX_PIXELS
from .fingerprint import digest
from .records import CaptionsWanted, LeftOut, Record, RecordDataset, ShardedDataset, each_caption
from .spec import CODES_INDEX, PART_KEYS, TEXT_KEYS, DataSpec, parse_spec

_REASONS = 3  # reasons that the opening line names; a long line is not read


def open_data(
    spec: str,
    image_size: int | tuple[int, int] | None = None,
    *,
    captions: CaptionsWanted = True,
    max_pixels: int = MAX_PIXELS,
) -> RecordDataset:
    """Open the data set that a spec string names; its syntax is in `unitok.data.spec` and docs/data.md.

    Args:
        spec: `SOURCE[@SPLIT][?key=value&...]`.
        image_size: pictures are scaled to cover this square or (H, W) and cropped at the centre; None keeps each
            picture's own size. Code shards ignore it.
        captions: True: without a caption a record is broken. "optional": without one it is whole all the same, but the
            data must have some. False: captions are not read at all. Other texts are read if the spec names them.
        max_pixels: larger pictures are refused before decoding.

    Raises:
        UserError: the source, split, key or column does not exist, or there is nothing in it.
    """
    parsed = parse_spec(spec)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise UserError(f"image size is {image_size}: give at least 1 pixel, such as 64")
    parts = {key: parsed.integer(key, 0) for key in PART_KEYS if key in parsed.options}
    # A part is taken of the whole set, and the limit of the part.
    whole = parsed.without(*PART_KEYS, "limit") if parts else parsed
    dataset, notes = _open(whole, size, captions, max_pixels)
    if len(dataset) == 0:
        raise UserError(f"data {spec!r} is empty: it has no rows")
    chosen = dataset
    for key, number in parts.items():
        if dataset.endless or len(dataset) < number:
            have = "no end" if dataset.endless else f"{len(dataset)} records"
            raise UserError(
                f"data {spec!r}: {key}={number} of a data set with {have}: remove it, or choose a smaller one"
            )
        chosen = PartOfRecords(dataset, number, held_out=key == "every")
    limit = parsed.integer("limit", len(chosen))
    shown = chosen
    if limit < len(chosen):
        sharded = isinstance(chosen, ShardedDataset)
        shown = FirstOfShards(chosen, limit) if sharded else FirstRecords(chosen, limit)
    source = parsed.source + (f"@{parsed.split}" if parsed.split else "")
    _say_once(opening_line(source, shown, dataset.left_out, notes))
    return shown


def opening_line(source: str, dataset: RecordDataset, left_out: Sequence[LeftOut], notes: Sequence[str]) -> str:
    """What every command says first of its data: how many pictures, how many were left out and why."""
    what = "pictures without end" if dataset.endless else f"{len(dataset):,} picture{'s' * (len(dataset) != 1)}"
    reasons = Counter(reason for _, reason in left_out)
    parts = [f"data {source}: {what}"]
    for reason, count in reasons.most_common(_REASONS):
        first = next(name for name, why in left_out if why == reason)
        parts.append(f"left out {count:,} ({first}{', ...' * (count > 1)}): {reason}")
    others = sum(reasons.values()) - sum(count for _, count in reasons.most_common(_REASONS))
    return "; ".join([*parts, *([f"left out {others:,} more for other reasons"] if others else []), *notes])


def _say_once(line: str) -> None:
    """A command may open one data set several times; under torchrun the first process speaks."""
    if int(os.environ.get("RANK", "0")) == 0 and line not in _said:
        _said.add(line)
        print(line, file=sys.stderr, flush=True)


_said: set[str] = set()


class FirstRecords:
    """The first `count` records of a data set, as a finite one. What was left out behind them is not counted."""

    endless = False
    left_out: Sequence[LeftOut] = ()

    def __init__(self, dataset: RecordDataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    @property
    def name(self) -> str:
        return f"{self.dataset.name} (first {self.count})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} records, index is {index}")
        return self.dataset[index]

    def each_caption(self) -> Iterator[str | None]:
        return islice(each_caption(self.dataset), self.count)

    def fingerprint(self) -> str:
        return digest([self.count, self.dataset.fingerprint()], 0, lambda _: b"")


class FirstOfShards(FirstRecords):
    """The same of data that come shard by shard."""

    dataset: ShardedDataset

    @property
    def shards(self) -> Sequence[int]:
        starts = accumulate(self.dataset.shards, initial=0)
        pairs = zip(starts, self.dataset.shards, strict=False)
        return [min(count, self.count - start) for start, count in pairs if start < self.count]

    def prefetch(self, shards: Sequence[int]) -> None:
        self.dataset.prefetch(shards)


class PartOfRecords:
    """Each `number`-th record of a data set, or all but these: a held-out part for data without one, and the rest."""

    endless = False
    left_out: Sequence[LeftOut] = ()

    def __init__(self, dataset: RecordDataset, number: int, held_out: bool) -> None:
        self.dataset, self.number, self.held_out = dataset, number, held_out
        each = len(dataset) // number
        self.count = each if held_out else len(dataset) - each

    @property
    def name(self) -> str:
        return f"{self.dataset.name} ({'every' if self.held_out else 'all but every'} {self.number}th)"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} records, index is {index}")
        if self.held_out:
            return self.dataset[(index + 1) * self.number - 1]
        return self.dataset[index + index // (self.number - 1)]

    def each_caption(self) -> Iterator[str | None]:
        numbered = enumerate(each_caption(self.dataset), start=1)
        return islice((one for place, one in numbered if (place % self.number == 0) == self.held_out), self.count)

    def fingerprint(self) -> str:
        return digest([self.number, self.held_out, self.dataset.fingerprint()], 0, lambda _: b"")


def _open(
    spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> tuple[RecordDataset, list[str]]:
    if spec.source == "shapes":
        return _open_shapes(spec, size), []
    if is_remote(spec.source):
        return _open_remote(spec, size, captions, max_pixels), []
    if os.path.isfile(os.path.join(os.path.expanduser(spec.source), CODES_INDEX)):
        return _open_codes(spec, size, captions), []
    if spec.source.endswith(".jsonl") and os.path.isfile(os.path.expanduser(spec.source)):
        return _open_records(spec, size, captions, max_pixels), []
    from .sources import open_pictures  # imports `datasets`, which takes a second

    return open_pictures(spec, size, captions, max_pixels)


def _open_shapes(spec: DataSpec, size: tuple[int, int] | None) -> RecordDataset:
    from .shapes.dataset import DEFAULT, ShapesDataset

    spec.check_keys("size", "seed", "limit", "task")
    side = spec.integer("size", size[0] if size else 32)
    if size is not None and size != (side, side):
        raise UserError(
            f"data {str(spec)!r} is drawn at {side}x{side}, but pictures of {size[0]}x{size[1]} are wanted: "
            "remove size= from the spec, and use a square image size"
        )
    split = spec.split or "train"
    # A longer "val" is the split again, with other places and mostly other captions.
    length = spec.integer("limit", 0) if split == "val" else 0
    task = spec.options.get("task", DEFAULT)
    return ShapesDataset(size=side, split=split, seed=spec.integer("seed", 0), length=length or None, task=task)


def _open_records(
    spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> RecordDataset:
    from .records_file import RecordsFile

    spec.check_keys("limit", "outside")
    if spec.split is not None:
        raise UserError(f"data {str(spec)!r}: a file of records has no splits: remove @{spec.split}")
    path = os.path.expanduser(spec.source)
    outside = spec.options.get("outside") == "true"
    return RecordsFile(path, size, outside=outside, caption_needed=captions is True, max_pixels=max_pixels)


def _open_remote(
    spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted, max_pixels: int
) -> RecordDataset:
    from .addresses.streams import RemotePictures, cache_of, find_addresses

    addresses = find_addresses(spec)
    if not addresses[0].endswith((".tar", ".parquet")):
        return _open_codes(spec, size, captions)
    spec.check_keys("caption", "image", "limit", "cache", *TEXT_KEYS)
    if spec.split is not None:
        raise UserError(f"data {str(spec)!r}: an address has no splits: remove @{spec.split}, and name the files of it")
    asked = spec.without("limit").without("cache")
    open_file = _OpenFile(asked.options, size, captions, max_pixels)
    return RemotePictures(str(asked), addresses, cache_of(spec), open_file, [asked.options])


@dataclass(frozen=True)
class _OpenFile:
    """Opens a tar or parquet file that has been brought; travels to the workers by pickle."""

    options: dict[str, str]
    size: tuple[int, int] | None
    captions: CaptionsWanted
    max_pixels: int

    def __call__(self, path: Path) -> RecordDataset:
        from .sources import open_pictures
        from .tables import copies_in

        spec = DataSpec(str(path), None, self.options)
        with copies_in(path.with_name(f"{path.name}.arrow")):  # where the cache counts it
            return open_pictures(spec, self.size, self.captions, self.max_pixels)[0]


def _open_codes(spec: DataSpec, size: tuple[int, int] | None, captions: CaptionsWanted) -> RecordDataset:
    from .codes.shards import CodesDataset

    remote = is_remote(spec.source)
    spec.check_keys("limit", *(["cache"] if remote else []))
    if spec.split is not None:
        raise UserError(f"data {str(spec)!r}: codes have no splits: remove @{spec.split}, or encode that split")
    if remote:
        from .addresses.streams import RemoteCodes, cache_of

        dataset: CodesDataset = RemoteCodes(spec.source, cache_of(spec), captions=captions is True)
    else:
        dataset = CodesDataset(spec.source, captions=captions is True)
    if size is not None and size != dataset.image_size:
        raise UserError(
            f"data {str(spec)!r} holds codes of {dataset.image_size[0]}x{dataset.image_size[1]} pictures, but "
            f"{size[0]}x{size[1]} are wanted: encode the data at that size"
        )
    return dataset
