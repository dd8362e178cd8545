"""Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, arXiv:1706.08500), in float64.

    d^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)

The trace of the root is the sum of the roots of the eigenvalues of A B, which are those of the symmetric L^T B L with
A = L L^T (by Cholesky, or by eigenvalues when A is singular); or, when there are fewer samples than dimensions, the sum
of the singular values of the product of the centred feature matrices: the same number to rounding, without a D x D
decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError

from ..feature_network import check_features


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features; all that the distance needs to know of it."""

    mean: Tensor
    """(D,) float64."""
    covariance: Tensor
    """(D, D) float64, with N - 1 in the denominator."""
    count: int
    """Samples; 0 when it is not known."""
    network: str
    """Hash of the network that made the features, "" when it is not known."""


def fit_gaussian(features: Tensor, network: str = "") -> Gaussian:
    """Gaussian of features (N, D). Raises UserError for fewer than two samples or values that are not finite."""
    centred, mean = _centre(features)
    return Gaussian(mean, centred.T @ centred / (len(features) - 1), len(features), network)


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance (what is called FID), at least 0.

    Raises:
        UserError: the two come from different networks.
    """
    check_same_network(a, b)
    factor, failed = torch.linalg.cholesky_ex(a.covariance)
    if failed:  # singular: fewer samples than dimensions, or features that never move
        values, vectors = torch.linalg.eigh(a.covariance)
        factor = vectors * values.clamp(min=0).sqrt()
    shared = torch.linalg.eigvalsh(factor.T @ b.covariance @ factor).clamp(min=0).sqrt().sum()
    return _distance(a.mean, b.mean, a.covariance.trace(), b.covariance.trace(), shared)


def check_same_network(a: Gaussian, b: Gaussian) -> None:
    """Raises UserError when two Gaussians cannot come from one network; one of unknown origin passes if it may fit."""
    if a.mean.shape != b.mean.shape or (a.network and b.network and a.network != b.network):
        raise UserError(
            f"statistics of different networks cannot be compared: {a.network[:12] or 'unknown'} with {len(a.mean)} "
            f"dimensions, {b.network[:12] or 'unknown'} with {len(b.mean)}: compute both with the same --features"
        )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two sets of features (N, D) and (M, D), at least 0."""
    if a.shape[1:] != b.shape[1:]:
        raise UserError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared: use one network")
    if min(len(a), len(b)) >= a.shape[1]:
        return gaussian_distance(fit_gaussian(a), fit_gaussian(b))
    (x, mean_x), (y, mean_y) = _centre(a), _centre(b)
    x, y = x / (len(a) - 1) ** 0.5, y / (len(b) - 1) ** 0.5
    shared = torch.linalg.svdvals(x @ y.T).sum()
    return _distance(mean_x, mean_y, x.square().sum(), y.square().sum(), shared)


def too_few(count: int, dim: int) -> list[str]:
    """A warning when a covariance of `dim` dimensions is fitted to too few samples, else none; KID has no such bias."""
    if count >= dim:
        return []
    return [
        f"FID from {count} pictures with {dim}-dimensional features: the covariance is singular and the number biased "
        "upwards; compare it only with numbers from as many pictures, and read KID instead"
    ]


def _centre(features: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"{len(features)} picture(s) are too few for a distance: give at least two")
    features = check_features(features, "while fitting a Gaussian").double().cpu()
    mean = features.mean(dim=0)
    return features - mean, mean


def _distance(mean_a: Tensor, mean_b: Tensor, trace_a: Tensor, trace_b: Tensor, shared: Tensor) -> float:
    return max(0.0, float((mean_a - mean_b).square().sum() + trace_a + trace_b - 2 * shared))
