"""Retrieval: is what is nearest to a picture called what was asked for?"""

from __future__ import annotations

import torch
from torch import Tensor

from unitok.data.records import Record

from ..feature_network import FeatureNetwork, ImageTextNetwork, extract
from ..pictures import picture_batches
from ..report import Fact, Number
from .alignment import nearest_group


def picture_retrieval(
    network: FeatureNetwork,
    features: dict[str, Tensor],
    labels: list[str],
    known: list[Record],
    gallery: str,
    batch_size: int,
    facts: dict[str, Fact],
) -> dict[str, Number]:
    """How often the nearest known picture has the right name, for the drawn pictures and for the real ones."""
    names = [record.caption or "" for record in known]
    vectors = extract(network, (images for images, _ in picture_batches(known, batch_size)))
    more: dict[str, Fact] = {"gallery": gallery, "gallery pictures": len(names), "names": len(set(names))}
    origin: dict[str, Fact] = {**facts, **more, **network.origin}
    numbers = {}
    for key, whose in {"drawn": "drawn pictures", "real": "the data's own pictures"}.items():
        share = nearest_group(features[key], labels, vectors, names)
        title = f"Right name among {len(set(names))} by nearest picture, {whose} ({network.label})"
        numbers[f"retrieval_{key}"] = Number(title, share, "%", "higher", origin)
    return numbers


def name_retrieval(
    clip: ImageTextNetwork,
    embeddings: dict[str, Tensor],
    labels: list[str],
    names: list[str],
    batch_size: int,
    facts: dict[str, Fact],
) -> dict[str, Number]:
    """How often the nearest name is the right one, for the drawn pictures and for the real ones."""
    texts = [clip.text_embeddings(names[i : i + batch_size]) for i in range(0, len(names), batch_size)]
    numbers = {}
    for key, whose in {"drawn": "drawn pictures", "real": "the data's own pictures"}.items():
        share = nearest_group(embeddings[key], labels, torch.cat(texts), names)
        title = f"Right name among {len(names)} by nearest caption, {whose} ({clip.pair_label})"
        numbers[f"naming_{key}"] = Number(title, share, "%", "higher", {**facts, "names": len(names)})
    return numbers
