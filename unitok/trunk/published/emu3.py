"""Emu3 (arXiv:2409.18869), as it draws pictures: Llama over one vocabulary of texts and codes.

A caption is followed by the size of the picture in words, and each row of codes by its end. The ids of codes lie among
those of texts; here they are a span of their own. Guidance compares with an empty caption, which keeps the size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.published.emu3_vq import SETTINGS as VQ_SETTINGS
from tokenizers_vq.published.load import tokenizer_of

from ...text import TextTokenizer
from ...vocabulary import Frames, Vocabulary
from . import PublishedTrunk, llama
from .family import Family, Settings, Shape, Weights, whole

START, IMAGES = "model.text_model.", "model.vqmodel."
BOOK = f"{IMAGES}quantize.embedding.weight"
RENAMED = (
    (r"^text_model\.lm_head\.", "lm_head."),
    (r"^text_model\.(model\.)?", START),
    (r"^vqmodel\.", IMAGES),
)
"""Names of files that transformers wrote earlier -> those of today."""
CODE = "<|visual token {:06d}|>"
"""Token of a code."""


@dataclass
class Emu3Trunk(llama.LlamaTrunk):
    """Sizes of an Emu3 transformer."""

    kind = "emu3"
    head_bias = True
    keeps_wording = True
    frames = Frames(row_end="row_end")
    wording: str = "{}<|image start|>90*90"
    """A caption and the size of the picture, in codes."""


class _Emu3Family(Family):
    config = Emu3Trunk
    objective = "next_token"
    tokenizer = "emu3_vq"
    settings = llama.SETTINGS | {"image_size"}
    ignored = ("num_batches_tracked",)
    left_out = tuple(f"{IMAGES}{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
    files = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    spans = ("row_end",)
    tokens: ClassVar[Mapping[str, str]] = {
        "eos": "<|extra_204|>",
        "bos": "<|extra_203|>",
        "boi": "<|image token|>",
        "pad": "<|endoftext|>",
        "row_end": "<|extra_200|>",
    }
    holds_tokenizer = True

    def named(self, weights: Weights, settings: Settings) -> Weights:
        found = {}
        for name, tensor in weights.items():
            for old, new in RENAMED:
                name = re.sub(old, new, name)
            found[name] = tensor
        return llama.untied(found, START, settings)

    def configuration(self, settings: Settings) -> Settings:
        return {"rope_theta": 1e6, **llama.configuration(settings)}

    def image_tokenizer(self, weights: Weights, settings: Settings, where: str) -> ImageTokenizer:
        own = {name.removeprefix(IMAGES): one for name, one in weights.items() if name.startswith(IMAGES)}
        if not own:
            raise UserError(f"{where} holds no image tokenizer: give the folder of one with --image_tokenizer")
        given = settings.get("vq_config")
        sizes = {name: one for name, one in given.items() if name in VQ_SETTINGS} if isinstance(given, Mapping) else {}
        return tokenizer_of(self.tokenizer, own, where, {**sizes, "image_size": whole(settings, "image_size", 720)})

    def codebook(self, weights: Weights) -> Tensor | None:
        return weights[BOOK]

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        return {"Emu3-Gen": (Emu3Trunk(4096, 32, 32, 14336, kv_heads=8, eps=1e-5, rope_base=1e6), 184622, 32768)}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ((90, 90),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[Emu3Trunk, int, int]:
        if len(layout.scales) > 1:
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, Emu3 draws one grid: give the folder "
                f"that `unitok import {self.tokenizer}` made"
            )
        table, (height, width) = shapes[f"{START}embed_tokens.weight"], layout.grid
        sizes = llama.sizes(shapes, START, settings, max(1, table[1] // 128), 1e-5)
        wording = f"{{}}<|image start|>{height}*{width}"
        return Emu3Trunk(**sizes, wording=wording), table[0], shapes[BOOK][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, Emu3Trunk)
        return llama.shapes_of(config, START, classes) | {BOOK: (codes, 4)}

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        assert isinstance(config, Emu3Trunk)
        places = _places_of_codes(texts, vocabulary.codebook_size)
        return llama.state_with_codes(config, START, weights, vocabulary, texts, self.tokens, places)

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' example."""
        return {"guidance": 3.0, "top_k": 2048}


def _places_of_codes(texts: TextTokenizer, codes: int) -> list[int]:
    """The authors' id of each code. Raises UserError for a tokenizer that does not have them all."""
    found = [texts.tokenizer.token_to_id(CODE.format(code)) for code in range(codes)]
    places = [place for place in found if place is not None]
    if len(places) < codes:
        raise UserError(
            f"{texts.name} has no token {CODE.format(found.index(None))}: give the text tokenizer of the model"
        )
    return places


FAMILY = _Emu3Family()
