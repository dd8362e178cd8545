"""Every task that a model learned, by exact scores: from records to a section of a report for each task."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.boxes import Box, is_box, words_of
from unitok.data.judging import JUDGES, MAPS, PAINT, can_judge, judge
from unitok.data.records import Record, RecordDataset
from unitok.data.shapes.edits import kind_of_edit
from unitok.data.shapes.questions import kind_of
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sample.inpainting import inpaint
from unitok.sample.masks import without
from unitok.sample.performing import perform
from unitok.sampling import SampleSettings
from unitok.tasks import FIELDS, TASKS, draws_pictures, ends_in, given_fields

from .metrics.intervals import with_intervals
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .provenance import Fact, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Items in a figure."""
DRAWS = "text_to_image"
"""The task by which a part of a picture is drawn."""
MARGIN = 1
"""Pixels by which a box is grown before it is drawn anew: nothing of what was in it is left."""
FRAME = torch.tensor([255, 0, 255], dtype=torch.uint8)
"""Colour of boxes; no object has it."""
FIRST = 16
"""Records that are looked at for the fields of a task."""
TITLES = {
    "text_to_image": "Drawing from captions",
    "image_to_text": "Captions",
    "question": "Questions",
    "edit": "Edits",
    "ground": "Boxes of what is named",
    "interleaved": "Documents",
    "describe": "What is in a box",
    "ground_caption": "Captions with boxes",
    "layout_to_image": "Drawing from layouts",
    "pointed_question": "Questions, boxes first",
    "pointed_edit": "Edits, boxes first",
    "pointed_text_to_image": "Drawing from captions, boxes first",
}


def _kind_of_instruction(text: str) -> str | None:
    """That of an edit, or what is to be made of a picture."""
    painted = PAINT.strip() if text.startswith(PAINT) else None
    return kind_of_edit(text) or painted or (text if text in MAPS else None)


KINDS = {"question": kind_of, "instruction": _kind_of_instruction}
"""Field -> what tells the kind of its text on `shapes`."""


def tasks_of(model: UniTok, dataset: RecordDataset) -> list[str]:
    """The tasks that a model learned and the first records of a data set are judged by."""
    records = [dataset[index] for index in range(min(FIRST, len(dataset)))]
    return [task for task in model.config.tasks or TASKS if any(can_judge(task, record) for record in records)]


def of_captions(task: str) -> bool:
    """Whether captioned pictures are all that a task is judged by: other records tell nothing more."""
    return given_fields(task) | {ends_in(task)} <= {"caption", "image"}


def without_pixels(model: UniTok, tasks: Sequence[str]) -> list[str]:
    """Those of some tasks by which pictures are drawn, where the codes of a model become no pixels."""
    return [task for task in dict.fromkeys(tasks) if draws_pictures([task])] if model.image_tokenizer.no_pixels else []


