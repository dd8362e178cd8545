"""Objectives by name. An objective says what stands at the positions of a target image and what is predicted there."""

from __future__ import annotations

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError

from .base import ImageSegments, Objective
from .masked_token import MaskedToken
from .next_scale import NextScale
from .next_token import NextToken

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (NextToken, MaskedToken, NextScale)
}


def get_objective(name: str, image_tokenizer: ImageTokenizer) -> Objective:
    """The objective of that name for the codes of a tokenizer. Raises UserError that lists the names, or says why the
    tokenizer does not do."""
    if name not in OBJECTIVES:
        raise UserError(f"objective is {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name].for_tokenizer(image_tokenizer)


__all__ = ["OBJECTIVES", "ImageSegments", "Objective", "get_objective"]
