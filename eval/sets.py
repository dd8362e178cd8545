"""The measurement of sets of pictures as they are: two of them, pictures and their captions, pictures and a gallery."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unitok.data.records import Record, RecordDataset

from .feature_network import FeatureNetwork, ImageTextNetwork, check_features
from .metrics.alignment import group_ranks
from .metrics.clipscore import pair_scores, summarize
from .metrics.distances import distances
from .metrics.intervals import with_intervals
from .metrics.statistics import Statistics
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_indexed, read_records
from .provenance import Fact, PictureSet, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""
TOP = (1, 5)
"""A name counts as found among so many nearest ones."""


def compare_sets(
    a: Statistics, b: Statistics, network: FeatureNetwork, *, seed: int = 0, save_features: bool = False
) -> Section:
    """FID, KID, precision, recall, density, coverage and Inception Score of set `a` against the reference `b`.

    Args:
        a, b: from `sources.load_set` or `statistics.measure_statistics`.
        network: that both were made with.
        seed: chooses the subsets of KID.
        save_features: keep all features in the section, for a bootstrap of FID.

    Raises:
        UserError: statistics of different networks, or `save_features` of a set whose features are not all known.
    """
    kept = {"drawn": a.all_features(), "real": b.all_features()} if save_features else {}
    numbers, warnings = distances(a, b, network, {"seed": seed}, seed)
    title = f"{a.provenance.get('name')} against {b.provenance.get('name')}"
    return Section("fid", title, numbers, [], warnings, features=kept)


def score_pairs(
    dataset: RecordDataset,
    clip: ImageTextNetwork,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """CLIPScore of the pictures and captions of a data set, with the best and the worst pairs."""
    scores: list[Tensor] = []
    items: list[Item] = []
    values: list[dict[str, Fact]] = []
    seen = PictureSet(dataset.name)
    records = progress(read_records(dataset, limit, max_bad), "scoring", count_pictures(dataset, limit))
    for images, batch in picture_batches(records, batch_size):
        captions = [record.caption or "" for record in batch]
        seen.update(images, captions)
        scores.append(pair_scores(clip, images, captions))
        values += [
            {"item": record.name, "caption": text, "clipscore": score}
            for record, text, score in zip(batch, captions, scores[-1].tolist(), strict=True)
        ]
        items += [
            Item([image], text, detail=f"{score:.1f}")
            for image, text, score in zip(images, captions, scores[-1].tolist(), strict=True)
        ]
        items = sorted(items, key=lambda item: -float(item.detail))
        items = items if len(items) <= SHOWN else items[: SHOWN // 2] + items[-SHOWN // 2 :]
    result = summarize(torch.cat(scores))
    count = len(result.per_picture)
    texts = "\n".join(str(one["caption"]) for one in values)
    facts: Provenance = {
        "set": dataset.name,
        "captions_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        "set_sha256": seen.hexdigest(),
        "pictures": count,
        "image size": seen.size,
        **clip.origin,
    }
    numbers = {"clipscore": Number(f"CLIPScore ({clip.pair_label})", result.score, "", "higher", facts)}
    return Section("pairs", dataset.name, numbers, [Figure("Best pairs first, worst last", items)], values=values)


def retrieve(
    dataset: RecordDataset,
    gallery: RecordDataset,
    network: FeatureNetwork,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """How often the nearest picture of a gallery has the right name. The captions of both sets are names.

    Args:
        dataset: pictures and their right names.
        gallery: known pictures and their names, all of it.
        network: features, compared by their cosine.
        limit, max_bad, batch_size: as for `score_pairs`.

    Raises:
        UserError: a name that is not in the gallery, or too many broken pictures.
    """
    queries, names = _named_features(dataset, network, limit, max_bad, batch_size)
    known, groups = _named_features(gallery, network, None, max_bad, batch_size)
    ranks = group_ranks(queries.features, names, known.features, groups)
    shares = {f"top{number}": (ranks < number).float().mean().item() for number in TOP}
    values: list[dict[str, Fact]] = [
        {"item": item, "caption": name, **{f"retrieval.top{number}": int(rank < number) for number in TOP}}
        for item, name, rank in zip(queries.items, names, ranks.tolist(), strict=True)
    ]
    facts: Provenance = {
        "set": dataset.name,
        "set_sha256": queries.seen.hexdigest(),
        "pictures": queries.seen.count,
        "image size": queries.seen.size,
        "gallery": gallery.name,
        "gallery_sha256": known.seen.hexdigest(),
        "gallery pictures": known.seen.count,
        "names": len(set(groups)),
        **network.origin,
    }
    title = f"Right name among {len(set(groups))} by the nearest picture ({network.label})"
    numbers = with_intervals({"retrieval": Number(title, shares, "%", "higher", facts)}, values, "caption")
    nearest = (F.normalize(queries.features[:SHOWN]) @ F.normalize(known.features).T).argmax(1).tolist()
    items = [
        Item([image, found], names[number], bool(ranks[number] == 0), f"nearest: {groups[nearest[number]]}")
        for number, index in enumerate(nearest)
        if (image := dataset[queries.indices[number]].image) is not None
        and (found := gallery[known.indices[index]].image) is not None
    ]
    figure = Figure("Each picture, and the nearest of the gallery", items)
    return Section("retrieval", dataset.name, numbers, [figure], values=values)


@dataclass(frozen=True)
class _Named:
    features: Tensor
    """(N, D)"""
    indices: list[int]
    """Of the records."""
    items: list[str]
    seen: PictureSet


def _named_features(
    dataset: RecordDataset, network: FeatureNetwork, limit: int | None, max_bad: float, batch_size: int
) -> tuple[_Named, list[str]]:
    """Features of all usable pictures, and their captions."""
    parts: list[Tensor] = []
    indices: list[int] = []
    items: list[str] = []
    names: list[str] = []
    seen = PictureSet(dataset.name)

    def records() -> Iterator[Record]:
        for index, record in read_indexed(dataset, limit, max_bad):
            indices.append(index)
            yield record

    for images, batch in picture_batches(progress(records(), "features", count_pictures(dataset, limit)), batch_size):
        captions = [record.caption or "" for record in batch]
        seen.update(images, captions)
        parts.append(check_features(network.features(images), network.label, len(items)))
        items += [record.name for record in batch]
        names += captions
    return _Named(torch.cat(parts), indices, items, seen), names
