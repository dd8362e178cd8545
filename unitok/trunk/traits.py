"""What a trunk asks of what surrounds it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..vocabulary import FRAMELESS, Asking, Frames


@dataclass
class Traits:
    """Ours. Configurations of published trunks override what their authors do in another way.

    A dataclass without fields, because the command line takes one that inherits from anything else as one option.
    """

    plain_inputs: ClassVar[bool] = False
    """Whether what is seen of a picture comes in as it is: neither whitened nor with ids beside it."""
    in_line: ClassVar[bool] = False
    """Whether the positions of a picture count on in one line, as those of a text, and not by row and column."""
    deep_head: ClassVar[bool] = False
    """Whether image codes are scored behind a hidden layer of their own."""
    padded: ClassVar[bool] = False
    """Whether a caption that is left out has padding in its place; else it is an empty text."""
    keeps_wording: ClassVar[bool] = False
    """Whether a caption that is left out is an empty one in the wording of the model."""
    frames: ClassVar[Frames] = FRAMELESS
    """What stands around texts and pictures."""
    asking: ClassVar[Asking | None] = None
    """How it is asked about pictures; None: a question stands behind the picture as it is."""
    text_encoder: ClassVar[str] = ""
    """Where captions are states: the encoder of its authors, on the hub."""
    cleans_captions: ClassVar[bool] = False
    """Whether captions are cleaned before they are encoded (`unitok/text_encoder/cleaning.py`)."""
    cools_fast: ClassVar[bool] = False
    """MaskGIT: see `MaskGIT`."""
    fills_codes: ClassVar[bool] = False
    """Whether parts of pictures are filled in as in Show-o's code: a code is drawn anew where the mask covers its
    middle, and a larger canvas goes on from the codes that it has, not from its pixels."""

    @property
    def sub_tokens(self) -> tuple[int, ...]:
        """Values of each sub-token of an image code (`unitok/objectives/sub_tokens.py`); empty: a code is one token."""
        return ()
