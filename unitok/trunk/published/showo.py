"""Show-o (arXiv:2408.12528): Phi-1.5's blocks with norms of queries and keys, over texts and pictures that are drawn by
confidence.

Attention and feed-forward part of a block read the same norm. The first half of each head turns with the position, in
one line through text and picture. Texts are padded in front by the authors, and the padding is hidden: it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout

from ...text import TextTokenizer
from ...vocabulary import Asking, Frames, Vocabulary
from ..base import Trunk
from ..cache import KVCache
from ..native import rotate
from ..rule import Visibility, attend
from . import PublishedTrunk
from .family import Family, Settings, Shape, Weights, closed, id_of, layers, number, rows, talk, text_spans, whole
from .llama import InLine, Turn

START = "showo."
TEXTS, ADDED = 50295, 10
"""Ids of phi-1.5's texts, and of what the authors put behind them: padding, marks, then the codes, then the mask."""
MARKS = {"pad": 0, "boi": 1, "eoi": 2, "t2i": 5, "mmu": 6}
"""Span -> its place among these."""
TURN = ":"
"""The last token before an answer."""


@dataclass
class ShowoTrunk(PublishedTrunk):
    """Sizes of a Show-o transformer."""

    kind = "showo"
    head_bias = True
    in_line = True
    cools_fast = True
    fills_codes = True
    frames = Frames((("t2i",), ("eos",)), (("boi",), ("eoi",)), (("mmu", "boi"), ("eoi",)))
    side: int = 16
    """Codes along a side of the picture."""
    turning: int = 32
    """Numbers of each head that turn with the position; even."""
    rope_base: float = 10_000.0
    eps: float = 1e-5
    """Of the norms."""
    caption: str = "Please describe this image in detail."
    """The question by which it writes a caption."""

    @property
    def asking(self) -> Asking:  # type: ignore[override]
        return Asking("", "USER: \n{} ASSISTANT", "turn", {"image_to_text": self.caption}, marks=("bos",))

    @property
    def captions(self) -> Literal["text", "class", "states"]:
        return "text"

    def build(self) -> Trunk:
        blocks = [Block(self) for _ in range(self.depth)]
        return InLine(self, self.turning, self.rope_base, blocks, nn.LayerNorm(self.width, self.eps))


class Attention(nn.Module):
    def __init__(self, config: ShowoTrunk) -> None:
        super().__init__()
        self.head_size, self.turning = config.head_size, config.turning
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.query_norm = nn.LayerNorm(config.head_size, config.eps)
        self.key_norm = nn.LayerNorm(config.head_size, config.eps)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, turn: Turn, seen: Visibility, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_size).transpose(1, 2)  # (B, 3H, T, D)
        q, k, v = qkv.chunk(3, 1)
        q, k = (self._turned(one, turn).to(v.dtype) for one in (self.query_norm(q), self.key_norm(k)))
        if cache is not None:
            k, v = cache.store(layer, k, v)
        return self.out(attend(q, k, v, seen).transpose(1, 2).reshape(batch, length, width))

    def _turned(self, x: Tensor, turn: Turn) -> Tensor:
        return torch.cat([rotate(x[..., : self.turning], turn), x[..., self.turning :]], -1)


class Block(nn.Module):
    def __init__(self, config: ShowoTrunk) -> None:
        super().__init__()
        self.before = nn.LayerNorm(config.width, config.eps)
        self.attention = Attention(config)
        self.up = nn.Linear(config.width, config.inner)
        self.down = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor, turn: Turn, seen: Visibility, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        normed = self.before(x)
        mlp = self.down(F.gelu(self.up(normed), approximate="tanh"))
        return x + self.attention(normed, turn, seen, cache, layer) + mlp


# --- the published files ---------------------------------------------------------------------------------------------


