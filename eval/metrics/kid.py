"""Kernel distance between two sets of features (KID: Binkowski et al. 2018, arXiv:1801.01401).

The unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, averaged over random
subsets; its spread over the subsets comes with it. Unlike FID it is unbiased, so a few hundred pictures will do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.seeding import keyed_generator

from ..feature_network import check_features


class KID(NamedTuple):
    mean: float
    """May be a little below 0 for sets from one distribution, because it is unbiased."""
    std: float
    """Standard deviation over the subsets."""
    subset_size: int


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) under the cubic polynomial kernel, in float64."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """KID of features (N, D) and (M, D).

    Args:
        a, b: features of the two sets.
        subsets: how many random subsets are averaged.
        subset_size: pictures per subset; with fewer pictures than twice that, half of the smaller set is used:
            larger subsets would overlap too much and hide the spread.
        seed: of the subsets.
    """
    smaller = min(len(a), len(b))
    if smaller < 4:
        raise UserError(f"{smaller} picture(s) are too few for KID: give at least 4 in each set")
    if a.shape[1] != b.shape[1]:
        raise UserError(f"features of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared: use one network")
    a, b = check_features(a, "KID"), check_features(b, "KID")
    size = min(subset_size, smaller // 2)
    values = []
    for number in range(subsets):
        generator = keyed_generator(seed, "kid", number)
        rows_a = torch.randperm(len(a), generator=generator)[:size]
        rows_b = torch.randperm(len(b), generator=generator)[:size]
        values.append(polynomial_mmd(a[rows_a], b[rows_b]))
    drawn = torch.tensor(values, dtype=torch.float64)
    return KID(float(drawn.mean()), float(drawn.std(correction=0)), size)
