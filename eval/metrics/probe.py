"""A linear probe: how much of a picture's class can be read from its codes by a linear map.

Ridge regression to one-hot classes in closed form. Every picture is predicted from all the others (exact leave-one-out;
Rasmussen and Williams 2006, section 5.4.2), so no picture has to be set aside. The penalty with the least squared error
of these predictions is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError

PROBED = 4000
"""Pictures at most: the closed form takes a matrix of so many rows and columns."""
PENALTIES = tuple(10.0**power for power in range(-4, 3))
"""Tried, as multiples of a picture's mean squared length."""


@dataclass(frozen=True)
class Probe:
    accuracy: float
    """Share of the pictures whose class is predicted."""
    chance: float
    """Share of the largest class."""
    classes: int
    right: list[bool | None]
    """Of each picture; None where its class has no other picture, or it has none."""


def code_products(tables: Tensor, codes: Tensor) -> Tensor:
    """(N, N) float64 inner products of rows of codes (N, L), each code as its vector, place by place.

    Args:
        tables: (G, K, D) code vectors, as `ImageTokenizer.code_vectors` gives them.
    """
    vectors = tables.flatten(0, 1).double().cpu()
    total = torch.zeros(len(codes), len(codes), dtype=torch.float64)
    for column in codes.T:
        total += vectors[column] @ vectors[column].T
    return total


def probe(products: Tensor, labels: Sequence[str | None]) -> Probe:
    """The probe of pictures whose features have these inner products (N, N), with their classes.

    Raises:
        UserError: fewer than two classes that have two pictures each.
    """
    counts = Counter(label for label in labels if label)
    usable = [number for number, label in enumerate(labels) if label and counts[label] > 1]
    names = {name: number for number, name in enumerate(sorted({str(labels[number]) for number in usable}))}
    if len(names) < 2:
        raise UserError(
            f"--label gives {len(counts)} classes, of which {len(names)} have two pictures or more: a probe needs two "
            "such classes; choose another column, or more pictures"
        )
    index = torch.tensor(usable)
    truth = torch.tensor([names[str(labels[number])] for number in usable])
    predicted = _leave_one_out(products[index][:, index].double(), truth, len(names))
    right: list[bool | None] = [None] * len(labels)
    for number, hit in zip(usable, (predicted == truth).tolist(), strict=True):
        right[number] = hit
    largest = max(counts[name] for name in names)
    return Probe(float((predicted == truth).double().mean()), largest / len(usable), len(names), right)


def _leave_one_out(products: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(N,) class of each picture, as the ridge of all the others has it."""
    mean = products.mean(0)
    kernel = products - mean[:, None] - mean[None] + mean.mean()
    kernel = kernel / kernel.diagonal().mean().clamp(min=1e-12) + 1  # a constant feature is the intercept
    values, vectors = torch.linalg.eigh(kernel)
    wanted = torch.nn.functional.one_hot(truth, classes).double()
    inside = vectors.T @ wanted
    best, predicted = float("inf"), truth
    for penalty in PENALTIES:
        weights = 1 / (values.clamp(min=0) + penalty)
        residual = (vectors @ (weights[:, None] * inside)) / (vectors.square() @ weights)[:, None]
        error = float(residual.square().mean())
        if error < best:
            best, predicted = error, (wanted - residual).argmax(1)
    return predicted
