"""Any task on any record: from the fields that are given to what the model writes, which `data.judging` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import Box, GroundedTextModality, uncropped, words_of
from unitok.data.records import Record
from unitok.device import Precision
from unitok.modalities import TEXTS
from unitok.model import UniTok
from unitok.prepare import computing
from unitok.sampling import SampleSettings
from unitok.tasks import FIELDS, TASKS, asked, ends_in, given_fields, is_several
from unitok.text import CaptionEncoder

from .best_of import best_read, candidate_seeds
from .documents import DocumentWriter, write_documents
from .jobs import job_for
from .pictures import as_read
from .pipeline import GREEDY, decoded, run

CAPTION = "caption"
"""The field that is read in the wording of the model, and by which the best of several drawings is chosen where it is
all that is given."""
MARGIN = 1
"""Pictures that a document may have more than its record: then it did not end where it should."""


@torch.inference_mode()
def perform(
    model: UniTok,
    task: str,
    records: Sequence[Record],
    settings: SampleSettings | None = None,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> list[Any]:
    """What a model writes for each record: a text; boxes; strings and boxes; a picture (3, H, W) uint8; or pairs
    ("text", text) and ("image", picture) of a document that begins with the record's first text.

    Args:
        model: has learned the task.
        task: a row of the task table.
        records: with the fields that the task gives, pictures as pixels of the model's size. Texts that are too long
            are cut, as in training.
        settings: how pictures are drawn; default: the model's own. Texts and boxes: the most likely id each time. The
            best of several drawings is chosen where a caption is all that is given; elsewhere there is one. Documents
            take the first scale of guidance.
        seeds: of each record; default 0, 1, ...
        batch_size: records at a time; changes the speed, not what is written.
        precision: see `unitok.device`.

    Raises:
        UserError: a record lacks a field.
    """
    settings = settings or SampleSettings.of(model.config)
    seeds = range(len(records)) if seeds is None else seeds
    encode = CaptionEncoder(model.text_tokenizer, model.config.text_length)
    given = [_given(model, task, record, encode) for record in records]
    if "parts" in _fields(task):
        return _documents(model, given, settings, seeds, batch_size, precision)
    modality = FIELDS[ends_in(task)]
    how = settings if modality == "image" else GREEDY
    drawings = how.best_of if given_fields(task) == {CAPTION} else 1
    modalities = model.modalities()
    pairs = [(*asked(task, one, modalities), seed) for one, seed in zip(given, seeds, strict=True)]
    jobs = [
        job_for(done, one, candidate, how) for done, one, seed in pairs for candidate in candidate_seeds(seed, drawings)
    ]
    with computing(model, precision):
        written: Sequence[Sequence[torch.Tensor]] = run(model, jobs, batch_size=batch_size)
        if drawings > 1:
            best = best_read(model, [one["caption"] for one in given], drawings)
            written = [all_of_it for _, all_of_it in best.take(list(enumerate(written)))]
        return [_shown(model, modality)(all_of_it[-1]) for all_of_it in written]


def pointed_first(
    model: UniTok, task: str, written: Sequence[torch.Tensor], window: Box = (0.0, 0.0, 1.0, 1.0)
) -> dict[str, Any]:
    """What a job of a task wrote before its value, as fields of a record: `boxes`, or a caption with boxes (`named`).
    Empty for a task that does not point first.

    Args:
        model: wrote it.
        task: a row of the task table.
        written: all that the job wrote.
        window: what the model read of the picture, as shares of the picture of which the boxes are shares.
    """
    first = [part.field for part in TASKS[task] if part.learned][:-1]
    found = {field: _shown(model, FIELDS[field])(ids) for field, ids in zip(first, written, strict=False)}
    return {
        field: [one if isinstance(one, str) else uncropped(one, window) for one in parts]
        for field, parts in found.items()
    }


def _fields(task: str) -> list[str]:
    return [part.field for part in TASKS[task]]


def _given(model: UniTok, task: str, record: Record, encode: CaptionEncoder) -> dict[str, Any]:
    """The fields that a task gives, pictures as they are read, texts as ids."""
    found: dict[str, Any] = {"name": record.name, "caption": record.caption, "image": record.image, **record.fields}
    given = given_fields(task) | {"parts"} & set(_fields(task))
    for field in given & found.keys():
        if FIELDS.get(field) == "image" and found[field] is not None:
            several = isinstance(found[field], list)
            read = as_read(model, torch.stack(found[field] if several else [found[field]]))
            found[field] = read if several else read[0]
        elif FIELDS.get(field) == "text" and found[field] is not None:
            several = is_several(field, found[field])
            value: Callable[[str], Any] = model.captions(encode).read if field == CAPTION else encode
            found[field] = [value(one) for one in found[field]] if several else value(found[field])
    return {field: value for field, value in found.items() if field in given | {"name"} and value is not None}


def _shown(model: UniTok, modality: str) -> Callable[[torch.Tensor], Any]:
    """How what was written in a modality is shown."""
    reader = model.modalities()[modality]
    if modality == "image":
        return lambda codes: decoded(model, codes[None])[0]
    if modality in TEXTS:
        return lambda ids: model.text_tokenizer.decode(ids.tolist())
    if isinstance(reader, GroundedTextModality):
        return lambda ids: reader.parts(ids.tolist(), model.text_tokenizer.decode)
    return reader.value


def _documents(
    model: UniTok,
    given: Sequence[dict[str, Any]],
    settings: SampleSettings,
    seeds: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> list[Any]:
    """Documents that go on from the first text of each record, as long as the model finds right."""
    if any("parts" not in one for one in given):
        raise UserError("a record has no parts, which the task interleaved needs: add them to the data")
    most = max((sum(kind == "image" for kind, _ in one["parts"]) for one in given), default=0) + MARGIN
    first = settings.guidance[0] if isinstance(settings.guidance, list) else settings.guidance
    writer = DocumentWriter(model, replace(settings, guidance=first), GREEDY, pictures=most)
    begun = [[(kind, words_of(one)) for kind, one in row["parts"] if kind == "text"][:1] for row in given]
    found = dict(write_documents(writer, begun, seeds, batch_size=batch_size, precision=precision))
    show = _shown(model, "image")
    return [
        [(kind, show(value) if kind == "image" else value) for kind, value in found[place]]
        for place in range(len(given))
    ]
