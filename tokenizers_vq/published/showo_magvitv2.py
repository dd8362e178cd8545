"""The MAGVIT-v2 tokenizer of Show-o (arXiv 2408.12528, LFQ of arXiv 2310.05737); code Apache-2.0.

VQGAN's network with other widths and depths in the decoder than in the encoder; 13 bits, the first channel is the most
significant.
"""

from __future__ import annotations

from ..config import ConvVQConfig, TokenizerConfig
from ..errors import UserError
from ..quantizers.config import LFQ
from .family import Family, Settings, Shape, Source, attention_fields, bit_values, check_bits


def _configure(settings: Settings) -> TokenizerConfig:
    encoder, decoder = settings["encoder"], settings["decoder"]
    for name in ("ch", "z_channels", "resolution"):
        if encoder[name] != decoder[name]:
            raise UserError(
                f"settings encoder.{name} is {encoder[name]}, decoder.{name} {decoder[name]}: make them equal"
            )
    check_bits(encoder["z_channels"], settings["codebook_size"])
    number, size = len(encoder["ch_mult"]), settings["image_size"]
    nominal = encoder["resolution"] or size
    levels = [level for level in range(number) if nominal // 2**level in encoder["attn_resolutions"]]
    return ConvVQConfig(
        image_size=size,
        channels=encoder["ch"],
        channel_multipliers=encoder["ch_mult"],
        decoder_multipliers=decoder["ch_mult"],
        blocks_of_levels=encoder["num_res_blocks"],
        decoder_blocks_of_levels=decoder["num_res_blocks"],
        latent_dim=encoder["z_channels"],
        quantizer=LFQ(codebook_size=settings["codebook_size"]),
        **attention_fields(levels, number),
    )


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    if name == "quantizer.library.mask":
        return bit_values(shape, "decoder.conv_in.weight")
    name = "encoder." + name if name.startswith("quant_conv") else name
    return Source("decoder." + name if name.startswith("post_quant_conv") else name, shape)


_COMMON = {"ch": 128, "z_channels": 13, "attn_resolutions": (5,), "resolution": None}

FAMILY = Family(
    released=(
        {
            "codebook_size": 8192,
            "image_size": 256,
            "encoder": {**_COMMON, "ch_mult": (1, 2, 2, 4, 4), "num_res_blocks": (4, 3, 4, 3, 4)},
            "decoder": {**_COMMON, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": (4, 4, 3, 4, 3)},
        },
    ),
    configure=_configure,
    source=_source,
    ignored=("quantize.embedding", "quantize.power_vals"),
    fixed={"double_z": False, "in_ch": 3, "out_ch": 3},
    files=("pytorch_model.safetensors", "pytorch_model.bin"),
)
