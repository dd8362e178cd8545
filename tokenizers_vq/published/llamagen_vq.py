"""The tokenizers of LlamaGen (arXiv 2406.06525); code and weights MIT.

VQGAN's network under other names, the decoder's levels in the order they run; latents and codes on the unit sphere.
"""

from __future__ import annotations

import re
from typing import Any

from ..config import ConvVQConfig, TokenizerConfig
from ..quantizers.config import Cosine
from .family import Family, Settings, Shape, Source, attention_fields, codebook_source


def _released(ch_mult: tuple[int, ...]) -> dict[str, Any]:
    return {
        "codebook_size": 16384,
        "codebook_embed_dim": 8,
        "ch": 128,
        "ch_mult": ch_mult,
        "num_res_blocks": 2,
        "z_channels": 256,
        "image_size": 256,
    }


def _configure(settings: Settings) -> TokenizerConfig:
    number = len(settings["ch_mult"])
    return ConvVQConfig(
        image_size=settings["image_size"],
        channels=settings["ch"],
        channel_multipliers=settings["ch_mult"],
        blocks=settings["num_res_blocks"],
        latent_dim=settings["z_channels"],
        quantizer=Cosine(codebook_size=settings["codebook_size"], dim=settings["codebook_embed_dim"]),
        **attention_fields([number - 1], number),
    )


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    lowest = config.stride.bit_length() - 1  # of levels 0 to lowest
    name = re.sub(r"\.up\.(\d+)", lambda level: f".conv_blocks.{lowest - int(level[1])}", name)
    name = name.replace(".down.", ".conv_blocks.").replace(".block.", ".res.")
    for ours, theirs in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
        name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
    return codebook_source(name, shape) or Source(name, shape)


FAMILY = Family(
    released=(_released((1, 1, 2, 2, 4)), _released((1, 2, 2, 4))),  # VQ-16, VQ-8
    configure=_configure,
    source=_source,
    wrappers=("ema", "model", "state_dict"),
    renamed={"encoder_ch_mult": "ch_mult", "decoder_ch_mult": "ch_mult"},
    fixed={
        "codebook_l2_norm": True,
        "norm_type": "group",
        "resamp_with_conv": True,
        "in_channels": 3,
        "out_channels": 3,
    },
    unused=frozenset(("vq_model", "codebook_show_usage", "commit_loss_beta", "entropy_loss_ratio", "dropout_p")),
    ignored=("quantize.codebook_used",),
    files=("vq_ds16_c2i.pt", "vq_ds16_t2i.pt"),
)
