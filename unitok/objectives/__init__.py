"""Objectives by name. An objective says what stands at the positions of an image and what is predicted there; the
writer beside it draws images in that way.

Free of torch until one is taken, so that the command line can name them quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tokenizers_vq.errors import UserError

if TYPE_CHECKING:
    from tokenizers_vq.base import ImageTokenizer

    from .base import Objective

OBJECTIVES = {
    "next_token": ".next_token:NextToken",
    "masked_token": ".masked_token:MaskedToken",
    "next_scale": ".next_scale:NextScale",
    "random_order": ".random_order:RandomOrder",
    "maskgit": ".maskgit:MaskGIT",
    "var": ".var:VAR",
}
"""Name -> where its class stands."""
PUBLISHED_ALONE = {"infinity": ".infinity:Infinity"}
"""The same, of objectives that only models have which were imported."""


def chosen_objective(name: str) -> type[Objective]:
    """The objective of that name, of those that a new model may have. Raises UserError that lists the names."""
    if name not in OBJECTIVES:
        raise UserError(f"objective is {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return objective_class(name)


def objective_class(name: str) -> type[Objective]:
    """The objective of that name. Raises UserError that lists the names."""
    known = OBJECTIVES | PUBLISHED_ALONE
    if name not in known:
        raise UserError(f"objective is {name!r}: choose one of {', '.join(known)}")
    module, _, kind = known[name].partition(":")
    return getattr(importlib.import_module(module, __name__), kind)


def get_objective(name: str, image_tokenizer: ImageTokenizer, plain: bool = False) -> Objective:
    """The objective of that name for the codes of a tokenizer; `plain` as of `Objective`. Raises UserError that lists
    the names, or says why the tokenizer does not do."""
    objective = objective_class(name).for_tokenizer(image_tokenizer)
    objective.plain = plain
    return objective
