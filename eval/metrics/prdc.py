"""Fidelity and diversity apart: precision and recall, density and coverage, from nearest neighbours in feature space.

precision  share of drawn pictures inside some real picture's ball        (Kynkaanniemi et al. 2019, arXiv:1904.06991)
recall     share of real pictures inside some drawn picture's ball
density    how many real balls hold a drawn picture, over k; may pass 1   (Naeem et al. 2020, arXiv:2002.09797)
coverage   share of real pictures whose ball holds a drawn picture

A picture's ball reaches to its k-th nearest neighbour in its own set. k is 3 for precision and recall and 5 for density
and coverage, as their authors choose it. Distances are exact, in float64, and computed in chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError

from ..feature_network import check_features

CHUNK = 1000


class PRDC(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, drawn: Tensor, k: int = 3, k_density: int = 5) -> PRDC:
    """All four, of features (N, D) of real and (M, D) of drawn pictures.

    Args:
        real, drawn: features of one network.
        k: neighbours of precision and recall.
        k_density: neighbours of density and coverage.

    Raises:
        UserError: fewer than k + 1 pictures, different dimensions, values that are not finite.
    """
    if real.shape[1:] != drawn.shape[1:]:
        raise UserError(
            f"features of {real.shape[1]} and of {drawn.shape[1]} dimensions cannot be compared: use one network"
        )
    smaller, needed = min(len(real), len(drawn)), max(k, k_density) + 1
    if smaller < needed:
        raise UserError(
            f"{smaller} picture(s) are too few for precision and recall: give at least {needed} in each set"
        )
    real, drawn = check_features(real, "precision").double(), check_features(drawn, "precision").double()
    real_reach, drawn_reach = radii(real, (k, k_density)), radii(drawn, (k,))
    precise = torch.zeros(len(drawn), dtype=torch.bool)
    balls = torch.zeros(len(drawn), dtype=torch.float64)  # how many real balls hold each drawn picture
    recalled, covered = [], []
    for start in range(0, len(real), CHUNK):
        rows = slice(start, start + CHUNK)
        squared = squared_distances(real[rows], drawn)  # (C, M)
        precise |= (squared <= real_reach[rows, :1]).any(dim=0)
        recalled.append((squared <= drawn_reach[:, 0]).any(dim=1))
        inside = squared < real_reach[rows, 1:]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
    return PRDC(
        precision=float(precise.double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(balls.mean() / k_density),
        coverage=float(torch.cat(covered).double().mean()),
    )


def radii(features: Tensor, ks: tuple[int, ...]) -> Tensor:
    """(N, len(ks)) squared distance of each row to its k-th nearest other row, for every k."""
    found = []
    for start in range(0, len(features), CHUNK):
        squared = squared_distances(features[start : start + CHUNK], features)
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = torch.inf  # a row is not its own neighbour, though a copy of it is
        nearest = squared.topk(max(ks), largest=False).values  # (C, max k), ascending
        found.append(nearest[:, [k - 1 for k in ks]])
    return torch.cat(found)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) squared Euclidean distances of float64 rows, at least 0."""
    return (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T).clamp(min=0)
