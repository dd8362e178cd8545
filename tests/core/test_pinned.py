"""What a generator computes, as numbers: losses, pictures, a caption, a training.

Everything else is compared with itself (training with decoding, packed with unpacked), and would not see a rotary or a
mask that changes in both. Weights and codes follow from a formula, so no change of an initialisation moves the numbers.

    PIN=1 python -m pytest tests/core/test_pinned.py

writes what this version computes to pinned.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unitok.config import ObjectiveSettings, TaskConfig, TasksConfig
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.objectives.base import Draw
from unitok.sample.pipeline import caption_codes, draw_codes
from unitok.sampling import SampleSettings
from unitok.seeding import keyed_generator
from unitok.sequence import PackedBatch, pack
from unitok.tasks import TASKS, documents, task_of_slot
from unitok.train.config import OptimConfig
from unitok.train.optim import build_optimizers, learning_rate

CAPTIONS = [
    "a small red circle",
    "a large blue square left of a small green triangle",
    "a large cross above a small yellow circle and right of a small black square",
]
PINNED = Path(__file__).with_name("pinned.json")
PLAIN = TasksConfig(
    text_to_image=TaskConfig(0.6, 1.0), image_to_text=TaskConfig(0.3, 1.0), text_only=TaskConfig(0.1, 0.1)
)
DROPPING = TasksConfig(PLAIN.text_to_image, PLAIN.image_to_text, PLAIN.text_only, caption_dropout=0.5)
BATCH, STEPS = 12, 5


def by_formula(shape: torch.Size, number: int, deviation: float) -> torch.Tensor:
    """Numbers that look drawn, and are the same on every machine."""
    steps = torch.arange(shape.numel(), dtype=torch.float64)
    uniform = ((torch.sin(steps * 12.9898 + number * 78.233) * 43758.5453) % 1 - 0.5) * 12**0.5
    return (uniform * deviation).float().reshape(shape)


def fill(modules: list[nn.Module], deviation: float) -> None:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.data.copy_(by_formula(tensor.shape, number, deviation))


def parts(model: UniTok) -> list[nn.Module]:
    """The parts of a model that train, in the order in which they are filled."""
    return [model.ids.embedding, *model.ports.values(), model.trunk.blocks, model.ids.head]


def pinned_model(make_model: Callable[..., UniTok], objective: str) -> UniTok:
    made = make_model(objective)
    fill([made.image_tokenizer], 0.3)
    model = UniTok(made.config, made.image_tokenizer, made.text_tokenizer)  # it looks at its tokenizer when it is built
    fill(parts(model), 0.2)
    return model.eval()


def codes_of(model: UniTok, count: int) -> torch.Tensor:
    numbers = by_formula(torch.Size((count, model.layout.length)), 1, 1.0).abs() * 1e4
    return numbers.long() % model.image_tokenizer.codebook_size


def batch_of(model: UniTok, tasks: TasksConfig, step: int = 0) -> PackedBatch:
    images = codes_of(model, BATCH)
    records = [{"caption": model.text_ids(CAPTIONS[row % len(CAPTIONS)]), "image": images[row]} for row in range(BATCH)]
    names, shares = zip(*tasks.shares().items(), strict=True)
    chosen = [names[task_of_slot(row, shares)] for row in range(BATCH)]
    draws = [Draw(keyed_generator(3, "task", step, row), step / STEPS) for row in range(BATCH)]
    hidden = {"code_dropout": 0.3 if tasks is DROPPING else 0.0} if "code_dropout" in model.objective.settings else {}
    settings = model.objective.settled(ObjectiveSettings(**hidden))
    dropout, numbers = {"text": tasks.caption_dropout}, {task: number for number, task in enumerate(TASKS)}
    made = documents(chosen, records, draws, model.modalities(settings=settings), dropout, numbers)
    return pack(made, pad=model.vocabulary.pad)


def losses(model: UniTok, batch: PackedBatch) -> torch.Tensor:
    """Mean cross-entropy of each task."""
    return model(batch)[:3] / torch.bincount(batch.tasks, minlength=3)


def losses_over_all_ids(model: UniTok, batch: PackedBatch) -> torch.Tensor:
    """The same with a softmax over the whole vocabulary, as unitok 0.1 had it."""
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)
    hidden = hidden.flatten(0, 1)
    logits = model.ids.scores(hidden[batch.at], slice(0, model.vocabulary.size))
    each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return torch.zeros(3).index_add(0, batch.tasks, each) / torch.bincount(batch.tasks, minlength=3)


def trajectory(model: UniTok) -> Iterator[float]:
    config = OptimConfig(lr=3e-3, warmup_steps=2)
    optimizers = build_optimizers(model, config)
    for step in range(STEPS):
        loss = (losses(model, batch_of(model, DROPPING, step)) * torch.tensor([1.0, 1.0, 0.1])).sum()
        loss.backward()
        yield loss.item()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, config)
            optimizer.step()
            optimizer.zero_grad()


def computed(model: UniTok) -> dict[str, Any]:
    with torch.no_grad():
        found: dict[str, Any] = {
            "losses over all ids": losses_over_all_ids(model, batch_of(model, PLAIN)).tolist(),
            "losses": losses(model, batch_of(model, PLAIN)).tolist(),
            "losses over all ids with dropout": losses_over_all_ids(model, batch_of(model, DROPPING)).tolist(),
            "losses with dropout": losses(model, batch_of(model, DROPPING)).tolist(),
        }
    for guidance in (1.0, 3.0):
        settings = SampleSettings(guidance=guidance, top_k=40, top_p=0.95, steps=5)
        found[f"codes at guidance {guidance:g}"] = draw_codes(model, CAPTIONS[:1], settings, [7])[0].tolist()
    found["caption"] = caption_codes(model, codes_of(model, 1))[0]
    found["trajectory"] = list(trajectory(model))
    return found


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_generator_computes_what_it_did(make_model: Callable[..., UniTok], objective: str) -> None:
    found = computed(pinned_model(make_model, objective))
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    if os.environ.get("PIN"):
        lines = [f'"{name}": {json.dumps(value)}' for name, value in (pinned | {objective: found}).items()]
        PINNED.write_text("{\n" + ",\n".join(lines).replace('], "', '],\n "') + "\n}\n")
        return
    assert found.keys() == pinned[objective].keys()
    for name, value in pinned[objective].items():
        if isinstance(value, list) and isinstance(value[0], float):
            assert found[name] == pytest.approx(value, rel=2e-4), name
        else:
            assert found[name] == value, name
