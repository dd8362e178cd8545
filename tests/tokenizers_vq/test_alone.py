"""A picture does not depend on its batch: not its codes, and not one bit of what is decoded from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, Emu3Config, OpenMagvit2Config, TokenizerConfig
from tokenizers_vq.networks.vit_config import ViTConfig
from tokenizers_vq.quantizers.config import LFQ, VQ

DEBUG = TOKENIZER_PRESETS["debug"]()
FAMILIES: dict[str, TokenizerConfig] = {
    "conv": DEBUG,
    "attention": replace(DEBUG, attention="lowest"),
    "scales": replace(DEBUG, scales=(1, 2, 4, 8)),
    "vit": replace(DEBUG, backbone="vit", vit=ViTConfig(patch=4, width=128, depth=2)),
    "query": replace(TOKENIZER_PRESETS["shapes_query"](), tokens=6, width=32),
    "open_magvit2": OpenMagvit2Config(
        image_size=32, channels=32, channel_multipliers=(1, 2), blocks=1, quantizer=LFQ(codebook_size=64)
    ),
    "emu3_vq": Emu3Config(
        image_size=32,
        channels=32,
        channel_multipliers=(1, 2),
        blocks=1,
        latent_dim=4,
        quantizer=VQ(codebook_size=64, dim=4),
    ),
}


def tokenizer_of(family: str) -> ImageTokenizer:
    torch.manual_seed(0)
    return build_tokenizer(FAMILIES[family]).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_does_not_depend_on_its_batch(family: str) -> None:
    tokenizer = tokenizer_of(family)
    height, width = tokenizer.image_size
    small = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = F.interpolate(small, (height, width), mode="bicubic").clamp(-1, 1)
    codes = tokenizer.encode(images)
    whole = tokenizer.decode(codes)
    for size in (1, 3, 8):
        for start in range(0, 8, size):
            part = slice(start, start + size)
            assert torch.equal(tokenizer.encode(images[part]), codes[part])
            assert torch.equal(tokenizer.decode(codes[part]), whole[part])
