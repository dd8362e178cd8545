"""Tiny published models with random weights, by the published names."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import ConvVQConfig
from tokenizers_vq.quantizers.config import VQ

Weights = dict[str, Tensor]
CLASSES, CODES, SIDES = 10, 50, (1, 2, 3, 4)


def tokenizer(scales: tuple[int, ...] = ()) -> ImageTokenizer:
    torch.manual_seed(0)
    config = ConvVQConfig(
        image_size=16,
        channels=8,
        channel_multipliers=(1, 1, 2),
        blocks=1,
        latent_dim=8,
        quantizer=VQ(codebook_size=CODES, dim=8),
        scales=scales,
    )
    return build_tokenizer(config).eval()


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> Weights:
    """Weights that keep states near 1 and make neighbouring places differ."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=random)
        is_norm = name.endswith("norm.weight")
        found[name] = 1 + 0.2 * tensor if is_norm else tensor / shape[-1] ** 0.5 if "emb" not in name else tensor
    return found


def llamagen_weights(width: int = 32, depth: int = 2, inner: int = 48, caption: int = 0) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {"cls_embedding.embedding_table.weight": (CLASSES + 1, width)}
    if caption:
        shapes = {
            "cls_embedding.uncond_embedding": (120, caption),
            "cls_embedding.cap_proj.fc1.weight": (width, caption),
            "cls_embedding.cap_proj.fc2.weight": (width, width),
        }
    shapes |= {"tok_embeddings.weight": (CODES, width), "norm.weight": (width,), "output.weight": (CODES, width)}
    for layer in range(depth):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * width, width),
            f"layers.{layer}.attention.wo.weight": (width, width),
            f"layers.{layer}.feed_forward.w1.weight": (inner, width),
            f"layers.{layer}.feed_forward.w3.weight": (inner, width),
            f"layers.{layer}.feed_forward.w2.weight": (width, inner),
            f"layers.{layer}.attention_norm.weight": (width,),
            f"layers.{layer}.ffn_norm.weight": (width,),
        }
    return random_weights(shapes)


def var_weights(shared: bool, width: int = 32, depth: int = 2, heads: int = 4, latent: int = 8) -> Weights:
    length = sum(side * side for side in SIDES)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_start": (1, 1, width),
        "pos_1LC": (1, length, width),
        "word_embed.weight": (width, latent),
        "word_embed.bias": (width,),
        "class_emb.weight": (CLASSES + 1, width),
        "lvl_embed.weight": (len(SIDES), width),
        "head_nm.ada_lin.1.weight": (2 * width, width),
        "head_nm.ada_lin.1.bias": (2 * width,),
        "head.weight": (CODES, width),
        "head.bias": (CODES,),
    }
    if shared:
        shapes |= {"shared_ada_lin.1.weight": (6 * width, width), "shared_ada_lin.1.bias": (6 * width,)}
    for layer in range(depth):
        block: dict[str, tuple[int, ...]] = {
            "attn.scale_mul_1H11": (1, heads, 1, 1),
            "attn.q_bias": (width,),
            "attn.v_bias": (width,),
            "attn.mat_qkv.weight": (3 * width, width),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ffn.fc1.weight": (4 * width, width),
            "ffn.fc1.bias": (4 * width,),
            "ffn.fc2.weight": (width, 4 * width),
            "ffn.fc2.bias": (width,),
        }
        block |= (
            {"ada_gss": (1, 1, 6, width)}
            if shared
            else {"ada_lin.1.weight": (6 * width, width), "ada_lin.1.bias": (6 * width,)}
        )
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    weights = random_weights(shapes)
    return {name: 3 * tensor if "scale_mul" in name else tensor for name, tensor in weights.items()}
