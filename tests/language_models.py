"""Small language models of each family, and ours on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import ModelConfig, ObjectiveSettings
from unitok.model import UniTok
from unitok.objectives import get_objective, objective_class
from unitok.objectives.base import Draw
from unitok.ports import add_features
from unitok.sequence import Document, lay_out
from unitok.tasks import TASKS, documents
from unitok.text import TextTokenizer
from unitok.trunk.hf import LANGUAGE_MODELS
from unitok.trunk.hf.reading import LanguageModel
from unitok.vocabulary import Vocabulary

FAMILIES = list(LANGUAGE_MODELS)

WORDS = ["a", "small", "large", "red", "green", "blue", "circle", "square", "left", "right", "of", "and"]

ROWS = 24
"""Of the language model's embedding: more than its tokenizer has ids."""

PARTS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": ROWS}

MARKS = {"bos_token_id": 13, "eos_token_id": 12, "pad_token_id": None}

NUMBERS = {task: number for number, task in enumerate(TASKS)}


def settings_of(family: str) -> dict[str, Any]:
    grouped = {"intermediate_size": 48, "num_key_value_heads": 1, "max_position_embeddings": 64}
    own: dict[str, dict[str, Any]] = {
        "gemma": {"head_dim": 24},
        "gemma3_text": {
            "head_dim": 16,
            "query_pre_attn_scalar": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "gpt2": {"n_positions": 64},
        "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
        "qwen3": {"head_dim": 24},
    }
    found = {"model_type": family, **PARTS, **MARKS, **(grouped if family != "gpt2" else {}), **own.get(family, {})}
    return found


def word_tokenizer(words: list[str] = WORDS) -> TextTokenizer:
    """One id a word, and the marks of the language model behind them."""
    names = [*words, "<end>", "<begin>"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(tokenizer)


def save(family: str, folder: Path, **changed: Any) -> Any:
    """Writes a language model as its authors do; gives it, with weights that make a wrong mask or place visible."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**settings_of(family), **changed})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=float("norm" in name and "gemma" not in family), std=0.2)
    model.save_pretrained(folder)
    word_tokenizer().save(folder)
    return model


def image_tokenizer(objective: str) -> ImageTokenizer:
    """4x4 codes, or maps of 1, 2 and 4 a side."""
    scales = (1, 2, 4) if objective_class(objective).sets_scales else ()
    torch.manual_seed(0)
    return build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), image_size=16, scales=scales)).eval()


def model_on(language: LanguageModel, objective: str) -> UniTok:
    """A model with the tiny image tokenizer of an objective on a language model."""
    images, texts = image_tokenizer(objective), language.texts or word_tokenizer()
    vocabulary = Vocabulary.of(texts.size, images.codebook_size)
    config = ModelConfig(
        language.trunk,
        objective,
        vocabulary.spans,
        16,
        images.fingerprint(),
        get_objective(objective, images).ports(images.layout),
        ("text_to_image", "image_to_text", "interleaved"),
    )
    torch.manual_seed(1)
    model = UniTok(config, images, texts)
    language.fill(model)
    return model.eval()


def documents_of(model: UniTok) -> list[Document]:
    """A document that draws a picture, and one of texts and a picture that is learned and followed."""
    codes = torch.arange(model.layout.length) % model.vocabulary.codebook_size
    parts = [("text", "a red circle"), ("image", codes), ("text", "and a blue square")]
    records: list[dict[str, Any]] = [{"caption": "a small blue square", "image": codes}, {"parts": parts}]
    draws = [Draw(torch.Generator().manual_seed(seed), 0.0) for seed in (0, 1)]
    found = model.modalities(settings=type(model.objective).settled(ObjectiveSettings()))
    return documents(["text_to_image", "interleaved"], records, draws, found, {}, NUMBERS)


def through_the_cache(model: UniTok, item: Document) -> torch.Tensor:
    """Last states (T, C) of a document that is read group by group, in the second row of a cache."""
    batch = lay_out([[item]], pad=model.vocabulary.pad)
    x = add_features(model.ids(batch.inputs), model.ports, batch.features)
    cache, steps, start = model.trunk.cache(2, len(item)), [], 0
    for n in item.groups.unique_consecutive(return_counts=True)[1].tolist():
        here, seen = slice(start, start + n), cache.extend([1], n)
        stands = None if batch.stands is None else batch.stands[:, here]
        steps.append(model.trunk(x[:, here], batch.places[:, here], seen, cache, stands)[0])
        start += n
    return torch.cat(steps)
