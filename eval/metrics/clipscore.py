"""CLIPScore: 100 times the cosine of picture and caption, at least 0 (Hessel et al. 2021, arXiv:2104.08718).

torchmetrics' formula: the mean of 100 cos over the pairs, then the maximum with 0. (The paper itself scales by 2.5, not
100, and cuts at 0 pair by pair.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError

from ..feature_network import ImageTextNetwork, check_features


@dataclass(frozen=True)
class ClipScore:
    score: float
    per_picture: Tensor
    """(N,) 100 cos of each pair, not cut."""


def pair_scores(network: ImageTextNetwork, images: Tensor, captions: Sequence[str]) -> Tensor:
    """(B,) 100 times the cosine of each picture uint8 (B, 3, H, W) and its caption."""
    if len(images) != len(captions):
        raise UserError(f"{len(images)} pictures and {len(captions)} captions: give one caption for each picture")
    return cosine_scores(network.image_embeddings(images), network.text_embeddings(list(captions)))


def clip_score(network: ImageTextNetwork, images: Tensor, captions: Sequence[str], batch_size: int = 64) -> ClipScore:
    """CLIPScore of pictures uint8 (N, 3, H, W) and their captions."""
    if len(images) == 0:
        raise UserError("there are no pictures to score: give at least one with its caption")
    if len(images) != len(captions):
        raise UserError(f"{len(images)} pictures and {len(captions)} captions: give one caption for each picture")
    starts = range(0, len(images), batch_size)
    scores = [pair_scores(network, images[i : i + batch_size], captions[i : i + batch_size]) for i in starts]
    return summarize(torch.cat(scores))


def cosine_scores(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) 100 times the cosine of embeddings (N, E) and (N, E) of length 1. UserError for embeddings that are not
    finite."""
    check_features(images, "pictures' embeddings")
    check_features(texts, "captions' embeddings")
    return 100 * (images * texts).sum(dim=1)


def summarize(scores: Tensor) -> ClipScore:
    """The score of a set from its pairs' scores."""
    return ClipScore(max(0.0, float(scores.double().mean())), scores)
