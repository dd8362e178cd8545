"""The measurement of a model's captions: from a data set to a section of a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unitok.data.records import Record, RecordDataset
from unitok.device import Precision
from unitok.model import UniTok
from unitok.prepare import noted
from unitok.sample.pipeline import caption

from .feature_network import ImageTextNetwork
from .metrics.alignment import are_shapes, exact_share, object_count, share_by_objects, true_captions
from .metrics.captions import bleu, cider
from .metrics.clipscore import cosine_scores, summarize
from .metrics.intervals import with_intervals
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .provenance import Fact, PictureSet, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""


def measure_captioning(
    model: UniTok,
    dataset: RecordDataset,
    clip: ImageTextNetwork | None = None,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section:
    """Captions the pictures of a data set: share that is exact, BLEU-4, CIDEr-D, CLIPScore with a network for it, and
    on `shapes` share that is true of the picture. The section has one line of values per picture."""
    written: list[str] = []
    reference: list[str] = []
    true: list[bool] = []
    shapes = True
    scores: dict[str, list[float]] = {"clipscore": [], "clipscore_reference": []}
    values: list[dict[str, Fact]] = []
    items: list[Item] = []
    seen = PictureSet(dataset.name)
    records = progress(read_records(dataset, limit, max_bad), "captioning", count_pictures(dataset, limit))
    for images, batch in picture_batches(records, batch_size):
        wanted = _captions(batch)
        seen.update(images, wanted)
        some = caption(model, images, batch_size=batch_size, precision=precision)
        shapes = shapes and are_shapes(wanted)
        true += true_captions(images, some) if shapes else []
        if clip is not None:
            pictures = clip.image_embeddings(images)
            for key, texts in {"clipscore": some, "clipscore_reference": wanted}.items():
                scores[key] += cosine_scores(pictures, clip.text_embeddings(texts)).tolist()
        for image, text, right, record in zip(images, some, wanted, batch, strict=True):
            exact = exact_share([text], [right]) == 1
            values.append({"item": record.name, "written": text, "reference": right, "exact": int(exact)})
            if len(items) < SHOWN:
                items.append(Item([image], text or "(empty)", exact, "" if exact else f"reference: {right}"))
        written += some
        reference += wanted

    facts: Provenance = {
        "data": dataset.name,
        "pictures": len(written),
        "image size": seen.size,
        "captions_sha256": seen.hexdigest(),
        "model_sha256": model.fingerprint(),
        "precision": precision,
        **noted(model),
    }
    consensus = cider(written, [[text] for text in reference])
    by_words: Provenance = {**facts, "tokenization": "lower-case words without punctuation", "references": 1}
    numbers = {
        "exact": Number("Exact captions", exact_share(written, reference), "%", "higher", facts),
        "bleu": Number("BLEU-4", bleu(written, [[text] for text in reference]), "", "higher", by_words),
        "cider": Number("CIDEr-D", consensus.score, "", "higher", by_words),
    }
    columns: dict[str, list[float]] = {"cider": consensus.per_caption}
    if clip is not None:
        of_clip: Provenance = {**facts, **clip.origin}
        for key, whose in {"clipscore": "what was written", "clipscore_reference": "the reference captions"}.items():
            score = summarize(torch.tensor(scores[key])).score
            better = "higher" if key == "clipscore" else ""
            numbers[key] = Number(f"CLIPScore of {whose} ({clip.pair_label})", score, "", better, of_clip)
        columns |= scores
    if shapes:
        share = sum(true) / len(true)
        numbers["true"] = Number("Captions true of their picture (by the checker)", share, "%", "higher", facts)
        columns["true"] = [int(one) for one in true]
    for row, one in enumerate(values):
        one.update({name: column[row] for name, column in columns.items()})
    if shapes:
        by_objects = share_by_objects(reference, [bool(row["exact"]) for row in values])
        title = "Exact captions, by number of objects"
        numbers["exact_by_objects"] = Number(title, by_objects, "%", "higher", facts)
        for one, text in zip(values, reference, strict=True):
            one[f"exact_by_objects.{object_count(text)}"] = one["exact"]
    numbers = with_intervals(numbers, values, "reference")
    figure = Figure("Pictures and what the model wrote", items)
    return Section("captioning", "Captioning", numbers, [figure], values=values)


def _captions(batch: Sequence[Record]) -> list[str]:
    return [record.caption or "" for record in batch]
