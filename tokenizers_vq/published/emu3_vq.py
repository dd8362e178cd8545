"""The image tokenizer of Emu3 (arXiv 2409.18869), by its authors' names and those of transformers; code Apache-2.0.

It is one of videos. A picture uses what convolutions over time do to its first frame: all their weights are kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config import Emu3Config, TokenizerConfig
from ..errors import UserError
from ..quantizers.config import VQ
from .family import MOST_BLOCKS, Family, Settings, Shape, Source, attention_fields, codebook_source

_RELEASED: dict[str, Any] = {
    "codebook_size": 32768,
    "embed_dim": 4,
    "latent_channels": 4,
    "temporal_downsample_factor": 4,
    "base_channels": 256,
    "channel_multiplier": (1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (3,),
    "image_size": 720,
}
SETTINGS = frozenset(_RELEASED)
"""The authors' names of the settings that are read."""
_AUTHORS = (
    (r"^(encoder|decoder)\.mid\.attn_1\.norm\.", r"\1.middle_block.attn_norm."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn_1|attn\.\d+)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn_1|attn\.\d+)\.proj_out\.", r".\1.out_proj."),
)
"""The authors' names -> those of transformers."""
_TIME = (
    (r"(time_res_stack\.\d+\.conv\d)\.", r"\1.conv."),
    (r"(time_conv\.\d+)\.", r"\1.conv.conv."),
    (r"^(quant_conv|post_quant_conv)\.", r"\1.conv."),
)
"""Further names of ours, which else are the authors'."""
_LINEAR = re.compile(r"\.(q|k|v|out)_proj\.weight$")
"""Linear maps of transformers, which are 1x1 convolutions in the authors' files and here."""


def _configure(settings: Settings) -> TokenizerConfig:
    frames = settings["temporal_downsample_factor"]
    if frames < 1 or frames & (frames - 1) or frames > 64:
        raise UserError(f"setting temporal_downsample_factor is {frames}: give a power of 2 up to 64")
    if settings["embed_dim"] != settings["latent_channels"]:
        raise UserError(
            f"settings embed_dim is {settings['embed_dim']}, latent_channels {settings['latent_channels']}: make them "
            "equal"
        )
    multipliers = settings["channel_multiplier"]
    return Emu3Config(
        image_size=settings["image_size"],
        channels=settings["base_channels"],
        channel_multipliers=multipliers,
        blocks=settings["num_res_blocks"],
        latent_dim=settings["latent_channels"],
        halvings=frames.bit_length() - 1,
        quantizer=VQ(codebook_size=settings["codebook_size"], dim=settings["embed_dim"]),
        **attention_fields(list(settings["attn_resolutions"]), len(multipliers)),
    )


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        name = re.sub(old, new, name)
    return name


def _named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {_renamed(name, _AUTHORS): tensor for name, tensor in weights.items()}
    return {
        name: tensor.flatten(1) if _LINEAR.search(name) and tensor.ndim == 4 else tensor
        for name, tensor in found.items()
    }


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    theirs = _renamed(name, (*_AUTHORS, *_TIME))
    if _LINEAR.search(theirs):
        return Source(theirs, shape[:2], lambda tensor: tensor[:, :, None, None])
    return codebook_source(name, shape) or Source(theirs, shape)


FAMILY = Family(
    released=(_RELEASED,),
    configure=_configure,
    source=_source,
    named=_named,
    ignored=tuple(
        f"{part}.time_res_stack.{block}.norm{norm}.num_batches_tracked"
        for part in ("encoder", "decoder")
        for block in range(MOST_BLOCKS)
        for norm in (1, 2)
    ),
    renamed={"ch": "base_channels", "ch_mult": "channel_multiplier", "z_channels": "latent_channels"},
    fixed={
        "double_z": False,
        "double_latent": False,
        "in_channels": 3,
        "out_channels": 3,
        "out_ch": 3,
        "num_attention_heads": 1,
    },
    unused=frozenset(
        (
            *("model_type", "hidden_size", "attention_dropout", "dtype", "torch_dtype", "architectures"),
            *("transformers_version", "auto_map", "_name_or_path"),
        )
    ),
    files=("model.safetensors",),
)
