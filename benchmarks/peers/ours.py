"""Our side."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rows import Row

    from unitok.device import Precision
    from unitok.model import UniTok

CAPTION = "a caption"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
COMPILED = " compiled"
"""Behind the precision, of a form whose first run compiles it."""
Works = dict[str, Callable[[], object]]
"""Form, such as "bf16 compiled" -> the work of a row."""


def model_for(row: Row, objective: str) -> UniTok:
    """A model with the shapes of a row and fresh weights."""
    from tokenizers_vq import VQ
    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import ModelConfig, TrunkConfig
    from unitok.model import UniTok
    from unitok.objectives import get_objective
    from unitok.text import number_tokenizer
    from unitok.vocabulary import Vocabulary

    config = dataclasses.replace(
        TOKENIZER_PRESETS["shapes"](),
        image_size=4 * row.maps[-1],
        quantizer=VQ(codebook_size=row.codebook, dim=32),
        scales=row.maps if len(row.maps) > 1 else (),
    )
    tokenizer = build_tokenizer(config)
    text = number_tokenizer(row.text)  # ids are given
    spans = Vocabulary.of(row.text, row.codebook).spans
    ports = get_objective(objective, tokenizer).ports(tokenizer.layout)
    trunk = TrunkConfig(width=row.width, depth=row.depth, heads=row.width // 64)
    return UniTok(ModelConfig(trunk, objective, spans, ports=ports), tokenizer, text)


def drawing(row: Row, objective: str) -> Works:
    """Draws the codes of a batch, by a model that is prepared for it."""
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw_codes
    from unitok.sampling import SampleSettings
    from unitok.trunk import compiled

    compiled.OFTEN = 0  # passes are compiled by the first picture
    plain = model_for(row, objective).eval()
    models: dict[str, UniTok] = {}
    for compiles in (False, True) if row.compiles else (False,):
        for precision in PRECISIONS:
            model = copy.deepcopy(plain)
            prepare(model, precision, compiles)
            models[f"{precision}{COMPILED if compiles else ''}"] = model
    settings = SampleSettings(guidance=2.0, **({"steps": row.steps} if row.steps else {}))
    captions, ids = [CAPTION] * row.batch, list(range(row.prompt))

    def draw(model: UniTok) -> None:
        draw_codes(model, captions, settings, range(row.batch), lambda _: ids, batch_size=row.batch)

    return {form: partial(draw, model) for form, model in models.items()}


def training(row: Row, objective: str) -> Works:
    """A step on a batch that is packed: forward, backward, AdamW."""
    import torch

    from unitok.data.mixture import Slot
    from unitok.data.records import Key, Record, RecordBatch
    from unitok.device import autocast, keep_freed_memory
    from unitok.train.packing import Packer

    keep_freed_memory()
    plain = model_for(row, objective).train()
    codes = torch.randint(row.codebook, (row.batch, row.codes))
    captions: list[Any] = [list(range(row.prompt))] * row.batch  # ids: no text tokenizer has to know them
    records = [Record(str(number), captions[number]) for number in range(row.batch)]
    keys = [Key(0, number, number) for number in range(row.batch)]
    batch = RecordBatch(keys, [""] * row.batch, captions, None, codes, records=records)
    slots = [Slot(0, "text_to_image")] * row.batch
    packed = Packer(plain.modalities(), slots, {}, plain.vocabulary.pad, 0).pack(batch).batch

    def stepper(compiles: bool) -> Callable[[Precision], None]:
        model = copy.deepcopy(plain)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
        for block in model.trunk.blocks if compiles else ():  # as --run.compile true does
            block.compile()

        def step(precision: Precision) -> None:
            with autocast(torch.device("cpu"), precision):
                loss = model(packed).sum() / len(packed.targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    steppers = {"": stepper(False), COMPILED: stepper(True)}
    return {f"{one}{how}": partial(step, one) for how, step in steppers.items() for one in PRECISIONS}


WORKS: dict[str, Callable[[Row, str], Works]] = {"draw": drawing, "train": training}


def machine() -> dict[str, Any]:
    """Versions and hardware."""
    from unitok.train.folder import environment

    return environment()
