"""The measurement of sets of pictures as they are: two of them, or pictures and their captions."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from unitok.data.records import RecordDataset

from .feature_network import FeatureNetwork, ImageTextNetwork
from .metrics.clipscore import pair_scores, summarize
from .metrics.distances import distances
from .metrics.statistics import Statistics
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .provenance import Fact, PictureSet, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""


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
