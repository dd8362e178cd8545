"""Inception Score (Salimans et al. 2016, arXiv:1606.03498): exp of the mean divergence of each picture's class
probabilities from their average, over ten splits. Only Inception has the class scores.

torch-fidelity needs those of all pictures at once. The divergence of a split is its mean of sum p log p, plus the
entropy of its mean p, and both means can be added up as the pictures go by.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.seeding import keyed_generator

from ..feature_network import check_features

SPLITS = 10
BLOCK = 1000
"""Pictures whose splits are drawn at a time, a multiple of `SPLITS`."""


class InceptionScore(NamedTuple):
    mean: float
    std: float
    """Over the splits."""


class RunningInceptionScore:
    """Adds up class scores that come in batches, in float64; what is held does not grow.

    Of ten pictures in a row each goes into another split, and a seed says which into which: so the splits are of one
    size, have nothing to do with the order in which classes were drawn, and do not depend on the batches.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.count = seed, 0
        self._probabilities = torch.zeros(SPLITS, 0, dtype=torch.float64)  # (SPLITS, C) sums of p
        self._terms = torch.zeros(SPLITS, dtype=torch.float64)  # sums of sum p log p
        self._counts = torch.zeros(SPLITS, dtype=torch.float64)
        self._block = torch.empty(0, dtype=torch.int64)

    def update(self, logits: Tensor) -> None:
        """Class scores (B, C). Raises UserError for values that are not finite."""
        log_p = check_features(logits, "Inception Score", self.count).double().cpu().log_softmax(dim=1)
        p = log_p.exp()
        splits = torch.tensor([self._split(self.count + i) for i in range(len(p))])
        if not self.count:
            self._probabilities = self._probabilities.new_zeros(SPLITS, p.shape[1])
        self._probabilities.index_add_(0, splits, p)
        self._terms.index_add_(0, splits, (p * log_p).sum(dim=1))
        self._counts.index_add_(0, splits, torch.ones(len(p), dtype=torch.float64))
        self.count += len(p)

    def result(self) -> InceptionScore:
        """Raises UserError for fewer pictures than splits."""
        if self.count < SPLITS:
            raise UserError(f"{self.count} picture(s) are too few for the Inception Score: give at least {SPLITS}")
        mean_p = self._probabilities / self._counts[:, None]
        scores = (self._terms / self._counts + torch.special.entr(mean_p).sum(dim=1)).exp()
        return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))

    def _split(self, position: int) -> int:
        if position % BLOCK == 0:
            generator = keyed_generator(self.seed, "split", position // BLOCK)
            self._block = torch.rand(BLOCK // SPLITS, SPLITS, generator=generator).argsort(dim=1).flatten()
        return int(self._block[position % BLOCK])


def inception_score(logits: Tensor, seed: int = 0) -> InceptionScore:
    """Score of class scores (N, C); `seed` shuffles the pictures before they are split.

    Raises:
        UserError: fewer pictures than splits, or values that are not finite.
    """
    running = RunningInceptionScore(seed)
    running.update(logits)
    return running.result()
