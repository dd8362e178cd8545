"""The image tokenizers of Open-MAGVIT2 (arXiv 2409.04410, code in SEED-Voken); code Apache-2.0.

There the first channel is the least significant bit and depth-to-space reads channels as (row, column, channel). Here
the bits are turned round and the channels reordered once, when the weights are read, so that indices stay the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..config import OpenMagvit2Config, TokenizerConfig
from ..errors import UserError
from ..quantizers.config import LFQ
from .family import Family, Settings, Shape, Source, bit_values, check_bits, only


def _released(codebook_size: int, bits: int, ch_mult: tuple[int, ...], image_size: int) -> dict[str, Any]:
    dd = {
        "ch": 128,
        "ch_mult": ch_mult,
        "num_res_blocks": 4,
        "z_channels": bits,
        "in_channels": 3,
        "out_ch": 3,
        "resolution": 128,
    }
    return {"codebook_size": codebook_size, "embed_dim": None, "image_size": image_size, "ddconfig": dd}


def _configure(settings: Settings) -> TokenizerConfig:
    dd = settings["ddconfig"]
    only(dd, in_channels=3, out_ch=3)
    if settings["embed_dim"] not in (None, dd["z_channels"]):
        raise UserError(
            f"settings embed_dim is {settings['embed_dim']}, z_channels {dd['z_channels']}: make them equal"
        )
    check_bits(dd["z_channels"], settings["codebook_size"])
    return OpenMagvit2Config(
        image_size=settings["image_size"],
        channels=dd["ch"],
        channel_multipliers=dd["ch_mult"],
        blocks=dd["num_res_blocks"],
        quantizer=LFQ(codebook_size=settings["codebook_size"]),
    )


def _to_pixel_shuffle(tensor: Tensor) -> Tensor:
    """Output channels (row, column, channel) -> (channel, row, column)."""
    return tensor.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    if name == "quantizer.library.mask":
        return bit_values(shape, "decoder.conv_in.weight")
    if ".upsample.conv1." in name:
        return Source(name, shape, _to_pixel_shuffle)
    if name.startswith("encoder.conv_out."):
        return Source(name, shape, lambda tensor: tensor.flip(0))
    if name == "decoder.conv_in.weight" or (".adaptive." in name and name.endswith(".weight")):
        return Source(name, shape, lambda tensor: tensor.flip(1))
    return Source(name, shape)


FAMILY = Family(
    released=(
        _released(2**18, 18, (1, 1, 2, 2, 4), 256),
        _released(2**18, 18, (1, 2, 2, 4), 128),
        _released(2**14, 14, (1, 1, 2, 2, 4), 256),
    ),
    configure=_configure,
    source=_source,
    wrappers=("state_dict",),
    ignored=("loss.",),
    ema=True,
    renamed={"n_embed": "codebook_size"},
    fixed={"double_z": False, "remap": None, "num_codebooks": 1},
    unused=frozenset(
        (
            "sane_index_shape",
            "attn_resolutions",
            "sample_minimization_weight",
            "batch_maximization_weight",
            "token_factorization",
            "factorized_bits",
        )
    ),
    files=("imagenet_256_L.ckpt", "imagenet_128_L.ckpt", "pretrain256_16384.ckpt", "pretrain256_262144.ckpt"),
)
