"""From records with codes to a packed micro-batch of tasks, wherever that is done: in a loader's worker or here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unitok.data.mixture import Slot
from unitok.data.records import Record, RecordBatch
from unitok.modalities import Modality, Picture
from unitok.objectives.base import Draw
from unitok.seeding import keyed_generator
from unitok.sequence import PackedBatch, pack
from unitok.tasks import FIELDS, TASKS, documents

NUMBERS = {task: number for number, task in enumerate(TASKS)}
"""Task -> its number."""


@dataclass
class TaskBatch:
    """A packed micro-batch."""

    batch: PackedBatch
    counts: torch.Tensor
    """(tasks,) float64, stays on the CPU: targets per task."""
    tokens: int
    """Positions that are no padding."""
    places: int
    """Positions with the padding."""
    pictures: int

    def to(self, device: torch.device) -> TaskBatch:
        if device.type == "cpu":
            return self
        # Only pinned memory travels without making the CPU wait for the GPU.
        batch = self.batch.map(torch.Tensor.pin_memory).to(device)
        return TaskBatch(batch, self.counts, self.tokens, self.places, self.pictures)


@dataclass
class PackedRecords(RecordBatch):
    """Records that a worker has packed already."""

    packed: TaskBatch | None = None


@dataclass
class Packer:
    """Packs records. Holds nothing heavy: it travels to the loader's workers."""

    modalities: Mapping[str, Modality]
    slots: Sequence[Slot]
    """Of the global batch."""
    dropout: Mapping[str, float]
    """Condition -> share of the records that it is left out of."""
    pad: int
    seed: int
    steps: int = 1
    """Of the whole run."""
    noise: float = 0.0
    """Of boxes that are given."""

    def __call__(self, records: RecordBatch) -> RecordBatch:
        """Adds the packed batch to records whose pictures are codes; others stay as they are."""
        if not records.keys or has_pixels(records):
            return records
        return PackedRecords(**vars(records), packed=self.pack(records))

    def pack(self, records: RecordBatch) -> TaskBatch:
        """Documents of records whose pictures are codes. Which task a record serves depends on its slot, and whatever
        is random on (seed, epoch, index), so batch mates change nothing."""
        slots = [self.slots[key.slot] for key in records.keys]
        draws = [
            Draw(keyed_generator(self.seed, "task", key.epoch, key.index), min(1.0, key.step / self.steps))
            for key in records.keys
        ]
        values = [fields_of(records, row) for row in range(len(records.keys))]
        tasks, weights = [slot.task for slot in slots], [slot.weight for slot in slots]
        made = documents(tasks, values, draws, self.modalities, self.dropout, NUMBERS, weights, self.noise)
        batch = pack(made, pad=self.pad)
        return TaskBatch(
            batch=batch,
            counts=torch.bincount(batch.tasks, minlength=len(TASKS)).double(),
            tokens=int((batch.documents >= 0).sum()),
            places=batch.documents.numel(),
            pictures=len(records.names),
        )


def fields_of(records: RecordBatch, row: int) -> dict[str, Any]:
    """Field -> value of one record of a batch."""
    record = records.records[row]
    image = records.codes[row] if records.codes is not None else record.codes
    found = {"name": record.name, "caption": record.caption or None, "image": image, **record.fields}
    return {name: value for name, value in found.items() if value is not None}


def has_pixels(records: RecordBatch) -> bool:
    """Whether some picture of the batch is not codes yet."""
    return records.images is not None or any(
        record.image is not None or any(True for _ in _pictures(record)) for record in records.records
    )


def encode_pixels(records: RecordBatch, encode: Callable[[torch.Tensor], Sequence[torch.Tensor | Picture]]) -> None:
    """Replaces all pixels by what documents are made of. `encode`: uint8 (B, 3, H, W) to codes (L,), or `Picture`s, on
    the CPU; all pictures of a batch are of one size, and encoded in one go."""
    own = [record for record in records.records if record.image is not None]
    further = [(record, *where) for record in records.records for where in _pictures(record)]
    pixels = [*(records.images if records.images is not None else ())]
    number = len(pixels)
    pixels += [record.image for record in own if record.image is not None]
    pixels += [one for *_, one in further]
    if not pixels:
        return
    codes = encode(torch.stack(pixels))
    if records.images is not None:
        records.codes, records.images = codes[:number], None
    for record, found in zip(own, codes[number:], strict=False):
        record.codes, record.image = found, None
    for (record, name, place, _), found in zip(further, codes[number + len(own) :], strict=True):
        if place is None:
            record.fields[name] = found
        else:
            record.fields[name][place] = found if name in FIELDS else ("image", found)


def _pictures(record: Record) -> Iterator[tuple[str, int | None, torch.Tensor]]:
    """(field, place in a list, pixels) of every further picture that is pixels."""
    for name, value in record.fields.items():
        if isinstance(value, torch.Tensor) and value.ndim == 3:
            yield name, None, value
        elif name == "parts":
            yield from ((name, i, one) for i, (kind, one) in enumerate(value) if kind == "image" and one.ndim == 3)
        elif FIELDS.get(name) == "image" and isinstance(value, list):
            yield from ((name, i, one) for i, one in enumerate(value) if one.ndim == 3)
