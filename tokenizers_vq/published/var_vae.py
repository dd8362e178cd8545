"""The multi-scale tokenizer of VAR (arXiv 2404.02905); code and weights MIT.

VQGAN's network with q, k and v in one convolution, 3x3 convolutions around the quantizer, and ten scales.
"""

from __future__ import annotations

import re

import torch

from ..config import ConvVQConfig, TokenizerConfig
from ..errors import UserError
from ..quantizers.config import VQ
from .family import Family, Settings, Shape, Source, attention_fields, codebook_source


def _configure(settings: Settings) -> TokenizerConfig:
    factors, sides = settings["ch_mult"], settings["patch_nums"]
    number = len(factors)
    if not sides:
        raise UserError("setting patch_nums is empty: give the sides of the scales, such as [1, 2, 3, 4]")
    return ConvVQConfig(
        image_size=sides[-1] * 2 ** (number - 1),
        channels=settings["ch"],
        channel_multipliers=factors,
        blocks=settings["num_res_blocks"],
        latent_dim=settings["z_channels"],
        quantizer=VQ(codebook_size=settings["vocab_size"], dim=settings["z_channels"]),
        quant_kernel=settings["quant_conv_ks"],
        scales=sides,
        scale_convs=settings["share_quant_resi"],
        **attention_fields([number - 1], number),
    )


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    if name == "quantizer.mean":
        return Source("quantize.embedding.weight", None, lambda tensor: torch.zeros(shape))
    if match := re.search(r"(.*\.)([qkv])\.(weight|bias)$", name):
        width, place = shape[0], "qkv".index(match[2])
        return Source(
            f"{match[1]}qkv.{match[3]}",
            (3 * width, *shape[1:]),
            lambda tensor: tensor[place * width : (place + 1) * width],
        )
    return codebook_source(name, shape) or Source(
        name.replace("quantizer.convs.", "quantize.quant_resi.qresi_ls."), shape
    )


FAMILY = Family(
    released=(
        {
            "vocab_size": 4096,
            "z_channels": 32,
            "ch": 160,
            "ch_mult": (1, 1, 2, 2, 4),
            "num_res_blocks": 2,
            "quant_conv_ks": 3,
            "share_quant_resi": 4,
            "patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),  # 512 px: 1, 2, 3, 4, 6, 9, 13, 18, 24, 32
        },
    ),
    configure=_configure,
    source=_source,
    wrappers=("trainer.vae_local",),
    renamed={"v_patch_nums": "patch_nums"},
    fixed={"using_znorm": False, "quant_resi": 0.5, "double_z": False, "using_sa": True, "using_mid_sa": True}
    | {"in_channels": 3, "default_qresi_counts": 0},
    unused=frozenset(("test_mode",)),
    ignored=("quantize.ema_vocab_hit_SV",),
    files=("vae_ch160v4096z32.pth",),
)
