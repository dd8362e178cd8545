"""What is in a data set, before days of training find out: counts, sizes, captions, broken pictures, near-duplicates.

Pictures are near-duplicates when their thumbnails of 16 x 16 pixels are: the mean squared difference is at most
`NEAR` of their own mean contrast. A copy that was scaled, compressed anew or lightened a little is found; one that was
mirrored or cropped by a tenth is not.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unitok.data.loader import read_in_order
from unitok.data.records import LeftOut, Record, RecordDataset

from ..pictures import progress
from ..report import Figure, Item, Number, Section

SIDE = 16
"""Pixels of a thumbnail's side."""
NEAR = 0.01
"""Largest difference of near-duplicates, as a share of the contrast; a tenth of it in grey levels."""
SHOWN_SIDE = 96
SHEET, PAIRS, REPEATED, NAMED = 48, 16, 10, 3
"""Pictures of the contact sheet; pairs shown; repeated captions listed; names given of broken pictures."""
_BATCH = 64
_BLOCK = 1024  # pictures compared with all others at once


class Thumbnails:
    """Records spread evenly over a data set, their pictures as thumbnails.

    `fields` of a record: `size` (width, height) of its picture, and `shown`, the picture at most `SHOWN_SIDE` wide or
    high, of `SHEET` of them.
    """

    endless = False

    def __init__(self, dataset: RecordDataset, count: int) -> None:
        self.dataset, self.count = dataset, count
        self.name, self.left_out = dataset.name, dataset.left_out

    def __len__(self) -> int:
        return self.count

    def at(self, index: int) -> int:
        """Index in the data set of record `index`."""
        return index if self.dataset.endless else index * len(self.dataset) // self.count

    def __getitem__(self, index: int) -> Record:
        record = self.dataset[self.at(index)]
        if record.problem is not None or record.image is None:
            return Record(record.name, record.caption, problem=record.problem)
        _, height, width = record.image.shape
        fields: dict[str, object] = {"size": (width, height)}
        if index % max(1, self.count // SHEET) == 0:
            fields["shown"] = reduced(record.image)
        thumbnail = F.interpolate(record.image[None].float(), (SIDE, SIDE), mode="area")[0]
        return Record(record.name, record.caption, thumbnail.round().to(torch.uint8), fields=fields)

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()


def reduced(image: Tensor) -> Tensor:
    """A picture uint8 (3, H, W) at most `SHOWN_SIDE` wide and high."""
    height, width = image.shape[1:]
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)


@dataclass
class Seen:
    """What was found in the records of a data set that were looked at."""

    looks: Thumbnails
    left_out: Sequence[LeftOut]
    captions: list[str] = field(default_factory=list)
    """Of the usable records, "" for none."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    """Of the records with a picture, among those looked at."""
    thumbnails: Tensor = field(default_factory=lambda: torch.empty(0, 3 * SIDE * SIDE, dtype=torch.uint8))
    """(pictures, 3 * SIDE * SIDE) uint8."""
    shown: list[tuple[Tensor, str]] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> names."""