class _ShowoFamily(Family):
    config = ShowoTrunk
    objective = "maskgit"
    tokenizer = "showo_magvitv2"
    settings = frozenset(
        ["llm_vocab_size", "partial_rotary_factor", "rope_theta", "layer_norm_eps", "text_tokenizer", "caption"]
    )
    ignored = ("rotary_emb.inv_freq",)
    files = ("pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
    tasks = ("text_to_image", "image_to_text", "question")
    text_length = 128
    tokens: ClassVar[Mapping[str, str]] = {"eos": "<|endoftext|>", "turn": TURN}
    spans = ("eoi", "t2i", "mmu", "turn")

    def released(self) -> dict[str, tuple[PublishedTrunk, int, int]]:
        sizes = {"show-o": 16, "show-o-512x512": 32}
        return {name: (ShowoTrunk(2048, 24, 32, 8192, side=side), TEXTS, 8192) for name, side in sizes.items()}

    def grids(self, config: PublishedTrunk) -> tuple[tuple[int, int], ...]:
        assert isinstance(config, ShowoTrunk)
        return ((config.side, config.side),)

    def read(self, shapes: Mapping[str, Shape], settings: Settings, layout: Layout) -> tuple[ShowoTrunk, int, int]:
        if len(layout.scales) > 1 or layout.grid[0] != layout.grid[1]:
            raise UserError(
                f"the image tokenizer makes {' + '.join(layout.names)} codes, Show-o draws one square grid: give the "
                f"folder that `unitok import {self.tokenizer}` made"
            )
        table, head = (
            shapes[f"{START}model.embed_tokens.weight"],
            shapes[f"{START}model.layers.0.self_attn.q_layernorm.weight"],
        )
        found = ShowoTrunk(
            table[1],
            layers(shapes, f"{START}model.layers."),
            table[1] // head[0],
            shapes[f"{START}model.layers.0.mlp.fc1.weight"][0],
            side=layout.grid[0],
            turning=int(head[0] * number(settings, "partial_rotary_factor", 0.5)) // 2 * 2,
            rope_base=number(settings, "rope_theta", 10_000.0),
            eps=number(settings, "layer_norm_eps", 1e-5),
            **talk(settings, "caption"),
        )
        texts = whole(settings, "llm_vocab_size", TEXTS)
        return found, texts, table[0] - texts - ADDED - 1

    def shapes(self, config: PublishedTrunk, classes: int, codes: int) -> dict[str, Shape]:
        width, ids = config.width, classes + ADDED + codes + 1
        found: dict[str, Shape] = {f"{START}model.embed_tokens.weight": (ids, width)}
        norm, head = f"{START}model.final_layernorm", f"{START}lm_head"
        found |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,), f"{head}.weight": (ids, width)}
        found |= {f"{head}.bias": (ids,)}
        for layer in range(config.depth):
            for name, out, size in (
                *((f"self_attn.{part}", width, width) for part in ("q_proj", "k_proj", "v_proj", "dense")),
                ("mlp.fc1", config.inner, width),
                ("mlp.fc2", width, config.inner),
            ):
                found[f"{START}model.layers.{layer}.{name}.weight"] = (out, size)
                found[f"{START}model.layers.{layer}.{name}.bias"] = (out,)
            for name, size in (
                ("self_attn.q_layernorm", config.head_size),
                ("self_attn.k_layernorm", config.head_size),
                ("input_layernorm", width),
            ):
                for kind in ("weight", "bias"):
                    found[f"{START}model.layers.{layer}.{name}.{kind}"] = (size,)
        return found

    def state(
        self, config: PublishedTrunk, weights: Weights, vocabulary: Vocabulary, texts: TextTokenizer
    ) -> dict[str, Tensor]:
        head = torch.cat([weights[f"{START}lm_head.weight"], weights[f"{START}lm_head.bias"][:, None]], 1)
        table = rows(vocabulary, config.width + 1, self._spans(head, vocabulary, texts))
        end = closed(vocabulary, [id_of(texts, self.tokens["eos"])])
        inputs = self._spans(weights[f"{START}model.embed_tokens.weight"], vocabulary, texts)
        found = {
            "ids.embedding.weight": rows(vocabulary, config.width, inputs),
            "ids.head.weight": table[:, :-1],
            "ids.head.bias": table[:, -1] + end,
        }
        for kind in ("weight", "bias"):
            found[f"trunk.norm.{kind}"] = weights[f"{START}model.final_layernorm.{kind}"]
            for layer in range(config.depth):
                theirs, ours = f"{START}model.layers.{layer}.", f"trunk.blocks.{layer}."
                attention = [weights[f"{theirs}self_attn.{name}_proj.{kind}"] for name in "qkv"]
                found |= {
                    f"{ours}before.{kind}": weights[f"{theirs}input_layernorm.{kind}"],
                    f"{ours}attention.qkv.{kind}": torch.cat(attention),
                    f"{ours}attention.query_norm.{kind}": weights[f"{theirs}self_attn.q_layernorm.{kind}"],
                    f"{ours}attention.key_norm.{kind}": weights[f"{theirs}self_attn.k_layernorm.{kind}"],
                    f"{ours}attention.out.{kind}": weights[f"{theirs}self_attn.dense.{kind}"],
                    f"{ours}up.{kind}": weights[f"{theirs}mlp.fc1.{kind}"],
                    f"{ours}down.{kind}": weights[f"{theirs}mlp.fc2.{kind}"],
                }
        return found

    def _spans(self, table: Tensor, vocabulary: Vocabulary, texts: TextTokenizer) -> dict[str, Tensor]:
        """Span -> its rows of a table of all the authors' ids."""
        added = len(table) - 1 - vocabulary.codebook_size - ADDED
        end = self.tokens["eos"]  # a text begins with it too
        found = text_spans(table, {"eos": end, "bos": end, "turn": self.tokens["turn"]}, texts)
        found |= {span: table[added + place : added + place + 1] for span, place in MARKS.items()}
        return found | {"image": table[added + ADDED : -1], "mask": table[-1:]}

    def sampling(self, config: PublishedTrunk) -> dict[str, Any]:
        """Those of the authors' README. Their scale w is 1 less: theirs is (1 + w) cond - w uncond."""
        large = isinstance(config, ShowoTrunk) and config.side > 16
        return {"guidance": 6.0, "steps": 50} if large else {"guidance": 2.75, "steps": 18}


FAMILY = _ShowoFamily()
