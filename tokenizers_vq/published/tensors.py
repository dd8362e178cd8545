"""Whether a file holds the tensors of a model: none missing, none unexpected, all of their shapes, all of them
numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..storage.weights import check_finite

Shape = tuple[int, ...]


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


def some_of(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
