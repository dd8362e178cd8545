"""The measurement of a model's captions: from a data set to a section of a report."""

from __future__ import annotations

import torch
from torch import Tensor

from unitok.data.records import RecordDataset
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sample.pipeline import caption

from .alignment import are_shapes, exact_share, true_share
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .report import Fact, Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""


def measure_captioning(
    model: UniTok,
    dataset: RecordDataset,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section:
    """Captions the pictures of a data set: share that is exact and, on `shapes`, share that is true of the picture."""
    written: list[str] = []
    reference: list[str] = []
    images: list[Tensor] = []
    records = progress(read_records(dataset, limit, max_bad), "captioning", count_pictures(dataset, limit))
    for batch_images, batch in picture_batches(records, batch_size):
        written += caption(model, batch_images, batch_size=batch_size, precision=precision)
        reference += [record.caption or "" for record in batch]
        images += list(batch_images)
    facts: dict[str, Fact] = {"data": dataset.name, "pictures": len(written), "model_sha256": model.fingerprint()}
    numbers = {"exact": Number("Exact captions", exact_share(written, reference), "%", "higher", facts)}
    if are_shapes(reference):
        share = true_share(torch.stack(images), written)
        numbers["true"] = Number("Captions true of their picture (by the checker)", share, "%", "higher", facts)
    items = []
    for image, text, wanted in list(zip(images, written, reference, strict=True))[:SHOWN]:
        right = exact_share([text], [wanted]) == 1
        items.append(Item([image], text or "(empty)", right, "" if right else f"reference: {wanted}"))
    return Section("captioning", "Captioning", numbers, [Figure("Pictures and what the model wrote", items)])
