"""A tokenizer as a `VQModel` of diffusers: VQGAN's network (arXiv:2012.09841) by other names, and a codebook of which
the nearest row is taken.

diffusers is not needed to write its folder: `config.json` and the weights are all that it holds.

K = codes, D = width of a latent vector
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer, find_tokenizer
from tokenizers_vq.config import ConvVQConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.families.vq import ConvVQTokenizer
from tokenizers_vq.quantizers.base import Quantizer

from .folders import Export, files

WEIGHTS = "diffusion_pytorch_model.safetensors"
RENAMED = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
"""Our names of tensors inside encoder and decoder -> theirs."""


class Book(NamedTuple):
    """How a quantizer chooses: code k scores z . rows[k] + bias[k], the highest wins, and values[k] is decoded."""

    rows: Tensor
    """(K, D)."""
    bias: Tensor
    """(K,)."""
    values: Tensor
    """(K, V)."""


def _nearest(quantizer: Any) -> Book:
    """The nearest row: |z - e|^2 = |z|^2 - 2 (z . e - |e|^2 / 2). Rows of unit length do not ask how long z is, and the
    nearest corner of a cube has the signs of z."""
    table = quantizer.table()[0]
    return Book(table, -table.square().sum(1) / 2, table)


def _product(quantizer: Any) -> Book:
    table = quantizer.table()[0]
    return Book(table, torch.zeros(len(table)), table)


def _scored(quantizer: Any) -> Book:
    return Book(quantizer.proj.weight, quantizer.proj.bias, quantizer.table()[0])


BOOKS: dict[str, Callable[[Quantizer], Book]] = {
    "vq": _nearest,
    "cosine": _nearest,
    "simvq": _nearest,
    "lfq": _nearest,
    "bsq": _nearest,
    "ibq": _product,
    "gumbel": _scored,
}
"""Kind of quantizer -> how it chooses."""


def export(name: str | Path) -> Export:
    """The `VQModel` of the tokenizer in a folder, of its own or of a model.

    Codes are equal but where two rows are equally near to rounding, pictures within 1e-4 (float32, CPU).

    Raises:
        UserError: no tokenizer, or one that VQModel cannot compute.
    """
    return vq_model(find_tokenizer(name))


@torch.no_grad()
def vq_model(tokenizer: ImageTokenizer) -> Export:
    """See `export`."""
    reasons = unlike_vqgan(tokenizer)
    if reasons:
        raise UserError(
            f"VQModel of diffusers cannot compute this tokenizer ({'; '.join(reasons)}): take --to onnx, which writes "
            "any tokenizer"
        )
    assert isinstance(tokenizer, ConvVQTokenizer) and isinstance(tokenizer.config, ConvVQConfig)
    assert isinstance(tokenizer.quantizer, Quantizer)
    config = tokenizer.config
    state = {name: tensor for name, tensor in tokenizer.state_dict().items() if not name.startswith("quantizer.")}
    levels = len(config.channel_multipliers)
    weights = dict(_renamed(name, tensor, levels) for name, tensor in state.items())
    enter, table, leave = _around(BOOKS[config.quantizer.kind](tokenizer.quantizer), state)
    weights |= {"quantize.embedding.weight": table, "post_quant_conv.weight": leave}
    weights |= {f"quant_conv.{kind}": tensor for kind, tensor in enter.items()}
    attends = [f"encoder.down.{level}.attn.0.norm.weight" in state for level in range(levels)]
    channels = [width for width, _ in config.encoder_levels]
    settings = {
        "_class_name": "VQModel",
        "_diffusers_version": "0.42.1",  # that it was compared with
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": [f"{'Attn' * one}DownEncoderBlock2D" for one in attends],
        "up_block_types": [f"{'Attn' * one}UpDecoderBlock2D" for one in reversed(attends)],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_dim,
        "layers_per_block": config.encoder_levels[0][1],
        "lookup_from_codebook": True,  # `decode` takes codes too
        "mid_block_add_attention": config.attention != "none",
        "norm_num_groups": next(iter(_groups(tokenizer))),
        "norm_type": "group",
        "num_vq_embeddings": len(table),
        "sample_size": max(config.size),
        "scaling_factor": 1.0,
        "vq_embed_dim": table.shape[1],
    }
    return Export(
        "diffusers.VQModel", "codes and pictures (within 1e-4)", files(WEIGHTS, weights, {"config.json": settings})
    )


def unlike_vqgan(tokenizer: ImageTokenizer) -> list[str]:
    """Why VQGAN's network, as others build it, computes something else; empty if it does not."""
    config = tokenizer.config
    if not isinstance(config, ConvVQConfig):
        return [f"it is of family {config.family}"]
    if config.backbone != "conv":
        return [f"its backbone is {config.backbone}"]
    encoder, decoder = config.encoder_levels, config.decoder_levels
    blocks = encoder[0][1]
    checks = [
        (config.stem == 1, f"stem is {config.stem}"),
        (not config.patchwise, "it is patchwise"),
        (not config.scales, "it has several scales"),
        (config.quant_kernel == 1, f"quant_kernel is {config.quant_kernel}"),
        (config.quantizer.kind in BOOKS, f"its quantizer is {config.quantizer.kind}"),
        (all(n == blocks for _, n in encoder), "its levels differ in their numbers of blocks"),
        (all(n == blocks + 1 for _, n in decoder), "its decoder has not one block a level more than the encoder"),
        ([c for c, _ in encoder] == [c for c, _ in decoder], "its decoder has other channels than the encoder"),
        (len(_groups(tokenizer)) == 1, f"its norms have {_listed(_groups(tokenizer))} groups"),
    ]
    return [reason for fits, reason in checks if not fits]


def _groups(tokenizer: ImageTokenizer) -> set[int]:
    """The numbers of groups that its norms have."""
    return {module.num_groups for module in tokenizer.modules() if isinstance(module, nn.GroupNorm)}


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _renamed(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """Theirs for our name and tensor. Our up.0 runs last, theirs first; attention is linear there."""
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", name)
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name, tensor[:, :, 0, 0] if re.search(r"\.to_(q|k|v|out\.0)\.weight$", name) else tensor


def _around(book: Book, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(weight and bias of the convolution before, table, weight of the convolution behind) for which the nearest row of
    the table is the code of the highest score.

    Where that is the nearest of the values anyway, they are the table. Else a row is [rows, values, rest] beside a
    latent [z, 0, 0]: the distance is |z|^2 - 2 z . rows + |row|^2, and `rest` makes |row|^2 = a constant - 2 bias. The
    convolution behind sees the values alone.
    """
    enter = {kind: state[f"quant_conv.{kind}"] for kind in ("weight", "bias")}
    leave = state["post_quant_conv.weight"]
    same = book.rows is book.values
    if same and torch.equal(book.bias, -book.values.square().sum(1) / 2):
        return enter, book.values, leave
    parts = [book.rows] if same else [book.rows, book.values]
    length = sum(one.square().sum(1) for one in parts) + 2 * book.bias
    table = torch.cat([*parts, (length.max() - length).clamp(min=0).sqrt()[:, None]], 1)
    added = table.shape[1] - book.rows.shape[1]
    enter = {kind: torch.cat([one, one.new_zeros(added, *one.shape[1:])]) for kind, one in enter.items()}
    before = 0 if same else book.rows.shape[1]
    return enter, table, F.pad(leave, (0, 0, 0, 0, before, 1))
