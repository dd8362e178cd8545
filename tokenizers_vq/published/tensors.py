"""Whether a file holds the tensors of a model: none missing, none unexpected, all of their shapes, all of them
numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UserError, some_of
from ..storage.weights import check_finite

Shape = tuple[int, ...]

LIKELY = 0.5
"""How alike names must be to those of a family, to say that a file looks like it."""


def misfits(weights: Mapping[str, Tensor], shapes: Mapping[str, Shape | None]) -> tuple[int, str]:
    """(number of tensors that do not fit, what to say about them). None: any shape will do."""
    missing = sorted(shapes.keys() - weights.keys())
    unexpected = sorted(weights.keys() - shapes.keys())
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in sorted(shapes.items())
        if shape is not None and name in weights and tuple(weights[name].shape) != shape
    ]
    kinds = (("it lacks", missing), ("it has unexpected", unexpected), ("it has", misshapen))
    parts = [f"{verb} {some_of(list_)}" for verb, list_ in kinds if list_]
    return len(missing) + len(unexpected) + len(misshapen), "; ".join(parts)


def check_numbers(path: str | Path, weights: Mapping[str, Tensor], used: Collection[str], what: str) -> None:
    """Raises UserError for tensors that are no floating-point numbers, or not finite. `what` is made of them."""
    kinds = [f"{name} ({weights[name].dtype})" for name in sorted(used) if not weights[name].is_floating_point()]
    if kinds:
        raise UserError(f"{path} has whole numbers where weights should be: {some_of(kinds)}; export the weights again")
    said = f"{path} holds weights that no {what} works with"
    check_finite(
        {name: weights[name].float() for name in sorted(used)}, said, "fetch it again, or take an older checkpoint"
    )


def alike(names: Iterable[str], known: Iterable[str]) -> float:
    """How alike two lists of names are, from 0 to 1, whatever the numbers in them: the share of all that both have.

    >>> alike(["a.0.b", "a.7.b", "c"], ["a.12.b", "d"])
    0.3333333333333333
    """
    ours, theirs = ({re.sub(r"\d+", "0", name) for name in part} for part in (names, known))
    return len(ours & theirs) / max(1, len(ours | theirs))


def check_family(path: str | Path, family: str, likeness: Mapping[str, float]) -> None:
    """Raises UserError for a file whose names are more alike to those of another family than to those of this one.
    `likeness` is that of families to the file, by their names."""
    best = max(likeness, key=lambda one: likeness[one])
    if likeness[best] > max(LIKELY, likeness.get(family, 0.0)):
        raise UserError(f"{path} is no {family}: it looks like {best}; give that family, or another file")
