"""Llama's blocks (arXiv:2302.13971), as published models of texts and pictures have them, and what their files hold.

Positions count on in one line, through texts and pictures. Chameleon (arXiv:2405.09818) adds norms of queries and keys,
and in its larger model moves the norms behind attention and feed-forward part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.errors import Problems, UserError, shown

from ...text import TextTokenizer
from ...vocabulary import Vocabulary
from ..base import Beside, Trunk
from ..cache import KVCache
from ..native import RMSNorm, SwiGLU, rotate
from ..rule import Visibility, attend
from . import PublishedTrunk
from .family import Settings, Shape, Weights, closed, id_of, layers, number, rows, text_spans, whole

HEAD_NORM_EPS = 1e-5
"""Of the norms of queries and keys."""
SETTINGS = frozenset([
    "num_attention_heads", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling", "tie_word_embeddings",
    "text_tokenizer",
])  # fmt: skip
"""Names of the settings that are read."""


@dataclass
class LlamaSizes(PublishedTrunk):
    """Sizes of Llama's blocks."""

    kv_heads: int | None = None
    """Key and value heads; None: as many as heads."""
    rope_base: float = 10_000.0
    eps: float = 1e-6
    """Of the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = Problems()
        problems.check(
            self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0),
            f"trunk.kv_heads is {self.kv_heads}: choose a divisor of trunk.heads ({self.heads})",
        )
        problems.check(
            self.rope_base > 0 and self.eps > 0,
            f"trunk.rope_base is {self.rope_base} and trunk.eps {self.eps}: choose numbers above 0",
        )
        problems.raise_if_any()

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads


@dataclass
class LlamaTrunk(LlamaSizes):
    """A transformer of texts and pictures in one line."""

    in_line = True
    head_norms: bool = False
    """Whether queries and keys are normed, with a scale and a shift of each head."""
    norms_behind: bool = False
    """Whether the norms stand behind attention and feed-forward part, inside the residual branch, and not before."""

    @property
    def captions(self) -> Literal["text", "class", "states"]:
        return "text"

    def build(self) -> Trunk:
        blocks = [Block(self, Attention(self, self.head_norms), self.norms_behind) for _ in range(self.depth)]
        return InLine(self, self.head_size, self.rope_base, blocks, RMSNorm(self.width, self.eps))


Turn = tuple[Tensor, Tensor]
"""Cosine and sine, (B, 1, T, D/2) each."""


class InLine(Trunk):
    """Blocks whose positions count on in one line, and the last norm. `turning` numbers of each head turn."""

    frequencies: Tensor

    def __init__(
        self, config: PublishedTrunk, turning: int, rope_base: float, blocks: Sequence[nn.Module], norm: nn.Module
    ) -> None:
        super().__init__(config)
        pairs = torch.arange(0, turning, 2).float()
        self.register_buffer("frequencies", rope_base ** -(pairs / turning), persistent=False)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        for parameter in self.blocks.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        x: Tensor,
        places: Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        stands: Tensor | None = None,
        condition: Beside | None = None,
    ) -> Tensor:
        dtype = self.precision(x.dtype, x.device)
        angles = (places[..., :1].float() * self.frequencies)[:, None]  # all positions stand in one line
        found: Tensor = self.norm(self.run(x, (angles.cos().to(dtype), angles.sin().to(dtype)), seen, cache))
        return found


class HeadNorm(nn.Module):
    """Norm over each head of (B, H, T, D), with a scale and a shift of each."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads, 1, size))
        self.shift = nn.Parameter(torch.zeros(heads, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=HEAD_NORM_EPS) * self.scale + self.shift


class Attention(nn.Module):
    def __init__(self, config: LlamaSizes, head_norms: bool = False) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_size = config.heads, config.key_heads, config.head_size
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.key_heads) * self.head_size, bias=False)
        self.query_norm = HeadNorm(self.heads, self.head_size) if head_norms else nn.Identity()
        self.key_norm = HeadNorm(self.key_heads, self.head_size) if head_norms else nn.Identity()
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, turn: Any, seen: Visibility, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_size).transpose(1, 2)  # (B, H + 2G, T, D)
        q, k, v = qkv.split([self.heads, self.key_heads, self.key_heads], 1)
        q, k = (self.turned(one, turn).to(v.dtype) for one in (self.query_norm(q), self.key_norm(k)))
        if cache is not None:
            k, v = cache.store(layer, k, v)
        return self.out(attend(q, k, v, seen).transpose(1, 2).reshape(batch, length, -1))

    def turned(self, x: Tensor, turn: Any) -> Tensor:
        """Queries or keys (B, H, T, D), by what the trunk tells its blocks of the positions."""
        return rotate(x, turn)


