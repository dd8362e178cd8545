"""The measurement of sets of pictures as they are: two of them, or pictures and their captions."""

from __future__ import annotations

import torch
from torch import Tensor

from unitok.data.records import RecordDataset

from .clipscore import pair_scores, summarize
from .features import FeatureNetwork, ImageTextNetwork, extract
from .frechet import frechet_distance, too_few
from .kid import kernel_distance
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .report import Fact, Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""


def compare_sets(
    a: RecordDataset,
    b: RecordDataset,
    network: FeatureNetwork,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    seed: int = 0,
) -> Section:
    """FID and KID between the pictures of two data sets; `seed` chooses KID's subsets."""
    features, counts = [], []
    for dataset in (a, b):
        records = progress(read_records(dataset, limit, max_bad), "features", count_pictures(dataset, limit))
        features.append(extract(network, (images for images, _ in picture_batches(records, batch_size))))
        counts.append(len(features[-1]))
    facts: dict[str, Fact] = {"a": a.name, "b": b.name, "pictures a": counts[0], "pictures b": counts[1]}
    numbers = distances(features[0], features[1], network, facts, seed)
    return Section("fid", f"{a.name} and {b.name}", numbers, [], too_few(min(counts), network.dim))


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
    records = progress(read_records(dataset, limit, max_bad), "scoring", count_pictures(dataset, limit))
    for images, batch in picture_batches(records, batch_size):
        captions = [record.caption or "" for record in batch]
        scores.append(pair_scores(clip, images, captions))
        items += [
            Item([image], text, detail=f"{score:.1f}")
            for image, text, score in zip(images, captions, scores[-1].tolist(), strict=True)
        ]
        items = sorted(items, key=lambda item: -float(item.detail))
        items = items if len(items) <= SHOWN else items[: SHOWN // 2] + items[-SHOWN // 2 :]
    result = summarize(torch.cat(scores))
    count = len(result.per_picture)
    facts: dict[str, Fact] = {"data": dataset.name, "pictures": count, **clip.origin}
    numbers = {"clipscore": Number(f"CLIPScore ({clip.pair_label})", result.score, "", "higher", facts)}
    return Section("pairs", dataset.name, numbers, [Figure("Best pairs first, worst last", items)])


def distances(a: Tensor, b: Tensor, network: FeatureNetwork, facts: dict[str, Fact], seed: int) -> dict[str, Number]:
    facts = {**facts, **network.origin}
    kid = kernel_distance(a, b, seed=seed)
    of_kid: dict[str, Fact] = {**facts, "subsets": 100, "subset size": kid.subset_size, "seed": seed}
    return {
        "fid": Number(f"FID ({network.label})", frechet_distance(a, b), "", "lower", facts),
        "kid": Number(f"KID ({network.label})", kid.mean, "", "lower", of_kid),
        "kid_std": Number("KID, standard deviation over subsets", kid.std, "", "", of_kid),
    }
