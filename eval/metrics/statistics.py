"""Features -> statistics: what the distances need to know of a set of pictures, added up as the pictures go by.

The mean and the covariance take the same memory for ten pictures and for a million. KID, precision and recall, and
CMMD need features themselves; of these at most `KEPT` are held, a random subset that depends on a seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.seeding import keyed_generator

from ..feature_network import FeatureNetwork, check_features
from ..provenance import PictureSet, Provenance
from .frechet import Gaussian, fit_gaussian, frechet_distance, gaussian_distance
from .inception_score import SPLITS, InceptionScore, RunningInceptionScore

KEPT = 50_000
"""Features held of one set; of so many samples the precision and recall of ImageNet models are published (ADM)."""
CHUNK = 1024
"""Rows that are added up at a time."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set, and its features as far as they were kept."""

    gaussian: Gaussian
    features: Tensor | None = None
    """(K, D) float32 of all pictures or of a random subset; None for saved statistics."""
    score: InceptionScore | None = None
    """Of all pictures, from a network that has class scores."""
    provenance: Provenance = field(default_factory=dict)
    """Of this set: "features", "features_sha256", "resize", "image size", "pictures", "name", "sha256"."""

    @property
    def complete(self) -> bool:
        """Whether every picture's features were kept."""
        return self.features is not None and len(self.features) == self.gaussian.count

    def all_features(self) -> Tensor:
        """(N, D) of every picture. Raises UserError when FID knows more pictures than there are features."""
        if self.features is None or not self.complete:
            raise UserError(
                f"of {self.provenance.get('name')} FID knows mean and covariance, not all pictures' features: give "
                "the pictures, or leave --save_features out"
            )
        return self.features