class Block(nn.Module):
    """`behind`: see `LlamaTrunk.norms_behind`."""

    def __init__(self, config: LlamaSizes, attention: Attention, behind: bool = False) -> None:
        super().__init__()
        self.behind = behind
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.inner)

    def forward(self, x: Tensor, turn: Any, seen: Visibility, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        if self.behind:
            x = x + self.attention_norm(self.attention(x, turn, seen, cache, layer))
            return x + self.mlp_norm(self.mlp(x))
        x = x + self.attention(self.attention_norm(x), turn, seen, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


# --- what files hold, by the names of transformers -------------------------------------------------------------------


def sizes(shapes: Mapping[str, Shape], start: str, settings: Settings, heads: int, eps: float) -> dict[str, Any]:
    """Fields of `LlamaTrunk` of the tensors whose names begin so; `heads` and `eps` unless a setting says them.

    Raises:
        KeyError: a tensor is missing that says the sizes.
        UserError: a setting that is no such number, or rotary positions that are scaled.
    """
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else rope
    if kind != "default":
        raise UserError(f"rope_scaling of the configuration is {shown(kind)}: only plain rotary positions are built")
    width = shapes[f"{start}embed_tokens.weight"][1]
    heads = whole(settings, "num_attention_heads", heads)
    keys = shapes[f"{start}layers.0.self_attn.k_proj.weight"][0] * heads // width
    return {
        "width": width,
        "depth": layers(shapes, f"{start}layers."),
        "heads": heads,
        "inner": shapes[f"{start}layers.0.mlp.gate_proj.weight"][0],
        "kv_heads": None if keys == heads else keys,
        "rope_base": number({**settings, **rope}, "rope_theta", 10_000.0),
        "eps": number(settings, "rms_norm_eps", eps),
    }


def shapes_of(config: LlamaTrunk, start: str, texts: int) -> dict[str, Shape]:
    """The tensors of the transformer with its table and its head of texts; names begin with `start`, but the head's."""
    width, inner = config.width, config.inner
    found: dict[str, Shape] = {
        f"{start}embed_tokens.weight": (texts, width),
        f"{start}norm.weight": (width,),
        "lm_head.weight": (texts, width),
    }
    keys = config.key_heads * config.head_size
    block: dict[str, Shape] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    if config.head_norms:
        for kind in ("weight", "bias"):
            block[f"self_attn.q_norm.{kind}"] = (config.heads, config.head_size)
            block[f"self_attn.k_norm.{kind}"] = (config.key_heads, config.head_size)
    for layer in range(config.depth):
        found |= {f"{start}layers.{layer}.{name}": shape for name, shape in block.items()}
    return found


def state_of(config: LlamaTrunk, start: str, weights: Weights) -> dict[str, Tensor]:
    """The tensors of the trunk, by our names."""
    found = {"trunk.norm.weight": weights[f"{start}norm.weight"]}
    for layer in range(config.depth):
        theirs, ours = f"{start}layers.{layer}.", f"trunk.blocks.{layer}."
        attention = [weights[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv"]
        gate, up = (weights[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        found |= {
            f"{ours}attention_norm.weight": weights[f"{theirs}input_layernorm.weight"],
            f"{ours}attention.qkv.weight": torch.cat(attention),
            f"{ours}attention.out.weight": weights[f"{theirs}self_attn.o_proj.weight"],
            f"{ours}mlp_norm.weight": weights[f"{theirs}post_attention_layernorm.weight"],
            f"{ours}mlp.gate_up.weight": torch.cat([gate, up]),
            f"{ours}mlp.down.weight": weights[f"{theirs}mlp.down_proj.weight"],
        }
        if config.head_norms:
            for short, long in (("q", "query"), ("k", "key")):
                for kind, name in (("weight", "scale"), ("bias", "shift")):
                    norm = weights[f"{theirs}self_attn.{short}_norm.{kind}"]
                    found[f"{ours}attention.{long}_norm.{name}"] = norm[:, None]
    return found


def state_with_codes(
    config: LlamaTrunk,
    start: str,
    weights: Weights,
    vocabulary: Vocabulary,
    texts: TextTokenizer,
    tokens: Mapping[str, str],
    places: Sequence[int],
    elsewhere: Sequence[str] = ("eos",),
) -> dict[str, Tensor]:
    """The tensors of a model whose codes are ids of its texts, by our names.

    Args:
        config: of the trunk.
        start: how the names of the trunk's tensors begin.
        weights: of the file.
        vocabulary: ours.
        texts: names the ids.
        tokens: span -> the token that it is.
        places: the authors' id of each code.
        elsewhere: spans whose tokens no text has, beside the codes.
    """
    embedding, scores = weights[f"{start}embed_tokens.weight"], weights["lm_head.weight"]
    inputs = text_spans(embedding, tokens, texts) | {"image": embedding[places]}
    outputs = text_spans(scores, tokens, texts) | {"image": scores[places]}
    return state_of(config, start, weights) | {
        "ids.embedding.weight": rows(vocabulary, config.width, inputs),
        "ids.head.weight": rows(vocabulary, config.width, outputs),
        "ids.head.bias": closed(vocabulary, [*(id_of(texts, tokens[span]) for span in elsewhere), *places]),
    }


def configuration(settings: Settings) -> Settings:
    """The settings of the transformer in a configuration that may have a group of its own for it."""
    groups = [settings.get(name) for name in ("text_config", "language_config")]
    found: dict[str, Any] = {}
    for group in groups:
        found |= group if isinstance(group, Mapping) else {}
    return {**found, **settings}


def untied(weights: Weights, start: str, settings: Settings) -> Weights:
    """The tensors with a head of their own, where the head is the table and files leave it out."""
    table = weights.get(f"{start}embed_tokens.weight")
    if "lm_head.weight" in weights or table is None or settings.get("tie_word_embeddings") is not True:
        return weights
    return {**weights, "lm_head.weight": table}
