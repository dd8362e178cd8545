"""Contrastive loss between pictures and captions (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_SCALE = 1 / 0.07
"""Of cosines, before the softmax; learned from here on."""
LARGEST_SCALE = 100.0


class CaptionFeatures(NamedTuple):
    """The captions of a batch of pictures, as a frozen text tower reads them."""

    vectors: Tensor
    """(B, T) float32, of any length; zeros where there is no caption."""
    numbers: Tensor
    """(B,) int64: the same for equal captions, -1 where a picture has none."""


def contrastive_loss(pictures: Tensor, captions: CaptionFeatures, scale: Tensor) -> Tensor:
    """InfoNCE in both directions: of all captions each picture must find its own, and each caption its picture.

    Pictures with equal captions are no negatives to each other, and those without a caption take no part. The negatives
    are those of this call: in training of one micro-batch in one process, so a larger micro-batch is a harder task.

    Args:
        pictures: (B, T), of any length.
        captions: theirs.
        scale: of the cosines, the inverse of the temperature.

    Returns:
        Scalar, the mean over the pictures with a caption; 0 where none has one.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # a cosine in bf16, times 100, is off by a half
        logits = scale.float() * F.normalize(pictures.float(), dim=-1) @ F.normalize(captions.vectors, dim=-1).T
    missing = captions.numbers < 0
    left_out = (captions.numbers[:, None] == captions.numbers) | missing | missing[:, None]
    logits = logits.masked_fill(left_out.fill_diagonal_(False), -torch.inf)
    # A row with nothing but its own place costs nothing and has no gradient, such as that of a picture without caption.
    own = torch.arange(len(logits), device=logits.device)
    losses = (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")) / 2
    return losses / (~missing).sum().clamp(min=1)
