"""Two small tokenizers, and documents of their codes."""

from __future__ import annotations

import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizers.config import VQ
from unitok.config import ObjectiveSettings
from unitok.objectives import objective_class
from unitok.objectives.base import Draw
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(text_size=20, codebook_size=16)
LAYOUT = Layout(((2, 3),))
TOKENIZER = build_tokenizer(TOKENIZER_PRESETS["debug"]())
torch.manual_seed(0)
SCALED = build_tokenizer(
    ConvVQConfig(
        image_size=16,
        stem=4,
        channels=8,
        channel_multipliers=(1,),
        blocks=1,
        attention="none",
        latent_dim=8,
        quantizer=VQ(codebook_size=16, dim=3),
        scales=(1, 2, 4),
    )
).eval()


def settled(objective: str, **settings: float) -> ObjectiveSettings:
    return objective_class(objective).settled(ObjectiveSettings(**settings))


def draws_of(count: int, seed: int = 0, progress: float = 1.0) -> list[Draw]:
    return [Draw(torch.Generator().manual_seed(seed + row), progress) for row in range(count)]