def look(dataset: RecordDataset, limit: int, workers: int = 0) -> Seen:
    """Reads up to `limit` records; about 1 KB of each is kept."""
    looks = Thumbnails(dataset, min(limit, len(dataset)))
    seen = Seen(looks, dataset.left_out)
    thumbnails: list[Tensor] = []
    batches = read_in_order(looks, batch_size=_BATCH, workers=workers)
    for batch in progress(batches, "looking", -(-len(looks) // _BATCH)):
        for _, name, problem in batch.problems:
            seen.broken[problem].append(name)
        for place, (key, record) in enumerate(zip(batch.keys, batch.records, strict=True)):
            seen.captions.append(record.caption or "")
            thumbnail = record.image if batch.images is None else batch.images[place]
            if thumbnail is None:
                continue
            thumbnails.append(thumbnail.flatten())
            seen.sizes.append(record.fields["size"])
            seen.indices.append(key.index)
            if "shown" in record.fields:
                seen.shown.append((record.fields["shown"], record.caption or record.name))
    if thumbnails:
        seen.thumbnails = torch.stack(thumbnails)
    return seen


def nearest(a: Tensor, b: Tensor | None = None) -> list[tuple[int, int]]:
    """(i, j) for every thumbnail i of `a` that has a near-duplicate j in `b`, the nearest one; without `b`, among those
    of `a` before i.

    Args:
        a, b: (N, D) and (M, D) uint8.
    """
    others = a if b is None else b
    pairs: list[tuple[int, int]] = []
    if not len(others):
        return pairs
    right = others.float() - 127.5
    right_energy, right_contrast = right.square().mean(1), right.var(1, correction=0)
    for start in range(0, len(a), _BLOCK):
        left = a[start : start + _BLOCK].float() - 127.5
        stop = len(others) if b is not None else start + len(left)
        difference = left.square().mean(1)[:, None] + right_energy[:stop] - 2 / a.shape[1] * (left @ right[:stop].T)
        contrast = (left.var(1, correction=0)[:, None] + right_contrast[:stop]) / 2 + 1
        share = difference / contrast
        if b is None:
            rows = torch.arange(start, start + len(left))
            share[torch.arange(stop) >= rows[:, None]] = torch.inf
        best = share.min(1)
        near = (best.values <= NEAR).nonzero().flatten().tolist()
        pairs += [(start + row, int(best.indices[row])) for row in near]
    return pairs


def describe(name: str, seen: Seen, dataset: RecordDataset, captions: bool) -> Section:
    """What is in one data set."""
    total, count = len(dataset), len(seen.looks)
    broken = sum(map(len, seen.broken.values()))
    numbers = {
        "looked_at": Number("Records looked at", count),
        "usable": Number("Usable", count - broken),
        "broken": Number("Broken", broken),
        "left_out": Number("Left out", len(seen.left_out)),
        "pictures": Number("With a picture", len(seen.sizes)),
    }
    if not dataset.endless:
        numbers = {"records": Number("Records", total), **numbers}
    warnings = [
        f"{len(names):,} broken ({', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)}): {reason}"
        for reason, names in sorted(seen.broken.items(), key=lambda one: -len(one[1]))
    ]
    reasons = Counter(reason for _, reason in seen.left_out)
    warnings += [f"{often:,} left out: {reason}" for reason, often in reasons.most_common()]
    if count < total:
        what = "the first of records without end" if dataset.endless else f"of {total:,} records, spread evenly"
        warnings.append(f"{count:,} looked at, {what}: all numbers are of these; --limit is how many")
    if seen.sizes:
        numbers["width"] = _spread("Width", [width for width, _ in seen.sizes])
        numbers["height"] = _spread("Height", [height for _, height in seen.sizes])
        numbers["distinct_sizes"] = Number("Distinct sizes", len(set(seen.sizes)))
        twins = nearest(seen.thumbnails)
        numbers["near_duplicates"] = Number("Near-duplicates of a picture before", len(twins))
    figures = [Figure("Contact sheet", [Item([picture], text) for picture, text in seen.shown[:SHEET]])]
    if seen.sizes and twins:
        figures.append(_pairs("Near-duplicates", twins, seen, seen, ("picture", "before")))
    if captions:
        numbers |= _captions(seen.captions)
    elif not seen.sizes:
        warnings.append("there are no pictures to look at; captions were not read")
    return Section(name, f"data {dataset.name}", numbers, [one for one in figures if one.items], warnings)


def leakage(train: Seen, val: Seen) -> Section:
    """What validation data share with training data."""
    pairs = nearest(val.thumbnails, train.thumbnails)
    known = set(train.captions) - {""}
    shared = sum(caption in known for caption in val.captions)
    count = max(1, len(val.sizes))
    numbers = {
        "near_duplicates": Number("Validation pictures with a near-duplicate in training", len(pairs)),
        "share": Number("Share of the validation pictures", len(pairs) / count, "%"),
        "captions": Number("Validation captions that training has", shared),
    }
    warnings = []
    if pairs:
        warnings.append(
            f"{len(pairs):,} of {len(val.sizes):,} validation pictures are near-duplicates of training ones"
        )
    if any(len(seen.looks) < len(seen.looks.dataset) for seen in (train, val)):
        warnings.append("not all records were looked at: there may be more; raise --limit")
    figures = [_pairs("Leaks", pairs, val, train, ("validation", "training"))] if pairs else []
    return Section("leakage", "Between training and validation", numbers, figures, warnings)


def _spread(label: str, values: Sequence[int]) -> Number:
    return Number(label, {"smallest": min(values), "median": int(statistics.median(values)), "largest": max(values)})


def _captions(captions: Sequence[str]) -> dict[str, Number]:
    found = [caption for caption in captions if caption]
    counts = Counter(found)
    numbers = {
        "captions": Number("With a caption", len(found)),
        "without_caption": Number("Without a caption", len(captions) - len(found)),
        "distinct_captions": Number("Distinct captions", len(counts)),
    }
    if found:
        numbers["characters"] = _spread("Characters of a caption", [len(caption) for caption in found])
        numbers["words"] = _spread("Words of a caption", [len(caption.split()) for caption in found])
    repeated = {caption[:100]: often for caption, often in counts.most_common(REPEATED) if often > 1}
    if repeated:
        numbers["repeated"] = Number("Repeated caption", dict(repeated))
    return numbers


def _pairs(title: str, pairs: Sequence[tuple[int, int]], a: Seen, b: Seen, labels: tuple[str, str]) -> Figure:
    """The first pairs, read again."""
    items = []
    for i, j in pairs[:PAIRS]:
        records = [seen.looks.dataset[seen.looks.at(seen.indices[place])] for seen, place in ((a, i), (b, j))]
        pictures = [reduced(record.image) for record in records if record.image is not None]
        if len(pictures) == 2:
            items.append(Item(pictures, " = ".join(record.name for record in records)))
    return Figure(title, items, labels)
