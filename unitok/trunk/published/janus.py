"""Janus and Janus-Pro (arXiv:2410.13848, 2501.17811), as they draw and write: Llama, with a table and a head of its own
for codes.

How they read pictures stands in `janus_reading.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.published.load import tokenizer_of

from ...text import TextTokenizer
from ...vocabulary import FRAMELESS, Asking, Frames, Vocabulary
from . import PublishedTrunk, janus_reading, llama
from .family import Family, Settings, Shape, Weights, closed, id_of, rows, talk, text_spans, whole, wording

WORDING = "<|User|>: {}\n\n<|Assistant|>:"
START, IMAGES, ALIGN = "model.language_model.", "model.vqmodel.", "model.generation_aligner."
LAYERS = ("fc1", "hidden_layers.0")
TURN = ":"
"""The last token before an answer."""
READ = Frames(read=(("bos", "boi"), ("eoi",)), read_in_order=True)
NARROW = 8
"""Size of the authors' vectors of codes."""
RENAMED = (
    (r"^language_model\.model\.", START),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_aligner\.layers\.0\.", f"{ALIGN}fc1."),
    (r"^gen_aligner\.layers\.2\.", f"{ALIGN}hidden_layers.0."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^gen_vision_model\.", IMAGES),
    *janus_reading.RENAMED,
    (r"^(vision_model|aligner)\.(?!vision_tower)", r"model.\1."),
)
"""Names of the authors' files -> those of transformers."""
VQ = (
    (r"^(encoder|decoder)\.(down|up)\.(\d+)\.", r"\1.conv_blocks.\3."),
    (r"\.block\.(\d+)\.", r".res.\1."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
)
"""Names of transformers inside the image tokenizer -> LlamaGen's, which are the authors' too."""
VQ_SETTINGS = {
    "num_embeddings": "codebook_size",
    "embed_dim": "codebook_embed_dim",
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "latent_channels": "z_channels",
}
"""Settings of transformers for the image tokenizer -> LlamaGen's."""


@dataclass
class JanusTrunk(llama.LlamaTrunk):
    """Sizes of a Janus transformer."""

    kind = "janus"
    deep_head = True
    head_bias = True
    padded = True
    wording: str = WORDING
    """Janus 1.3B has the words User and Assistant in place of the tokens."""
    reads: bool = False
    """Whether it reads pictures."""
    system: str = ""
    """What stands before the first turn of a talk about a picture."""
    caption: str = "Describe the image."
    """The question by which it writes a caption."""

    @property
    def frames(self) -> Frames:  # type: ignore[override]
        return READ if self.reads else FRAMELESS

    @property
    def asking(self) -> Asking | None:  # type: ignore[override]
        if not self.reads:
            return None
        before, behind = self.wording.split("{}")
        question = f"\n{{}}{behind.removesuffix(TURN)}"
        return Asking(f"{self.system}{before}", question, "turn", {"image_to_text": self.caption})


class _JanusFamily(Family):
    config = JanusTrunk
    objective = "next_token"
    tokenizer = "llamagen_vq"
    settings = llama.SETTINGS | {"image_size", "wording", "system", "caption"}
    ignored = ("quantize.codebook_used",)
    left_out = (IMAGES, "model.vision_model.", "model.aligner.")
    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    tasks = ("text_to_image", "text_only")
    tokens: ClassVar[Mapping[str, str]] = {
        "eos": "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "bos": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "boi": "<begin_of_image>",
        "pad": "<\uff5c\u2581pad\u2581\uff5c>",
    }
    reads: ClassVar[Mapping[str, str]] = {"eoi": "<end_of_image>", "turn": TURN}
    reading_tasks = ("text_to_image", "image_to_text", "question")
    holds_tokenizer = True

    def named(self, weights: Weights, settings: Settings) -> Weights:
        found = {_renamed(name, RENAMED): tensor for name, tensor in weights.items()}
        return llama.untied(janus_reading.separated(found), START, settings)

    def reading(self, weights: Weights, settings: Settings, where: str) -> janus_reading.Reading | None:
        return janus_reading.reading(weights, settings, where)

    def reading_trunk(self, trunk: PublishedTrunk) -> PublishedTrunk:
        assert isinstance(trunk, JanusTrunk)
        return replace(trunk, reads=True)

    def configuration(self, settings: Settings) -> Settings:
        return llama.configuration(settings)

    def image_tokenizer(self, weights: Weights, settings: Settings, where: str) -> ImageTokenizer:
        own = {_renamed(name.removeprefix(IMAGES), VQ): one for name, one in weights.items() if name.startswith(IMAGES)}
        if not own:
            raise UserError(f"{where} holds no image tokenizer: give the folder of one with --image_tokenizer")
        given = settings.get("vq_config")
        given = given if isinstance(given, Mapping) else {}
        sizes = {VQ_SETTINGS[name]: one for name, one in given.items() if name in VQ_SETTINGS}
        return tokenizer_of(self.tokenizer, own, where, {**sizes, "image_size": _image_size(settings)})

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        return {
            "Janus-Pro-1B": (JanusTrunk(2048, 24, 16, 5632), 102400, 16384),
            "Janus-Pro-7B": (JanusTrunk(4096, 30, 32, 11008), 102400, 16384),
        }

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        return ((24, 24),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[JanusTrunk, int, int]:
        table = shapes[f"{START}embed_tokens.weight"]
        sizes = llama.sizes(shapes, START, settings, max(1, table[1] // 128), 1e-6)
        found = JanusTrunk(**sizes, wording=wording(settings, WORDING), **talk(settings, "system", "caption"))
        return found, table[0], shapes["model.generation_head.vision_head.weight"][0]

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        assert isinstance(config, JanusTrunk)
        width = config.width
        found = llama.shapes_of(config, START, classes) | {
            "model.generation_embeddings.weight": (codes, NARROW),
            f"{ALIGN}fc1.weight": (width, NARROW),
            f"{ALIGN}fc1.bias": (width,),
            f"{ALIGN}hidden_layers.0.weight": (width, width),
            f"{ALIGN}hidden_layers.0.bias": (width,),
            "model.generation_head.proj_out.weight": (width, width),
            "model.generation_head.proj_out.bias": (width,),
            "model.generation_head.vision_head.weight": (codes, width),
            "model.generation_head.vision_head.bias": (codes,),
        }
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        assert isinstance(config, JanusTrunk)
        width, head = config.width, "model.generation_head."
        tokens = {**self.tokens, **(self.reads if config.reads else {})}
        embedding = text_spans(weights[f"{START}embed_tokens.weight"], tokens, texts)
        scores = text_spans(weights["lm_head.weight"], tokens, texts)
        bias = closed(vocabulary, [id_of(texts, self.tokens["eos"])])
        bias[vocabulary["image"]] = weights[f"{head}vision_head.bias"].float()
        return llama.state_of(config, START, weights) | {
            "ids.embedding.weight": rows(vocabulary, width, embedding | {"image": _code_vectors(weights)}),
            "ids.head.weight": rows(vocabulary, width, scores | {"image": weights[f"{head}vision_head.weight"]}),
            "ids.head.bias": bias,
            "ids.deep.layer.weight": weights[f"{head}proj_out.weight"],
            "ids.deep.layer.bias": weights[f"{head}proj_out.bias"],
        }

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """The defaults of the authors' sampler."""
        return {"guidance": 5.0}


def _code_vectors(weights: Weights) -> Tensor:
    """(codes, C): the vector of each code. The authors have narrow ones and two layers that widen them; what comes out
    depends on the code alone."""
    narrow = weights["model.generation_embeddings.weight"].float()
    first, second = ([weights[f"{ALIGN}{name}.{kind}"].float() for kind in ("weight", "bias")] for name in LAYERS)
    return F.linear(F.gelu(F.linear(narrow, *first)), *second)


def _image_size(settings: Settings) -> int:
    """Pixels along a side: what is said, else that of the pictures that the model reads."""
    vision = settings.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    inner = vision.get("params")
    read = {**(inner if isinstance(inner, Mapping) else {}), **vision}
    return whole(settings, "image_size", read.get("image_size", 384))


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        name = re.sub(old, new, name)
    return name


FAMILY = _JanusFamily()
