"""The tokenizer of Infinity (arXiv 2412.04431); code and weights MIT.

VQGAN's network without attention and without convolutions around the quantizer, over scales, bit by bit. A picture has
one of a few shapes, each with scales of its own. The tokenizer of the 8B models folds 2x2 places into a code.
"""

from __future__ import annotations

import re

from ..config import ConvVQConfig, TokenizerConfig
from ..errors import UserError, shown
from ..quantizers.config import BSQ, MOST_BITS
from .family import Family, Settings, Shape, Source, Weights

Grids = tuple[tuple[int, int], ...]

COUNTS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""The authors' names of sizes, in pixels -> how many of the scales a picture of this size has."""
TALL: dict[float, Grids] = {
    1.0: ((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (12, 12), (16, 16), (20, 20), (24, 24), (32, 32), (40, 40), (48, 48),
          (64, 64)),
    1.25: ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24), (35, 28), (45, 36),
           (55, 44), (70, 56)),
    1.333: ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21), (36, 27), (48, 36),
            (60, 45), (72, 54)),
    1.5: ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22), (39, 26), (48, 32), (63, 42),
          (78, 52)),
    1.75: ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20), (42, 24), (56, 32), (70, 40),
           (84, 48)),
    2.0: ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19), (46, 23), (60, 30), (74, 37),
          (90, 45)),
    2.5: ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16), (50, 20), (65, 26), (80, 32),
          (100, 40)),
    3.0: ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15), (54, 18), (72, 24), (90, 30),
          (111, 37)),
}  # fmt: skip
SCHEDULES: dict[float, Grids] = {
    **TALL,
    **{int(1 / ratio * 1000) / 1000: tuple((w, h) for h, w in grids) for ratio, grids in TALL.items() if ratio > 1},
}
"""Height of a picture by its width -> its scales at the largest size, (height, width) in codes. They were written for
these models by their authors."""


def schedule(size: str, ratio: float) -> Grids:
    """The scales of pictures of a size and a height by their width; the nearest shape that there is.

    >>> schedule("0.06M", 0.57)[-1], schedule("1M", 1.0)[-1]
    ((12, 21), (64, 64))
    """
    if size not in COUNTS:
        raise UserError(f"setting pn is {shown(size)}: choose one of {', '.join(COUNTS)}")
    if not ratio > 0:
        raise UserError(f"setting h_div_w_template is {ratio}: give height by width, such as 1 or 0.75")
    return SCHEDULES[min(SCHEDULES, key=lambda one: abs(one - ratio))][: COUNTS[size]]


def whole_schedule(grids: Grids) -> Grids:
    """The scales at the largest size of pictures that have these, or these where no released model has them."""
    return next((whole for whole in SCHEDULES.values() if whole[: len(grids)] == grids), grids)


def _configure(settings: Settings) -> TokenizerConfig:
    bits, fold = settings["vae_type"], 2 if settings["apply_spatial_patchify"] else 1
    grids = schedule(settings["pn"], settings["h_div_w_template"])
    if not 1 <= bits * fold**2 <= MOST_BITS:
        raise UserError(f"setting vae_type is {bits}: {bits * fold**2} bits of a code, there can be 1 to {MOST_BITS}")
    if settings["base_ch"] % 32:
        raise UserError(f"setting base_ch is {settings['base_ch']}: give a multiple of 32, the groups of the norms")
    stride = fold * 2 ** (len(settings["ch_mult"]) - 1)
    return ConvVQConfig(
        image_size=(stride * grids[-1][0], stride * grids[-1][1]),
        channels=settings["base_ch"],
        channel_multipliers=settings["ch_mult"],
        blocks=settings["num_res_blocks"],
        attention="none",
        latent_dim=bits,
        quantizer=BSQ(codebook_size=2**bits),
        quant_kernel=0,
        scales=grids,
        scale_fold=fold,
    )


def _source(name: str, shape: Shape, config: TokenizerConfig) -> Source:
    return Source(name, shape)


def _named(weights: Weights) -> Weights:
    """By the plain names: the authors' layers may stand inside a `conv` or a `norm`."""
    if "encoder.conv_in.conv.weight" not in weights:
        return weights
    return {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", name): one for name, one in weights.items()}


_RELEASED = {"vae_type": 32, "base_ch": 128, "ch_mult": (1, 2, 4, 4, 4), "num_res_blocks": 2}
_RELEASED |= {"apply_spatial_patchify": 0, "pn": "1M", "h_div_w_template": 1.0}

FAMILY = Family(
    released=(
        _RELEASED,
        {**_RELEASED, "vae_type": 16},
        {**_RELEASED, "vae_type": 24},
        {**_RELEASED, "vae_type": 14, "ch_mult": (1, 2, 4, 4), "apply_spatial_patchify": 1},
        {**_RELEASED, "vae_type": 64},
    ),
    configure=_configure,
    source=_source,
    named=_named,
    wrappers=("vae",),
    ignored=("quantizer.lfq.", "quantize.lfq."),
    renamed={"codebook_dim": "vae_type", "encoder_ch_mult": "ch_mult", "decoder_ch_mult": "ch_mult"},
    unused=frozenset(("vae_path", "vqgan_ckpt", "patch_size", "schedule_mode", "codebook_size", "test_mode")),
    files=("infinity_vae_d32reg.pth",),
)