def measure_task(
    model: UniTok,
    task: str,
    dataset: RecordDataset,
    *,
    settings: SampleSettings | None = None,
    seed: int = 0,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section | None:
    """The share of records for which what the model writes is exactly right, with its parts by kind. None where nothing
    can tell, as for pictures that no checker reads.

    Args:
        model: has learned the task.
        task: a row of the task table.
        dataset: records with pictures and the fields of the task.
        settings: how pictures are drawn; default: the model's own.
        seed: of the first record; the next has the next.
        limit: records used; None for all (of an endless data set, 1000).
        max_bad: share of broken pictures that is left out; more of them are an error.
        batch_size: records at a time; changes the speed, not the numbers.
        precision: see `unitok.device`.

    Raises:
        UserError: a record lacks a field of the task.
    """
    settings = settings or SampleSettings.of(model.config)
    values: list[dict[str, Fact]] = []
    items: list[Item] = []
    batch: list[Record] = []
    records = progress(read_records(dataset, limit, max_bad), task, count_pictures(dataset, limit))

    def score() -> None:
        seeds = range(seed + len(values), seed + len(values) + len(batch))
        written = perform(model, task, batch, settings, seeds, batch_size=batch_size, precision=precision)
        for record, value in zip(batch, written, strict=True):
            right = bool(judge(task, record, value))
            kind = _kind(task, record)
            row: dict[str, Fact] = {"item": record.name, "exact": int(right)}
            if kind is not None:
                row[f"exact_by_kind.{kind}"] = int(right)
            values.append(row)
            if len(items) < SHOWN:
                items.append(_item(task, record, value, right))
        batch.clear()

    for record in filter(partial(can_judge, task), records):
        batch.append(record)
        if len(batch) == batch_size:
            score()
    if batch:
        score()
    if not values:
        return None
    facts = _facts(model, dataset, values, seed, settings, precision)
    numbers = {"exact": Number("Exactly right", _share(values, "exact"), "%", "higher", facts)}
    kinds = sorted({key for row in values for key in row if key.startswith("exact_by_kind.")})
    if kinds:
        by_kind = {key.partition(".")[2]: _share(values, key) for key in kinds}
        numbers["exact_by_kind"] = Number("Exactly right, by kind", by_kind, "%", "higher", facts)
    file = re.sub(r"[^a-z0-9]+", "-", f"{task} {dataset.name}".lower()) + ".png"
    figure = Figure("What was given, and what the model wrote", items, file=file)
    return Section(
        task, f"{TITLES[task]}: {dataset.name}", with_intervals(numbers, values, "item"), [figure], values=values
    )


def can_inpaint(record: Record) -> bool:
    """Whether a record has a box, and a caption by which the whole picture can be judged."""
    return "box" in record.fields and can_judge(DRAWS, record)


def measure_inpainting(
    model: UniTok,
    dataset: RecordDataset,
    *,
    settings: SampleSettings | None = None,
    seed: int = 0,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section | None:
    """Draws what is in the box of each record anew, by its caption: the share of pictures that are right as a whole,
    and of those whose known pixels came back to the bit. None where no record has a box and can be judged. Arguments as
    of `measure_task`."""
    settings = settings or SampleSettings.of(model.config)
    values: list[dict[str, Fact]] = []
    items: list[Item] = []
    records = progress(read_records(dataset, limit, max_bad), "inpainting", count_pictures(dataset, limit))
    for pictures, batch in picture_batches(filter(can_inpaint, records), batch_size):
        boxes = [_boxes(record.fields["box"])[0] for record in batch]
        masks = torch.stack([_mask(box, picture) for box, picture in zip(boxes, pictures, strict=True)])
        seeds = range(seed + len(values), seed + len(values) + len(batch))
        captions = [record.caption or "" for record in batch]
        drawn = inpaint(model, pictures, masks, captions, settings, seeds, batch_size=batch_size, precision=precision)
        for record, before, mask, after in zip(batch, pictures, masks, drawn, strict=True):
            right = bool(judge(DRAWS, record, after))
            kept = bool((before == after)[:, ~mask].all())
            values.append({"item": record.name, "exact": int(right), "known_kept": int(kept)})
            if len(items) < SHOWN:
                items.append(Item([before, without(before, mask), after], record.caption or "", right))
    if not values:
        return None
    facts = _facts(model, dataset, values, seed, settings, precision)
    numbers = {
        "exact": Number("Exactly right", _share(values, "exact"), "%", "higher", facts),
        "known_kept": Number("Known pixels equal to the bit", _share(values, "known_kept"), "%", "higher", facts),
    }
    figure = Figure("Picture, what is known of it, and what was drawn", items, file="inpaint.png")
    title = f"Inpainting: {dataset.name}"
    return Section("inpaint", title, with_intervals(numbers, values, "item"), [figure], values=values)


def _mask(box: Box, picture: Tensor) -> Tensor:
    """(H, W) bool: a box and a margin."""
    height, width = picture.shape[1:]
    left, top, right, bottom = box
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(max(0, int(top * height) - MARGIN), int(bottom * height) + 1 + MARGIN)
    mask[rows, max(0, int(left * width) - MARGIN) : int(right * width) + 1 + MARGIN] = True
    return mask


def _facts(
    model: UniTok,
    dataset: RecordDataset,
    values: Sequence[Mapping[str, Fact]],
    seed: int,
    settings: SampleSettings,
    precision: Precision,
) -> Provenance:
    return {
        "data": dataset.name,
        "records": len(values),
        "seed": seed,
        "items_sha256": hashlib.sha256("\n".join(str(row["item"]) for row in values).encode()).hexdigest(),
        "model_sha256": model.fingerprint(),
        "settings": str(settings),
        "precision": precision,
        "intervals over": "records",
    }


def _share(values: Sequence[Mapping[str, Fact]], key: str) -> float:
    found = [float(row[key] or 0) for row in values if row.get(key) is not None]
    return sum(found) / len(found)


def _kind(task: str, record: Record) -> str | None:
    """The kind of the first text of a task that has one."""
    fields = (part.field for part in TASKS[task] if part.field in KINDS)
    return next((KINDS[field](record.fields[field]) for field in fields), None)


def _item(task: str, record: Record, written: Any, right: bool) -> Item:
    """The pictures that are given and drawn, and the texts that are given and written."""
    pictures: list[Tensor] = []
    texts: list[str] = []
    boxes: list[Box] = []
    held: dict[str, Any] = {"caption": record.caption, "image": record.image, **record.fields}
    for part in TASKS[task]:
        if part.learned:
            continue
        value = held[part.field]
        if FIELDS[part.field] == "image":
            pictures += value if isinstance(value, list) else [value]
        else:
            texts.append(_said(value))
            boxes += _boxes(value)
    wanted = held[ends_in(task)]
    document = "parts" in held and wanted is held["parts"]
    if isinstance(written, Tensor):
        pictures.append(written)
    elif document:
        pictures += [value for kind, value in written if kind == "image"]
        texts += [words_of(value) for kind, value in written if kind == "text"]
    else:
        texts.append(_said(written) or "(empty)")
        boxes += _boxes(written)
    pictures = [_framed(picture, boxes) for picture in pictures]
    wrong = "" if right or isinstance(written, Tensor) or document else f"right is: {_said(wanted)}"
    return Item(pictures or [torch.full((3, 8, 8), 255, dtype=torch.uint8)], " / ".join(texts), right, wrong)


def _said(value: Any) -> str:
    """A text, also one with boxes, as one line; boxes are drawn into the picture."""
    if isinstance(value, str):
        return value
    if is_box(value):
        return "[]"
    return " ".join(filter(None, map(_said, value))) or "none"


def _boxes(value: Any) -> list[Box]:
    """The boxes in a value."""
    if isinstance(value, str):
        return []
    return [value] if is_box(value) else [box for one in value for box in _boxes(one)]


def _framed(picture: Tensor, boxes: Sequence[Box]) -> Tensor:
    """A picture (3, H, W) uint8 with frames of a pixel where the boxes are."""
    height, width = picture.shape[1:]
    framed = picture.clone()
    for left, top, right, bottom in boxes:
        rows = slice(round(top * (height - 1)), round(bottom * (height - 1)) + 1)
        columns = slice(round(left * (width - 1)), round(right * (width - 1)) + 1)
        for edge in ((rows.start, columns), (rows.stop - 1, columns), (rows, columns.start), (rows, columns.stop - 1)):
            framed[(slice(None), *edge)] = FRAME[:, None]
    return framed


def check_learned(model: UniTok, name: str) -> None:
    """Raises UserError for a model that learned nothing with a score."""
    if model.config.tasks and JUDGES.keys().isdisjoint(model.config.tasks):
        raise UserError(f"{name} learned {', '.join(model.config.tasks)}, none of which has a score")
