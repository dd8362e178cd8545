"""Trunks of published generators, by the names of their families. Free of torch until one is taken."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tokenizers_vq.errors import Problems, UserError, shown

from ..traits import Traits

if TYPE_CHECKING:
    from ..base import Trunk
    from .family import Family

PUBLISHED = {
    "llamagen": ".llamagen:FAMILY",
    "var": ".var:FAMILY",
    "janus": ".janus:FAMILY",
    "chameleon": ".chameleon:FAMILY",
    "lumina": ".lumina:FAMILY",
    "showo": ".showo:FAMILY",
    "seed_llama": ".seed_llama:FAMILY",
    "infinity": ".infinity:FAMILY",
    "open_magvit2_ar": ".open_magvit2:FAMILY",
    "ibq_ar": ".ibq:FAMILY",
    "emu3": ".emu3:FAMILY",
}
"""Name -> where its family stands."""


@dataclass
class PublishedTrunk(Traits, ABC):
    """The sizes of a published trunk; `kind` names its family in `config.json`."""

    kind: ClassVar[str]
    tied_head: ClassVar[bool] = False
    head_bias: ClassVar[bool] = False

    width: int
    depth: int
    heads: int
    inner: int
    """Hidden size of the feed-forward part."""
    attention: Literal["sdpa", "flex", "xformers"] = "sdpa"
    """Attention backend."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, most in (("width", 2**16), ("depth", 1024), ("heads", 2**12), ("inner", 2**18)):
            problems.check_range(f"trunk.{name}", getattr(self, name), 1, most)
        problems.raise_if_any()
        problems.check(
            self.width % (2 * self.heads) == 0,
            f"trunk.width is {self.width} with trunk.heads {self.heads}: choose a multiple of 2 * heads",
        )
        problems.raise_if_any()

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def state_width(self) -> int:
        """Size of the states of a caption, where captions are states."""
        return 0

    @property
    @abstractmethod
    def captions(self) -> Literal["text", "class", "states", "attended"]:
        """What a caption is to the model: a text before the picture, or a condition (`unitok/conditions.py`)."""

    @property
    def wording(self) -> str:
        """See `TrunkConfig`."""
        return "{}"

    @property
    def left_out(self) -> str:
        """See `TrunkConfig`."""
        return ""

    @abstractmethod
    def build(self) -> Trunk:
        """A trunk with fresh weights."""


def published_family(name: object) -> Family:
    """The family of that name. Raises UserError that lists the names."""
    if not isinstance(name, str) or name not in PUBLISHED:
        raise UserError(f"trunk kind is {shown(name)}: known are native, {', '.join(PUBLISHED)}, hf; update unitok")
    module, _, item = PUBLISHED[name].partition(":")
    found: Family = getattr(importlib.import_module(module, __name__), item)
    return found
