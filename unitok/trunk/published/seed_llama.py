"""SEED-LLaMA (arXiv:2310.01218): Llama over one vocabulary of texts and SEED's codes.

The tokens of codes stand behind those of texts, `<img_00000>` first; here codes are a span of their own. A picture
stands between `<img>` and `</img>`. As in the pretraining, a picture follows its caption, and a caption follows the end
of its picture. The low-rank adapters that the models were trained with are merged in the released files.
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
from .family import Family, Settings, Shape, Weights, whole, wording

START = "model."
CODES, TOKENS, TEXTS = 8192, 32, 40194
"""Of the released models: codes, codes of a picture, ids of texts, codes and marks."""
WORDING = "{}"
ADAPTER = ".lora_A."


@dataclass
class SeedLlamaTrunk(llama.LlamaTrunk):
    """Sizes of a SEED-LLaMA transformer."""

    kind = "seed_llama"
    head_bias = True
    frames = Frames(read=(("bos", "boi"), ()), read_in_order=True, begin="eoi")
    """A text that is learned or written stands behind a picture, whose end begins it."""
    wording: str = WORDING
    """The pretrained models read a caption as it is; those tuned by instructions read `USER: ...\\nASSISTANT:`."""


class _SeedLlamaFamily(Family):
    config = SeedLlamaTrunk
    objective = "next_token"
    tokenizer = "seed"
    settings = llama.SETTINGS | {"NUM_IMG_CODES", "wording"}
    ignored = ("rotary_emb.inv_freq",)
    files = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    tasks = ("text_to_image", "image_to_text")
    spans = ("eoi",)
    tokens: ClassVar[Mapping[str, str]] = {
        "eos": "</s>",
        "bos": "<s>",
        "boi": "<img>",
        "eoi": "</img>",
        "pad": "<unk>",
    }

    def named(self, weights: Weights, settings: Settings) -> Weights:
        adapters = next((name for name in weights if ADAPTER in name), None)
        if adapters is not None:
            raise UserError(
                f"the file holds low-rank adapters ({adapters}), not a whole model: merge them into it with peft's "
                "merge_and_unload, and give what that saves"
            )
        return llama.untied(weights, START, settings)

    def configuration(self, settings: Settings) -> Settings:
        return llama.configuration(settings)

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        small = SeedLlamaTrunk(4096, 32, 32, 11008)
        large = SeedLlamaTrunk(5120, 40, 40, 13824, eps=1e-5)
        return {"seed-llama-8b": (small, TEXTS, CODES), "seed-llama-14b": (large, TEXTS, CODES)}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ((1, TOKENS),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[SeedLlamaTrunk, int, int]:
        if len(layout.scales) > 1 or layout.grid[0] != 1:
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, SEED-LLaMA draws one row of them: give "
                f"the folder that `unitok import {self.tokenizer}` made"
            )
        table = shapes[f"{START}embed_tokens.weight"]
        sizes = llama.sizes(shapes, START, settings, max(1, table[1] // 128), 1e-6)
        found = SeedLlamaTrunk(**sizes, wording=wording(settings, WORDING))
        return found, table[0], whole(settings, "NUM_IMG_CODES", CODES)

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, SeedLlamaTrunk)
        return llama.shapes_of(config, START, classes)

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        assert isinstance(config, SeedLlamaTrunk)
        places = places_of_codes(texts, vocabulary.codebook_size)
        return llama.state_with_codes(
            config, START, weights, vocabulary, texts, self.tokens, places, ("eos", "boi", "eoi")
        )

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' scripts, which guide nothing."""
        return {"guidance": 1.0, "temperature": 1.0, "top_p": 0.5}


def places_of_codes(texts: TextTokenizer, codes: int) -> list[int]:
    """The authors' id of each code. Raises UserError for a tokenizer that does not have them all."""
    places = [texts.tokenizer.token_to_id(f"<img_{code:05d}>") for code in range(codes)]
    if None in places:
        raise UserError(
            f"{texts.name} has no token of code {places.index(None)}, such as <img_00000> of code 0: give the text "
            "tokenizer of the model"
        )
    return [place for place in places if place is not None]


FAMILY = _SeedLlamaFamily()
