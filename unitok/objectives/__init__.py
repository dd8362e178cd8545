"""Objectives by name. An objective says what stands at the positions of a target image and what is predicted there."""

from __future__ import annotations

from tokenizers_vq.errors import UserError

from .base import ImageSegments, Objective
from .masked_token import MaskedToken
from .next_token import NextToken

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (NextToken, MaskedToken)}


def get_objective(name: str) -> Objective:
    """The objective of that name. Raises UserError that lists the names."""
    if name not in OBJECTIVES:
        raise UserError(f"objective is {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]()


__all__ = ["OBJECTIVES", "ImageSegments", "Objective", "get_objective"]
