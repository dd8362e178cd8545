"""Small models that several rooms' tests share. Built from configurations, seeded, never trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import ModelConfig, TrunkConfig
from unitok.model import UniTok
from unitok.objectives import get_objective
from unitok.text import train_bpe

CAPTIONS = [
    "a small red circle",
    "a large blue square left of a small green triangle",
    "a large cross above a small yellow circle and right of a small black square",
]


def tiny_tokenizer(objective: str = "next_token", seed: int = 0) -> ImageTokenizer:
    """8x8 codes, or for `next_scale` maps of 1, 2, 4 and 8 a side."""
    torch.manual_seed(seed)
    scales = (1, 2, 4, 8) if objective == "next_scale" else ()
    return build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=scales)).eval()


def tiny_model(objective: str = "next_token", seed: int = 0, **trunk: object) -> UniTok:
    image_tokenizer = tiny_tokenizer(objective, seed)
    text_tokenizer = train_bpe(CAPTIONS, 300)
    config = ModelConfig(
        trunk=TrunkConfig(**{"width": 32, "depth": 2, "heads": 2, **trunk}),  # type: ignore[arg-type]
        objective=objective,
        text_size=text_tokenizer.size,
        codebook_size=image_tokenizer.codebook_size,
        text_length=48,
        features=get_objective(objective, image_tokenizer).features,
        image_tokenizer=image_tokenizer.fingerprint(),
    )
    torch.manual_seed(seed)
    model = UniTok(config, image_tokenizer, text_tokenizer).eval()
    # Fresh weights predict nearly the same everywhere; larger ones make a wrong mask or place visible.
    for parameter in model.transformer.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., UniTok]:
    return tiny_model
