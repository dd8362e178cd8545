"""Chameleon (arXiv:2405.09818), and what was trained on from it with its ids, such as Anole: Llama over one vocabulary
of texts and codes.

A question stands behind its pictures, and the end of the turn behind it. The ids of codes lie among those of texts, in
an order of their own; here they are a span of their own. Drawing compares with the prompt without its texts and with
nothing. For a prompt that is a text, both are the same: one scale is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Asking, Frames, Vocabulary
from . import PublishedTrunk, llama
from .family import Family, Settings, Shape, Weights, talk

START = "model."
BOOK = "model.vqmodel.quantize.embedding.weight"
CODE_WIDTH = 256
"""Size of a code's vector."""
TURN = "<reserved08706>"
"""End of a question, with which an answer begins."""
TALKS = Frames(read=(("bos", "boi"), ("eoi",)), read_in_order=True)
GOES_ON = Frames(read=(("bos", "boi"), ()), read_in_order=True, begin="eoi")
LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789")
"""How the token of a code spells its number: IMGIMGBCZ is code 12."""


@dataclass
class ChameleonTrunk(llama.LlamaTrunk):
    """Sizes of a Chameleon transformer."""

    kind = "chameleon"
    head_bias = True
    talks: bool = False
    """Whether it answers questions. In folders that were imported before it did, a text that is learned or written
    stands behind a picture, whose end begins it."""
    caption: str = "What do you see?"
    """The question by which it writes a caption: that of the authors' example."""

    @property
    def frames(self) -> Frames:  # type: ignore[override]
        return TALKS if self.talks else GOES_ON

    @property
    def asking(self) -> Asking | None:  # type: ignore[override]
        return Asking("", "{}", "turn", {"image_to_text": self.caption}, space="") if self.talks else None


class ChameleonFamily(Family):
    config = ChameleonTrunk
    objective = "next_token"
    tokenizer = "taming_vqgan"
    settings = llama.SETTINGS | {"swin_norm", "caption"}
    left_out = tuple(f"model.vqmodel.{part}." for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
    files = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    tasks: ClassVar[tuple[str, ...]] = ("text_to_image", "image_to_text", "text_only", "question")
    spans: ClassVar[tuple[str, ...]] = ("eoi", "turn")
    tokens: ClassVar[Mapping[str, str]] = {
        "eos": "</s>",
        "bos": "<s>",
        "boi": "<racm3:break>",
        "eoi": "<eoss>",
        "pad": "<pad>",
        "turn": TURN,
    }

    def named(self, weights: Weights, settings: Settings) -> Weights:
        return llama.untied(weights, START, settings)

    def configuration(self, settings: Settings) -> Settings:
        return llama.configuration(settings)

    def codebook(self, weights: Weights) -> Tensor | None:
        return weights[BOOK]

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        small = ChameleonTrunk(4096, 32, 32, 11008, eps=1e-5, head_norms=True, talks=True)
        large = replace(small, width=8192, depth=48, heads=64, inner=22016, kv_heads=8, norms_behind=True)
        return {"chameleon-7b": (small, 65536, 8192), "chameleon-30b": (large, 65536, 8192)}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ((32, 32),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[ChameleonTrunk, int, int]:
        norm, table = shapes[f"{START}layers.0.self_attn.q_norm.weight"], shapes[f"{START}embed_tokens.weight"]
        behind = settings.get("swin_norm", table[1] >= 8192)
        if not isinstance(behind, bool):
            raise UserError(f"setting swin_norm is {shown(behind)}: give true or false")
        found = llama.sizes(shapes, START, settings, norm[0], 1e-5)
        words = talk(settings, "caption")
        trunk = ChameleonTrunk(**found, head_norms=True, norms_behind=behind, talks=True, **words)
        return trunk, table[0], shapes[BOOK][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, ChameleonTrunk)
        return llama.shapes_of(config, START, classes) | {BOOK: (codes, CODE_WIDTH)}

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        assert isinstance(config, ChameleonTrunk)
        places = places_of_codes(texts, vocabulary.codebook_size)
        return llama.state_with_codes(config, START, weights, vocabulary, texts, self.tokens, places)

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """The defaults of the authors' sampler, whose scale of the text is this one."""
        return {"guidance": 3.0, "temperature": 0.7, "top_p": 0.9}


def places_of_codes(texts: TextTokenizer, codes: int) -> list[int]:
    """The authors' id of each code. Raises UserError for a tokenizer that does not have them all."""
    found = {}
    for token, place in texts.tokenizer.get_vocab(with_added_tokens=True).items():
        number = token.removeprefix("IMGIMG").removesuffix("Z").translate(LETTERS)
        if token.startswith("IMGIMG") and number.isascii() and number.isdecimal() and len(number) < 9:
            found[int(number)] = place
    lacking = next((code for code in range(codes) if code not in found), None)
    if lacking is not None:
        raise UserError(
            f"{texts.name} has no token of code {lacking}, such as IMGIMGAZ of code 0: give the text tokenizer of the "
            "model"
        )
    return [found[code] for code in range(codes)]


FAMILY = ChameleonFamily()
