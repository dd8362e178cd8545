"""The models of a server, by the names that clients know them by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers_vq.errors import UserError

from .errors import ApiError
from .service import Service
from .worker import Worker


class Serving(NamedTuple):
    """A model: what makes its orders, and what writes them."""

    service: Service
    worker: Worker


class Models:
    """Models; the first is asked where a request names none.

    Raises:
        UserError: two of the same name.
    """

    def __init__(self, all: Sequence[Serving]) -> None:
        self.all = all
        names = [one.service.name for one in all]
        if len({*names}) < len(names):
            raise UserError(f"--name {names[0]} is the name of two models: choose another")

    def find(self, name: str | None) -> Serving:
        """
        Raises:
            ApiError: there is no model of this name.
        """
        names = [one.service.name for one in self.all]
        if not names:
            raise ApiError(404, "no model is served here: start the server with --model", "model", "model_not_found")
        if name is not None and name not in names:
            there = " and ".join(map(repr, names))
            raise ApiError(404, f"there is no model {name!r:.80} here, only {there}", "model", "model_not_found")
        return self.all[0 if name is None else names.index(name)]

    @property
    def alive(self) -> bool:
        """Whether all of them write."""
        return all(one.worker.alive for one in self.all)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names that tell folders apart: the last part of each path, or as many last parts as that takes.

    >>> short_names([Path("/runs/a/generator")]), short_names([Path("/runs/a/generator"), Path("/runs/b/generator")])
    (['generator'], ['a/generator', 'b/generator'])

    Raises:
        UserError: a folder that is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is given twice: give two different models")
    for taken in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-taken:]) for path in paths]
        if len({*names}) == len(names):
            break
    return names if paths else []
