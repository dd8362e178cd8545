"""The tokenizers of IBQ (arXiv 2412.02692, code in SEED-Voken); code Apache-2.0.

VQGAN's network, deeper; the code is the row of largest inner product, not the nearest.
"""

from __future__ import annotations

from typing import Any

from ..config import ConvVQConfig, TokenizerConfig
from ..quantizers.config import IBQ
from .family import Family, Settings, Shape, Source, taming_encoder

_DD = {
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 4,
    "attn_resolutions": (16,),
    "resolution": 256,
    "z_channels": 256,
    "in_channels": 3,
    "out_ch": 3,
}


def _released(codebook_size: int) -> dict[str, Any]:
    return {"codebook_size": codebook_size, "embed_dim": 256, "ddconfig": _DD}


def _configure(settings: Settings) -> TokenizerConfig:
    quantizer = IBQ(codebook_size=settings["codebook_size"], dim=settings["embed_dim"])
    return ConvVQConfig(**taming_encoder(settings["ddconfig"]), quantizer=quantizer)


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    return Source(name.replace("quantizer.", "quantize."), shape)


FAMILY = Family(
    released=tuple(_released(size) for size in (1024, 8192, 16384, 262144)),
    configure=_configure,
    source=_source,
    wrappers=("state_dict",),
    ignored=("loss.",),
    ema=True,
    renamed={"n_embed": "codebook_size"},
    fixed={
        "double_z": False,
        "remap": None,
        "l2_normalize": False,
        "cosine_similarity": False,
        "resamp_with_conv": True,
    },
    unused=frozenset(
        (
            "sane_index_shape",
            "use_entropy_loss",
            "entropy_temperature",
            "sample_minimization_weight",
            "batch_maximization_weight",
        )
    ),
    files=(
        *(f"imagenet256_{size}.ckpt" for size in (1024, 8192, 16384, 262144)),
        *("IBQ_pretrain_16384.ckpt", "IBQ_pretrain_262144.ckpt"),
    ),
)
