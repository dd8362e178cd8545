"""Every task over a language model: each row of the task table is learned, and done once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import save
from tuning_runs import train

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.images import to_float
from unitok.config import ObjectiveSettings, TasksConfig
from unitok.data.loader import read_in_order
from unitok.data.mixture import Slot
from unitok.data.open import open_data
from unitok.data.records import Record, RecordDataset
from unitok.modalities import TEXTS
from unitok.model import UniTok
from unitok.objectives import objective_class
from unitok.sample.inpainting import inpaint
from unitok.sample.performing import perform
from unitok.sampling import SampleSettings
from unitok.tasks import FIELDS, TASKS, WITH_HOLES, ends_in, given_fields
from unitok.train.config import RunConfig, SourceConfig
from unitok.train.log import read_log
from unitok.train.packing import Packer, encode_pixels

RECORDS = {
    "shapes?task=groundings": [
        "text_to_image",
        "image_to_text",
        "text_only",
        "ground",
        "describe",
        "ground_caption",
        "layout_to_image",
        "inpaint",
        "pointed_inpaint",
        "pointed_text_to_image",
    ],
    "shapes?task=questions": ["question", "pointed_question"],
    "shapes?task=edit": ["edit", "pointed_edit"],
    "shapes?task=planned_story": ["interleaved"],
}
"""Rendered records -> the tasks that they have the fields of."""


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_every_task_is_learned_and_done(objective: str, tmp_path: Path) -> None:
    scales = (1, 2, 4, 8) if objective_class(objective).sets_scales else ()
    network = TOKENIZER_PRESETS["debug"]()
    network = replace(network, scales=scales, scale_residual=False) if scales else network
    torch.manual_seed(0)
    build_tokenizer(network).save_pretrained(tmp_path / "tokenizer")
    assert sorted(task for tasks in RECORDS.values() for task in tasks) == sorted(TASKS)
    save("llama", tmp_path / "llama", max_position_embeddings=512)
    train(
        "generator",
        tmp_path / "out",
        steps=1,
        data=[
            SourceConfig(data=data, share=len(tasks), tasks=dict.fromkeys(tasks, 1.0))
            for data, tasks in RECORDS.items()
        ],
        tasks=TasksConfig(),
        image_tokenizer=tmp_path / "tokenizer",
        objective=objective,
        trunk=f"hf:{tmp_path / 'llama'}",
        text_length=16,
        run=RunConfig(steps=1, batch_size=32, log_every=1, device="cpu", precision="fp32", sample_every=0, workers=0),
    )
    (entry,) = read_log(tmp_path / "out/log.jsonl")
    assert all(math.isfinite(entry[f"loss/{task}"]) for task in TASKS), "all in one step of the command"
    model = UniTok.from_pretrained(tmp_path / "out")
    assert model.config.tasks == tuple(TASKS)
    for data, tasks in RECORDS.items():
        records = open_data(data, model.image_tokenizer.image_size)
        for task in tasks:
            before, after = losses_of_a_step(model, task, records)
            assert after < before, task
            assert_of_its_kind(done(model, task, records[0]), task)


def losses_of_a_step(model: UniTok, task: str, records: RecordDataset) -> tuple[float, float]:
    """The loss of two records of a task, before a step along its gradient and after it."""
    (batch,) = read_in_order(records, batch_size=2, stop=2)
    encode_pixels(batch, lambda images: list(model.image_tokenizer.encode(to_float(images))))
    settings = type(model.objective).settled(ObjectiveSettings())
    slots = [Slot(0, task)] * 2
    packed = Packer(model.modalities(settings=settings), slots, {}, model.vocabulary.pad, 0).pack(batch).batch
    found = []
    for _ in range(2):
        loss = model(packed).sum() / len(packed.at)
        found.append(loss.item())
        gradients = torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
        with torch.no_grad():
            learned = (weight for weight in model.parameters() if weight.requires_grad)
            for weight, gradient in zip(learned, gradients, strict=True):
                weight -= 0.003 * gradient
    return found[0], found[1]


def done(model: UniTok, task: str, record: Record) -> Any:
    """What a model writes for a record; a hole in its picture is half of it."""
    settings = SampleSettings(steps=2)
    if not given_fields(task) & WITH_HOLES.keys():
        return perform(model, task, [record], settings)[0]
    assert record.image is not None
    hole = torch.zeros(1, *record.image.shape[1:], dtype=torch.bool)
    hole[..., 16:] = True
    return inpaint(model, record.image[None], hole, [record.caption or ""], settings)[0]


def assert_of_its_kind(value: Any, task: str) -> None:
    """What a model wrote for a task is a picture, a text, boxes, a text with boxes, or a document."""
    if ends_in(task) == "parts":
        assert value[0][0] == "text" and {kind for kind, _ in value} <= {"text", "image"}
    elif FIELDS[ends_in(task)] == "image":
        assert value.shape == (3, 32, 32) and value.dtype == torch.uint8
    else:
        assert isinstance(value, str if FIELDS[ends_in(task)] in TEXTS else list)
