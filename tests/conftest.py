"""Small models that several rooms' tests share. Built from configurations, seeded, never trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import stir
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import ModelConfig, TrunkConfig
from unitok.model import UniTok
from unitok.objectives import get_objective
from unitok.text import train_bpe
from unitok.vocabulary import Vocabulary

CAPTIONS = [
    "a small red circle",
    "a large blue square left of a small green triangle",
    "a large cross above a small yellow circle and right of a small black square",
]

WORDS = (
    "a small large red green blue yellow purple black cyan orange circle square triangle cross star above below left "
    "right of and"
)


def tiny_tokenizer(objective: str = "next_token", seed: int = 0) -> ImageTokenizer:
    """8x8 codes, or for `next_scale` maps of 1, 2, 4 and 8 a side."""
    torch.manual_seed(seed)
    scales = (1, 2, 4, 8) if objective in ("next_scale", "var") else ()
    return build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=scales)).eval()


def tiny_model(objective: str = "next_token", seed: int = 0, **trunk: object) -> UniTok:
    image_tokenizer = tiny_tokenizer(objective, seed)
    text_tokenizer = train_bpe(CAPTIONS, 300)
    config = ModelConfig(
        trunk=TrunkConfig(**{"width": 32, "depth": 2, "heads": 2, **trunk}),  # type: ignore[arg-type]
        objective=objective,
        vocabulary=Vocabulary.of(text_tokenizer.size, image_tokenizer.codebook_size).spans,
        text_length=48,
        ports=get_objective(objective, image_tokenizer).ports(image_tokenizer.layout),
        image_tokenizer=image_tokenizer.fingerprint(),
    )
    torch.manual_seed(seed)
    return stir(UniTok(config, image_tokenizer, text_tokenizer).eval())


@pytest.fixture(scope="session")
def make_model() -> Callable[..., UniTok]:
    return tiny_model


def strip_digests(folder: Path) -> None:
    """Makes a folder one as it was written before folders carried digests."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if path.name in ("config.json", "state.json") and values.pop("files", None):
            path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def without_digests() -> Callable[[Path], None]:
    return strip_digests


def tiny_vision(kind: str, folder: Path) -> str:
    """A tiny model of a kind with its preprocessor file, as transformers writes it; with text, its tokenizer too."""
    import transformers as hf

    torch.manual_seed(0)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Not 2 for the end mark, at which CLIP of transformers looks for the highest id instead.
    marks = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = {**part, **marks, "vocab_size": 64, "max_position_embeddings": 16}
    seen = {**part, "image_size": 24, "patch_size": 8}
    if kind == "clip":
        model: Any = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=seen, projection_dim=16))
    elif kind == "siglip":
        model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=seen))
    elif kind == "vit":
        model = hf.ViTModel(hf.ViTConfig(**seen))
    elif kind == "dinov2_with_registers":
        model = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**{**seen, "image_size": 40, "mlp_ratio": 2}))
    else:
        model = hf.Dinov2Model(hf.Dinov2Config(**{**seen, "image_size": 40, "mlp_ratio": 2}))
    model.save_pretrained(folder)
    size = {"height": 24, "width": 24} if kind == "siglip" else {"shortest_edge": 28}
    pixels = {"size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    crop = {} if kind == "siglip" else {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, **crop}))
    if kind in ("clip", "siglip"):
        vocabulary = {word: number for number, word in enumerate([*marks, "unknown", *WORDS.split()])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="unknown"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        ends = [(name, marks[name]) for name in ("bos_token_id", "eos_token_id")]
        words.post_processor = processors.TemplateProcessing("bos_token_id $A eos_token_id", special_tokens=ends)
        hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad_token_id").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def save_vision() -> Callable[[str, Path], str]:
    return tiny_vision
