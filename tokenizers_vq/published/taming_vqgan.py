"""VQGAN of taming-transformers (arXiv 2012.09841) and of latent-diffusion (arXiv 2112.10752); code and weights MIT.

The network is ours to the key. The Gumbel variant (a convolution scores the codes) draws with noise even when it
encodes; here the best score wins.
"""

from __future__ import annotations

from typing import Any

from ..config import ConvVQConfig, TokenizerConfig
from ..quantizers.config import VQ, Gumbel
from .family import Family, Settings, Shape, Source, codebook_source, taming_encoder

_DD = {
    "z_channels": 256,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4),
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
}
_CHAMELEON = {**_DD, "resolution": 512, "attn_resolutions": ()}
_F8 = {**_DD, "z_channels": 4, "ch_mult": (1, 2, 2, 4), "attn_resolutions": (32,)}
_GUMBEL = {**_DD, "ch_mult": (1, 1, 2, 4), "attn_resolutions": (32,)}


def _released(codebook_size: int, embed_dim: int, ddconfig: dict[str, Any], gumbel: bool = False) -> dict[str, Any]:
    sizes = {"codebook_size": codebook_size, "embed_dim": embed_dim, "gumbel": gumbel, "ddconfig": ddconfig}
    return {**sizes, "image_size": None}  # of the pictures, where it is not the resolution: [height, width]


def _configure(settings: Settings) -> TokenizerConfig:
    kind = Gumbel if settings["gumbel"] else VQ
    quantizer = kind(codebook_size=settings["codebook_size"], dim=settings["embed_dim"])
    network = taming_encoder(settings["ddconfig"])
    if settings["image_size"] is not None:
        network["image_size"] = settings["image_size"]
    return ConvVQConfig(**network, quantizer=quantizer)


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    if name == "quantizer.proj.weight":  # a 1x1 convolution there
        return Source("quantize.proj.weight", (*shape, 1, 1), lambda tensor: tensor[:, :, 0, 0])
    gumbel = name.replace("quantizer.embedding", "quantize.embed").replace("quantizer.proj", "quantize.proj")
    return codebook_source(name, shape) or Source(gumbel, shape)


FAMILY = Family(
    released=(
        _released(1024, 256, _DD),  # ImageNet f16, FacesHQ
        _released(16384, 256, _DD),  # ImageNet f16
        _released(8192, 256, _DD),  # COCO f16
        _released(8192, 256, _GUMBEL, gumbel=True),  # OpenImages f8
        _released(16384, 4, _F8),  # OpenImages f8 of latent-diffusion
        _released(256, 4, _F8),  # the same with few codes
        _released(8192, 256, _CHAMELEON),  # Chameleon (arXiv 2405.09818; its weights have a licence of their own)
    ),
    configure=_configure,
    source=_source,
    wrappers=("state_dict",),
    ignored=("loss.", "model_ema."),
    renamed={"n_embed": "codebook_size"},
    fixed={
        "double_z": False,
        "remap": None,
        "resamp_with_conv": True,
        "use_linear_attn": False,
        "attn_type": "vanilla",
    },
    unused=frozenset(
        ("sane_index_shape", "batch_resize_range", "lr_g_factor", "kl_weight", "temperature_scheduler_config")
    ),
)
