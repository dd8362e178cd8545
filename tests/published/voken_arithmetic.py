"""The arithmetic of Open-MAGVIT2's and IBQ's generators as functions of their checkpoints, written from descriptions of
the authors' code, and random weights by the published names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import OpenMagvit2Config
from tokenizers_vq.quantizers.config import LFQ

from .test_generators import LABELS, root_mean_square, rope, turn
from .tiny import CLASSES, CODES, Weights, random_weights

PRE, POST, SIDE, HEADS, WIDTH, INNER = 4, 16, 4, 4, 32, 48
LENGTH = SIDE * SIDE


def lfq_tokenizer() -> ImageTokenizer:
    """64 codes, of which each is 6 bits."""
    torch.manual_seed(0)
    quantizer = LFQ(codebook_size=PRE * POST)
    config = OpenMagvit2Config(image_size=16, channels=32, channel_multipliers=(1, 1, 2), blocks=1, quantizer=quantizer)
    return build_tokenizer(config).eval()


def block_shapes(start: str, depth: int, moved: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(depth):
        found |= {
            f"{start}.{layer}.attention.wqkv.weight": (3 * WIDTH, WIDTH),
            f"{start}.{layer}.attention.wo.weight": (WIDTH, WIDTH),
            f"{start}.{layer}.feed_forward.w1.weight": (INNER, WIDTH),
            f"{start}.{layer}.feed_forward.w3.weight": (INNER, WIDTH),
            f"{start}.{layer}.feed_forward.w2.weight": (WIDTH, INNER),
            f"{start}.{layer}.attention_norm.weight": (WIDTH,),
            f"{start}.{layer}.ffn_norm.weight": (WIDTH,),
        }
        if moved:
            found[f"{start}.{layer}.ada_lin.1.weight"] = (6 * WIDTH, WIDTH)
            found[f"{start}.{layer}.ada_lin.1.bias"] = (6 * WIDTH,)
    return found


def magvit_weights() -> Weights:
    return random_weights(
        {
            "pre_emb.weight": (PRE, WIDTH),
            "post_emb.weight": (POST, WIDTH),
            "class_emb.embedding_table.weight": (CLASSES + 1, WIDTH),
            "norm.weight": (WIDTH,),
            "head.0.weight": (PRE, WIDTH),
            "head.1.weight": (POST, WIDTH),
            **block_shapes("spatial_blocks", 2),
            **block_shapes("factorized_blocks", 2),
        }
    )


def ibq_weights() -> Weights:
    return random_weights(
        {
            "tok_emb.weight": (CODES, WIDTH),
            "class_emb.embedding_table.weight": (CLASSES + 1, WIDTH),
            "head_nm.rmsnorm.weight": (WIDTH,),
            "head_nm.ada_lin.1.weight": (2 * WIDTH, WIDTH),
            "head_nm.ada_lin.1.bias": (2 * WIDTH,),
            "head.weight": (CODES, WIDTH),
            **block_shapes("blocks", 2, moved=True),
        }
    )


# --- the authors' arithmetic -----------------------------------------------------------------------------------------


def block(w: Weights, start: str, x: Tensor, table: Tensor, six: list[Tensor] | None = None) -> Tensor:
    """x (B, T, C) through a causal block; `six` (B, 1, C) each: gammas, scales, shifts."""
    batch, length, width = x.shape
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six or [torch.ones(1)] * 2 + [torch.zeros(1)] * 4
    h = root_mean_square(w, f"{start}attention_norm", x) * (1 + scale1) + shift1
    q, k, v = (
        one.reshape(batch, length, HEADS, -1) for one in (h @ w[f"{start}attention.wqkv.weight"].T).split(width, -1)
    )
    q, k = turn(q, table), turn(k, table)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // HEADS)
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -math.inf).softmax(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", scores, v).reshape(batch, length, width)
    x = x + gamma1 * (out @ w[f"{start}attention.wo.weight"].T)
    h = root_mean_square(w, f"{start}ffn_norm", x) * (1 + scale2) + shift2
    gate, up = h @ w[f"{start}feed_forward.w1.weight"].T, h @ w[f"{start}feed_forward.w3.weight"].T
    return x + gamma2 * ((F.silu(gate) * up) @ w[f"{start}feed_forward.w2.weight"].T)


def magvit_states(w: Weights, labels: list[int], pre: Tensor, post: Tensor) -> Tensor:
    """States (B, n + 1, C) of the class and of n codes given as (B, n) sub-tokens."""
    classes = w["class_emb.embedding_table.weight"][torch.tensor(labels)][:, None]
    x = torch.cat([classes, w["pre_emb.weight"][pre] + w["post_emb.weight"][post]], 1)
    table = rope(HEADS, WIDTH, SIDE, 1)[: x.shape[1]]
    for layer in range(2):
        x = block(w, f"spatial_blocks.{layer}.", x, table)
    return x


def magvit_heads(w: Weights, states: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, n, PRE), and (B, n, POST) behind the first sub-tokens (B, n)."""
    inside = torch.stack([states, w["pre_emb.weight"][pre]], 2).flatten(0, 1)
    table = rope(HEADS, WIDTH, SIDE, 1)[:2]
    for layer in range(2):
        inside = block(w, f"factorized_blocks.{layer}.", inside, table)
    inside = root_mean_square(w, "norm", inside).view(*pre.shape, 2, -1)
    return inside[:, :, 0] @ w["head.0.weight"].T, inside[:, :, 1] @ w["head.1.weight"].T


def magvit_greedy(w: Weights, scales: list[float]) -> Tensor:
    """Codes (3, LENGTH), each sub-token guided by its own scale."""
    nothing = [CLASSES] * 3
    pre = post = torch.zeros(3, 0, dtype=torch.int64)
    for _ in range(LENGTH):
        states = [magvit_states(w, labels, pre, post)[:, -1:] for labels in (LABELS, nothing)]
        guess = torch.zeros(3, 1, dtype=torch.int64)
        first, first_bare = (magvit_heads(w, one, guess)[0] for one in states)
        guess = (first_bare + (first - first_bare) * scales[0]).argmax(-1)
        second, second_bare = (magvit_heads(w, one, guess)[1] for one in states)
        pre = torch.cat([pre, guess], 1)
        post = torch.cat([post, (second_bare + (second - second_bare) * scales[1]).argmax(-1)], 1)
    return pre + PRE * post


def ibq(w: Weights, labels: list[int], codes: Tensor) -> Tensor:
    """Logits (B, n + 1, V) of the class and n codes."""
    classes = w["class_emb.embedding_table.weight"][torch.tensor(labels)][:, None]
    x, act = torch.cat([classes, w["tok_emb.weight"][codes]], 1), F.silu(classes)
    table = rope(HEADS, WIDTH, SIDE, 1)[: x.shape[1]]
    for layer in range(2):
        start = f"blocks.{layer}."
        moving = F.linear(act, w[f"{start}ada_lin.1.weight"], w[f"{start}ada_lin.1.bias"])
        x = block(w, start, x, table, list(moving.chunk(6, -1)))
    scale, shift = F.linear(act, w["head_nm.ada_lin.1.weight"], w["head_nm.ada_lin.1.bias"]).chunk(2, -1)
    return (root_mean_square(w, "head_nm.rmsnorm", x) * (1 + scale) + shift) @ w["head.weight"].T
