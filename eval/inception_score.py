"""Inception Score (Salimans et al. 2016, arXiv:1606.03498): exp of the mean divergence of each picture's class
probabilities from their average, over ten splits. torch-fidelity computes it; only Inception has the class scores."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tokenizers_vq.errors import UserError

from .features import check_features

SPLITS = 10


class InceptionScore(NamedTuple):
    mean: float
    std: float
    """Over the splits."""


def inception_score(logits: Tensor, seed: int = 0) -> InceptionScore:
    """Score of class scores (N, C); `seed` shuffles the pictures before they are split.

    Raises:
        UserError: fewer pictures than splits, or values that are not finite.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if len(logits) < SPLITS:
        raise UserError(f"{len(logits)} picture(s) are too few for the Inception Score: give at least {SPLITS}")
    found = isc_features_to_metric(
        check_features(logits, "Inception Score"), splits=SPLITS, shuffle=True, rng_seed=seed
    )
    return InceptionScore(found["inception_score_mean"], found["inception_score_std"])
