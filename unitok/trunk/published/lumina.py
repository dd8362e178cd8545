"""Lumina-mGPT (arXiv:2408.02657), as it draws pictures: Chameleon, trained on to draw pictures of any shape.

A request says the size in pixels. Behind it stand the begin of a picture and its height and width in patches, and
behind each row of codes an end. Guidance compares with the begin, height and width alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Frames, Vocabulary
from . import PublishedTrunk, llama
from .chameleon import START, TURN, ChameleonFamily, ChameleonTrunk, places_of_codes
from .family import Settings, Shape, Weights

PATCH, PIXELS = 2, 16
"""Codes along a side of a patch, in which sizes are counted, and pixels along a side of a code."""
BEGIN = "<racm3:break>"
"""Of a picture."""
SIZE, FIRST_SIZE = "<reserved{:05d}>", 8800
"""Token of a number of patches, and which of its kind means 0."""


@dataclass
class LuminaTrunk(ChameleonTrunk):
    """Sizes of a Lumina-mGPT transformer."""

    kind = "lumina"
    frames = Frames(row_end="row_end")
    wording: str = "{}"
    """A request with the size of the picture, its begin and its height."""
    left_out: str = BEGIN
    """What guidance compares with: begin and height."""
    patches: int = 24
    """Along the width."""


class _LuminaFamily(ChameleonFamily):
    config = LuminaTrunk
    settings = llama.SETTINGS | {"swin_norm"}
    tasks = ("text_to_image",)
    spans = ("row_end",)
    tokens: ClassVar[Mapping[str, str]] = {
        "eos": "</s>",
        "bos": "<s>",
        "boi": BEGIN,
        "pad": "<pad>",
        "row_end": "<reserved08799>",
    }

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        small = LuminaTrunk(4096, 32, 32, 11008, eps=1e-5, head_norms=True)
        large = LuminaTrunk(8192, 48, 64, 22016, kv_heads=8, eps=1e-5, head_norms=True, norms_behind=True)
        return {"Lumina-mGPT-7B-768": (small, 65536, 8192), "Lumina-mGPT-34B-512": (large, 65536, 8192)}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ()

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[LuminaTrunk, int, int]:
        found, texts, codes = super().read(shapes, settings, layout)
        height, width = layout.grid
        if len(layout.scales) > 1 or height % PATCH or width % PATCH:
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, Lumina-mGPT draws one grid of an even "
                f"height and width: import {self.tokenizer} with --settings '{{\"image_size\": [height, width]}}', "
                f"both multiples of {PATCH * PIXELS}"
            )
        begun = f"{BEGIN}{_token(height)}"
        request = f"Generate an image of {PIXELS * width}x{PIXELS * height} according to the following prompt:\n{{}}"
        sizes = {**vars(found), "talks": False}
        trunk = LuminaTrunk(**sizes, wording=f"{request}{TURN}{begun}", left_out=begun, patches=width // PATCH)
        return trunk, texts, codes

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        """A picture begins with its width here; what stands before it is text."""
        assert isinstance(config, LuminaTrunk)
        places, width = places_of_codes(texts, vocabulary.codebook_size), _token(PATCH * config.patches)
        for token in (width, TURN, config.left_out.removeprefix(BEGIN)):
            if texts.tokenizer.token_to_id(token) is None:
                raise UserError(f"{texts.name} has no {token}: choose a smaller picture, or the model's text tokenizer")
        tokens = {**self.tokens, "boi": width}
        return llama.state_with_codes(config, START, weights, vocabulary, texts, tokens, places)

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' demonstration."""
        return {"guidance": 4.0, "top_k": 2000}


def _token(codes: int) -> str:
    """That says a number of codes along a side."""
    return SIZE.format(FIRST_SIZE + codes // PATCH)


FAMILY = _LuminaFamily()
