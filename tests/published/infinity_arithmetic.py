"""Infinity's arithmetic as functions of its checkpoint, written from descriptions of the authors' code, and
random weights by the published names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import ConvVQConfig
from tokenizers_vq.quantizers.config import BSQ

from .tiny import Weights, random_weights

Grids = tuple[tuple[int, int], ...]

WIDTH, DEPTH, HEADS, INNER, TEXT = 32, 2, 4, 48, 256
SQUARE: Grids = ((1, 1), (2, 2), (4, 4), (6, 6))
"""From 6x6 to 4x4 the two ways of shrinking differ: what a model sees, and what the tokenizer writes."""
WIDE: Grids = ((1, 1), (2, 2), (3, 4), (6, 8))
"""As pictures of 4 by 3 begin; their largest map has 54 x 72 codes."""
WHOLE = {SQUARE: (64, 64), WIDE: (54, 72)}
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 0.0}


def images_of(grids: Grids, channels: int = 6, fold: int = 1) -> ImageTokenizer:
    torch.manual_seed(0)
    config = ConvVQConfig(
        image_size=(2 * fold * grids[-1][0], 2 * fold * grids[-1][1]),
        channels=8,
        channel_multipliers=(1, 1),
        blocks=1,
        attention="none",
        latent_dim=channels,
        quantizer=BSQ(codebook_size=2**channels),
        quant_kernel=0,
        scales=grids,
        scale_fold=fold,
    )
    return build_tokenizer(config).eval()


def infinity_weights(bits: int = 6, chunks: int = 2, width: int = WIDTH) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        "cfg_uncond": (512, TEXT),
        "pos_start": (1, 1, width),
        "text_norm.weight": (TEXT,),
        "text_proj_for_sos.ca.mat_q": (1, TEXT // 128, width * 128 // TEXT),
        "text_proj_for_sos.ca.v_bias": (width,),
        "text_proj_for_sos.ca.mat_kv.weight": (2 * width, TEXT),
        "text_proj_for_sos.ca.proj.weight": (width, width),
        "text_proj_for_sos.ca.proj.bias": (width,),
        "text_proj_for_ca.0.weight": (width, TEXT),
        "text_proj_for_ca.0.bias": (width,),
        "text_proj_for_ca.2.weight": (width, width),
        "text_proj_for_ca.2.bias": (width,),
        "lvl_embed.weight": (15, width),
        "word_embed.weight": (width, bits),
        "word_embed.bias": (width,),
        "shared_ada_lin.1.weight": (6 * width, width),
        "shared_ada_lin.1.bias": (6 * width,),
        "head_nm.ada_lin.1.weight": (2 * width, width),
        "head_nm.ada_lin.1.bias": (2 * width,),
        "head.weight": (2 * bits, width),
        "head.bias": (2 * bits,),
    }
    block: dict[str, tuple[int, ...]] = {
        "ada_gss": (1, 1, 6, width),
        "sa.scale_mul_1H11": (1, HEADS, 1, 1),
        "sa.q_bias": (width,),
        "sa.v_bias": (width,),
        "sa.mat_qkv.weight": (3 * width, width),
        "sa.proj.weight": (width, width),
        "sa.proj.bias": (width,),
        "ca.v_bias": (width,),
        "ca.mat_q.weight": (width, width),
        "ca.mat_q.bias": (width,),
        "ca.mat_kv.weight": (2 * width, width),
        "ca.proj.weight": (width, width),
        "ca.proj.bias": (width,),
        "ca_norm.weight": (width,),
        "ca_norm.bias": (width,),
        "ffn.fc1.weight": (INNER, width),
        "ffn.fc1.bias": (INNER,),
        "ffn.fc2.weight": (width, INNER),
        "ffn.fc2.bias": (width,),
    }
    for layer in range(DEPTH):
        each = DEPTH // chunks
        start = f"block_chunks.{layer // each}.module.{layer % each}." if chunks > 1 else f"blocks.{layer}."
        shapes |= {start + name: shape for name, shape in block.items()}
    weights = random_weights(shapes)
    return {name: 2 * tensor if "mat_q" in name or "scale_mul" in name else tensor for name, tensor in weights.items()}


# --- the authors' arithmetic, as functions of the checkpoint ---------------------------------------------------------


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def resized(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """As a video of one picture, (B, C, h, w)."""
    return F.interpolate(x[:, :, None], (1, *grid), mode="trilinear")[:, :, 0]


def what_is_seen(bits: list[Tensor], grids: Grids, fold: int = 1) -> list[Tensor]:
    """(B, n, D) of each scale but the first: the accumulated codes, from the bits (B, n, D) of those before."""
    total, found = torch.zeros(()), []
    for number, some in enumerate(bits[: len(grids) - 1]):
        height, width = grids[number]
        codes = F.pixel_shuffle(some.float().transpose(1, 2).reshape(len(some), -1, height, width), fold)
        codes = (2 * codes - 1) / math.sqrt(codes.shape[1])
        total = total + resized(codes, (fold * grids[-1][0], fold * grids[-1][1]))
        nearer = resized(total, (fold * grids[number + 1][0], fold * grids[number + 1][1]))
        found.append(F.pixel_unshuffle(nearer, fold).flatten(2).transpose(1, 2))
    return found


def attended(q: Tensor, keys_values: Tensor, heads: int) -> Tensor:
    """One caption: q (n, C), keys and values (m, 2 C)."""
    k, v = (one.reshape(len(one), heads, -1) for one in keys_values.chunk(2, -1))
    q = q.reshape(len(q), heads, -1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def infinity(w: Weights, captions: list[Tensor], seen: list[Tensor], grids: Grids) -> Tensor:
    """Logits (B, n, D, 2) of the first scale and of all whose (B, n, D) is seen; captions (m, F) of any length."""
    blocks = [name.removesuffix("ada_gss") for name in w if name.endswith("ada_gss")]
    out = []
    for number, states in enumerate(captions):
        text = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6) * w["text_norm.weight"]
        pool = "text_proj_for_sos.ca"
        bias = torch.cat([torch.zeros(WIDTH), w[f"{pool}.v_bias"]])
        query = w[f"{pool}.mat_q"]
        keys_values = F.linear(text, w[f"{pool}.mat_kv.weight"], bias)
        sos = linear(w, f"{pool}.proj", attended(query.reshape(1, -1), keys_values, query.shape[1]))  # (1, C)
        text = linear(w, "text_proj_for_ca.2", F.gelu(linear(w, "text_proj_for_ca.0", text), approximate="tanh"))
        x = torch.cat([sos + w["pos_start"][0], *(linear(w, "word_embed", some[number]) for some in seen)])
        scales = torch.cat([torch.full((h * v,), k) for k, (h, v) in enumerate(grids[: len(seen) + 1])])
        x = x + w["lvl_embed.weight"][scales]
        turn = rope(grids[: len(seen) + 1], WHOLE[grids], WIDTH // HEADS)
        sees = scales[:, None] >= scales
        act = F.silu(sos)
        for start in blocks:
            six = linear(w, "shared_ada_lin.1", act).view(6, WIDTH) + w[f"{start}ada_gss"][0, 0]
            gamma1, gamma2, scale1, scale2, shift1, shift2 = six
            y = F.layer_norm(x, (WIDTH,), eps=1e-6) * (scale1 + 1) + shift1
            bias = torch.cat([w[f"{start}sa.q_bias"], torch.zeros(WIDTH), w[f"{start}sa.v_bias"]])
            q, k, v = F.linear(y, w[f"{start}sa.mat_qkv.weight"], bias).view(len(y), 3, HEADS, -1).unbind(1)
            sharp = w[f"{start}sa.scale_mul_1H11"].clamp(max=math.log(100)).exp().view(1, HEADS, 1)
            q, k = turned(F.normalize(q, dim=-1) * sharp, turn), turned(F.normalize(k, dim=-1), turn)
            scores = torch.einsum("qhd,khd->hqk", q, k).masked_fill(~sees, -math.inf).softmax(-1)
            y = linear(w, f"{start}sa.proj", torch.einsum("hqk,khd->qhd", scores, v).flatten(1))
            x = x + y * gamma1
            y = F.layer_norm(x, (WIDTH,), w[f"{start}ca_norm.weight"], w[f"{start}ca_norm.bias"], 1e-6)
            bias = torch.cat([torch.zeros(WIDTH), w[f"{start}ca.v_bias"]])
            keys_values = F.linear(text, w[f"{start}ca.mat_kv.weight"], bias)
            x = x + linear(w, f"{start}ca.proj", attended(linear(w, f"{start}ca.mat_q", y), keys_values, HEADS))
            y = F.layer_norm(x, (WIDTH,), eps=1e-6) * (scale2 + 1) + shift2
            y = linear(w, f"{start}ffn.fc2", F.gelu(linear(w, f"{start}ffn.fc1", y), approximate="tanh"))
            x = x + y * gamma2
        by, shift = linear(w, "head_nm.ada_lin.1", act).view(2, WIDTH)
        out.append(linear(w, "head", F.layer_norm(x, (WIDTH,), eps=1e-6) * (by + 1) + shift).unflatten(-1, (-1, 2)))
    return torch.stack(out)


def rope(grids: Grids, whole: tuple[int, int], size: int) -> Tensor:
    """(L, size / 2) angles."""
    frequency = 1.0 / (10000 ** (torch.arange(0, size // 2, 2).float() / (size // 2)))
    found = []
    for height, width in grids:
        for row in range(height):
            for column in range(width):
                i, j = (
                    round(at * most / side) for at, most, side in ((row, whole[0], height), (column, whole[1], width))
                )
                found.append(torch.cat([i * frequency, j * frequency]))
    return torch.stack(found)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (L, H, D)."""
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    found = torch.empty_like(x)
    found[..., 0::2] = cosine * x[..., 0::2] - sine * x[..., 1::2]
    found[..., 1::2] = sine * x[..., 0::2] + cosine * x[..., 1::2]
    return found


def infinity_greedy(w: Weights, captions: list[Tensor], grids: Grids, scale: float, fold: int = 1) -> Tensor:
    """Bits (B, L, D)."""
    bare, bits = [w["cfg_uncond"][: len(one)] for one in captions], []
    for height, width in grids:
        seen = what_is_seen(bits, grids, fold)
        both = [infinity(w, some, seen, grids)[:, -height * width :] for some in (captions, bare)]
        bits.append((scale * both[0] + (1 - scale) * both[1]).argmax(-1))
    return torch.cat(bits, 1)
