"""Small models that read pictures by an encoder, and documents of theirs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tokenizers_vq.images import to_float
from unitok.modalities import Picture
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.reader.config import ReaderSettings
from unitok.reader.encoders import read_encoder
from unitok.sample.jobs import job_for
from unitok.sample.pipeline import GREEDY, run
from unitok.sequence import Document, lay_out
from unitok.tasks import TASKS, asked, documents, modalities_of
from unitok.train.tuning.start import ReaderStart

QUERIES = 5
LANGUAGE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LANGUAGE |= {"num_attention_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True}


def reading(
    model: UniTok,
    encoder: str = "latents",
    connector: Any = "mlp",
    fusion: Any = "sequence",
    tiles: int = 1,
    every: int = 1,
    **changed: Any,
) -> UniTok:
    """A model like this one that reads pictures, with weights that make everything count."""
    own: dict[str, Any] = {"connector": connector, "queries": QUERIES, "fusion": fusion, "tiles": tiles, "every": every}
    settings = ReaderSettings(encoder=encoder, **own)
    config, read = read_encoder(settings, model.image_tokenizer)
    able = tuple(task for task in TASKS if modalities_of([task]) <= model.modalities().keys())
    config = dataclasses.replace(model.config, reader=config, tasks=able, **changed)
    torch.manual_seed(3)
    found = UniTok(config, model.image_tokenizer, model.text_tokenizer)
    ReaderStart(read, None, []).begin(found)
    for weight in found.parameters():
        if weight.ndim == 2 and weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    for name, weight in found.named_parameters():
        if ".gated.gate_" in name:
            torch.nn.init.constant_(weight, 0.7)
    return found.eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Noise around a colour of each."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.randint(200, (count, 3, 1, 1), generator=random)
    return (colours + torch.randint(56, (count, 3, 32, 32), generator=random)).to(torch.uint8)


def values(model: UniTok, count: int, seed: int = 0) -> list[Picture]:
    images = pictures(count, seed)
    codes = model.image_tokenizer.encode(to_float(images))
    return [Picture(image, one) for image, one in zip(images, codes, strict=True)]


def made(model: UniTok, task: str, record: dict[str, Any]) -> Document:
    draws = [Draw(torch.Generator().manual_seed(0))]
    return documents([task], [record], draws, model.modalities(), {}, {task: 0})[0]


@torch.inference_mode()
def states(model: UniTok, *items: Document) -> torch.Tensor:
    return model.states(lay_out([items], pad=model.vocabulary.pad))[0]


@torch.inference_mode()
def assert_likeliest(model: UniTok, task: str, field: str, records: list[dict[str, Any]]) -> list[list[int]]:
    """What the engine writes for records, side by side, is what one pass finds likeliest at each position. Gives it."""
    modalities, longest = model.modalities(), model.config.text_length
    jobs = [job_for(*asked(task, record, modalities), 0, GREEDY) for record in records]
    texts = [found[0].tolist() for found in run(model, jobs)]
    for record, ids in zip(records, texts, strict=True):
        last = states(model, made(model, task, {**record, field: ids}))[-1 - len(ids) :]
        found = model.ids.scores(last, model.vocabulary.text_range).argmax(-1).tolist()
        assert found[:longest] == [*ids, model.vocabulary.eos][:longest]
    return texts