class RunningGaussian:
    """Mean and covariance of rows that come in batches, in float64; what is held does not grow.

    Rows are added up in chunks of a fixed size, so the result does not depend on the batches, and each chunk is merged
    by Chan's formula (difference of means times counts), which stays exact where sums of squares would cancel.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T
        self._waiting: list[Tensor] = []
        self._rows = 0

    def update(self, features: Tensor) -> None:
        """Rows (B, D)."""
        self._waiting.append(features.double().cpu())
        self._rows += len(features)
        if self._rows >= CHUNK:
            rows = torch.cat(self._waiting)
            whole = len(rows) - len(rows) % CHUNK
            for chunk in rows[:whole].split(CHUNK):
                self._merge(chunk)
            self._waiting, self._rows = [rows[whole:]], len(rows) - whole

    def gaussian(self, network: str = "") -> Gaussian:
        """Raises UserError for fewer than two rows."""
        if self._rows:
            self._merge(torch.cat(self._waiting))
            self._waiting, self._rows = [], 0
        if self.count < 2:
            raise UserError(f"{self.count} picture(s) are too few for a distance: give at least two")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count, network)

    def _merge(self, rows: Tensor) -> None:
        mean = rows.mean(dim=0)
        centred, gap = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(gap, gap) * (self.count * len(rows) / total)
        self.mean += gap * (len(rows) / total)
        self.count = total


class KeptRows:
    """A random subset of at most `limit` rows (all of them when `limit` is None), chosen by their position and a seed.

    Each row draws a number, and the rows with the smallest stay. Batches do not change which rows these are.
    """

    def __init__(self, limit: int | None, seed: int = 0) -> None:
        self.limit, self.seed, self.seen = limit, seed, 0
        self._rows: list[Tensor] = []
        self._draws: list[Tensor] = []
        self._pool = torch.empty(0)

    def update(self, rows: Tensor) -> None:
        """Rows (B, D)."""
        self._draws.append(torch.stack([self._draw(self.seen + i) for i in range(len(rows))]))
        self._rows.append(rows)
        self.seen += len(rows)
        if self.limit is not None and sum(map(len, self._rows)) > 2 * self.limit:
            self._trim()

    def result(self) -> Tensor:
        """(K, D) in the order in which they came."""
        self._trim()
        return self._rows[0]

    def _trim(self) -> None:
        rows, draws = torch.cat(self._rows), torch.cat(self._draws)
        if self.limit is not None and len(rows) > self.limit:
            kept = draws.argsort(stable=True)[: self.limit].sort().values
            rows, draws = rows[kept], draws[kept]
        self._rows, self._draws = [rows], [draws]

    def _draw(self, position: int) -> Tensor:
        if position % CHUNK == 0 or not len(self._pool):
            generator = keyed_generator(self.seed, "kept", position // CHUNK)
            self._pool = torch.rand(CHUNK, dtype=torch.float64, generator=generator)
        return self._pool[position % CHUNK]


def kept_rows(rows: Tensor, seed: int = 0) -> Tensor:
    """Of rows (N, D), those that a meter would have kept that holds at most `KEPT`."""
    if len(rows) <= KEPT:
        return rows
    kept = KeptRows(KEPT, seed)
    kept.update(rows)
    return kept.result()


class StatisticsMeter:
    """Adds up pictures as they go by; `result()` at the end."""

    def __init__(self, network: FeatureNetwork, name: str, *, keep: int | None = KEPT, seed: int = 0) -> None:
        """`keep`: features held; 0 for none, None for all. `name`: of the set, for the record."""
        self.network, self.keep = network, keep
        self.running = RunningGaussian(network.dim)
        self.rows, self.score = KeptRows(keep, seed), RunningInceptionScore(seed)
        self.pictures = PictureSet(name)

    def update(self, images: Tensor) -> None:
        """Pictures uint8 (B, 3, H, W). UserError for another size than before, and for features that are not finite."""
        first = self.pictures.count
        self.pictures.update(images)
        features, logits = self.network.features_and_logits(images)
        self.add(check_features(features, self.network.label, first), logits)

    def add(self, features: Tensor, logits: Tensor | None = None) -> None:
        """Only the features (B, D), and class scores (B, C), of pictures that `self.pictures` has seen."""
        self.running.update(features)
        if self.keep != 0:
            self.rows.update(features)
        if logits is not None:
            self.score.update(logits)

    def result(self) -> Statistics:
        """Raises UserError for fewer than two pictures."""
        seen = self.pictures
        if not seen.count:
            raise UserError(f"{seen.name}: there are no pictures to measure: give a data set with at least two")
        facts: Provenance = {
            **self.network.origin,
            "name": seen.name,
            "sha256": seen.hexdigest(),
            "pictures": seen.count,
            "image size": seen.size,
        }
        return Statistics(
            self.running.gaussian(self.network.hash),
            self.rows.result() if self.rows.seen else None,
            self.score.result() if self.score.count >= SPLITS else None,
            facts,
        )


def measure_statistics(
    network: FeatureNetwork, batches: Iterable[Tensor], name: str, *, keep: int | None = KEPT, seed: int = 0
) -> Statistics:
    """Statistics of pictures of one size, given as batches uint8 (B, 3, H, W), each held only while it is looked at.

    Args:
        network: see `features.load_features`.
        batches: from `sources`, or any iterable of tensors.
        name: of the set, for the record.
        keep: features held for KID, precision and the like; 0 for none, None for all.
        seed: of the choice of features when there are more, and of the splits of the Inception Score.

    Raises:
        UserError: no pictures, pictures of more than one size, or features that are not finite.
    """
    meter = StatisticsMeter(network, name, keep=keep, seed=seed)
    for batch in batches:
        meter.update(batch)
    return meter.result()


def fid(a: Statistics, b: Statistics) -> float:
    """Frechet distance of two sets, at least 0.

    Raises:
        UserError: they come from different networks.
    """
    x, y = a.features, b.features
    few = min(a.gaussian.count, b.gaussian.count) < len(a.gaussian.mean)
    if (
        x is not None
        and y is not None
        and a.complete
        and b.complete
        and few
        and a.gaussian.network == b.gaussian.network
    ):
        return frechet_distance(x, y)  # rounds less than the eigenvalues of a singular covariance
    return gaussian_distance(a.gaussian, b.gaussian)


def statistics_of_features(features: Tensor, network: str = "", name: str = "features") -> Statistics:
    """Statistics of features (N, D) that were computed elsewhere."""
    facts: Provenance = {"features_sha256": network or None, "name": name, "pictures": len(features)}
    return Statistics(fit_gaussian(features, network), features, None, facts)
