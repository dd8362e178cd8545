"""Bytes of a model that draws: its passes are run by the engine over tensors without memory, and so are the prompts and
the decoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tokenizers_vq.images import to_uint8
from unitok.model import UniTok
from unitok.sample.engine import Engine
from unitok.sample.jobs import job_for, prompts_needed, rooms_of
from unitok.sample.prompts import document_of
from unitok.sampling import SampleSettings
from unitok.sequence import PackedBatch, lay_out
from unitok.tasks import Piece
from unitok.trunk.base import Beside

from .model import caption_of
from .passes import FusedAttention, Held, embody, in_precision
from .sums import Counts

MOST_STEPS = 48
"""Passes of a picture that are all followed, such as the 37 of ten maps. Where there are more, each draws few codes."""


def drawing(
    model: UniTok, counts: Counts, pictures: int, caption_tokens: int, bf16: bool = False, gpu: bool = False
) -> dict[str, float]:
    """Bytes of a device that draws so many pictures side by side, by the model's own settings, by what they are for.
    The model has its first tensors. Boxes that it writes first are left out."""
    settings = SampleSettings.of(model.config)
    record = {"caption": caption_of(model, caption_tokens)}
    jobs = [job_for("text_to_image", record, seed, settings) for seed in range(pictures)]
    compared = [jobs[0].prompts[which] for which in prompts_needed(jobs[0])]
    room = sum(rooms_of(model, jobs[0]))
    with_all = document_of(compared[0], model.modalities())
    laid_out = lay_out([[with_all]] * (pictures + len(compared) - 1), pad=model.vocabulary.pad)
    held, fake = _Answering(), FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad():
        embody(model, "cpu")
        held.leave_out([*model.parameters(), *model.buffers()])
        prompts = laid_out.map(fake.from_tensor)
        prompts.map(held.leave_out_one)
        with held, FusedAttention() if gpu else nullcontext(), in_precision("cpu", bf16):
            engine = _Engine(model, pictures * len(compared), room, prompts)
            cache = held.now
            for job in jobs:
                engine.add(job)
            _draw(engine, jobs[0].modality)
            if not model.image_tokenizer.no_pixels:
                _decode(model, pictures, gpu)
    weights = 4.0 * counts.all + (2.0 * counts.all if bf16 else 0.0)
    return {"weights": weights, "cache": float(cache), "activations": float(held.most - cache)}


class _Answering(Held):
    """Tensors without memory say of themselves that all is well: a number is 1, and what is asked is true."""

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            return super().__torch_dispatch__(function, types, args, kwargs)
        except DataDependentOutputException:
            return 1


class _Engine(Engine):
    """An engine that encodes prompts, one for each row, which are laid out already."""

    def __init__(self, model: UniTok, lanes: int, room: int, prompts: PackedBatch) -> None:
        super().__init__(model, lanes, room)
        self._given = prompts

    def _fill(self, prompts: list[tuple[list[Piece], int]]) -> None:
        given, (rows, length) = self._given, self._given.inputs.shape
        cache, condition = self.model.trunk.cache(rows, length), self.model.embedded(given.conditions)
        cache.extend(range(rows), length)
        if length:
            seen = given.visibility()
            self.model.hidden(given.inputs, given.places, seen, cache, given.features, given.stands, condition)
        self._encoded = [cache.held(row, 0, length) for row in range(rows)]
        for number, (_, lane) in enumerate(prompts):
            row = number % rows
            self.cache.copy(lane, self._encoded[row])
            if condition is not None:
                here = slice(row, row + 1)
                states, shown = (None if one is None else one[here] for one in condition[1:])
                self.conditions[lane] = Beside(condition.vector[here, :1], states, shown)


def _draw(engine: Engine, modality: str) -> None:
    """All passes. Of those that give back what they ran two, and of many two at the begin and one at the end, which
    sees what those between would have stored."""
    engine.step()
    if not engine.running:
        return
    row, cache = min(engine.running), engine.cache
    steps, before = engine.writers[modality].steps(row), cache.lengths[row]
    engine.step()
    grown = cache.lengths[row] - before
    if not engine.running or not grown:
        return
    if steps > MOST_STEPS:
        lanes = [lane for state in engine.running.values() for lane in state.running]
        cache.advance(lanes, (steps - 3) * grown)
        steps = 3
    for _ in range(2, steps):
        engine.step()


def _decode(model: UniTok, pictures: int, gpu: bool) -> Tensor:
    """Codes to pictures: on a CPU one after the other."""
    images = model.image_tokenizer
    codes = torch.zeros(pictures, images.layout.length, dtype=torch.int64)
    parts = [images._decode(part, images.layout).float() for part in codes.split(pictures if gpu else 1)]
    return to_uint8(parts[0] if len(parts) == 1 else torch.cat(parts))
