"""The measurement of drawn pictures: from captions to a section of a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenizers_vq.errors import UserError
from unitok.data.checker import accuracy
from unitok.data.records import RecordDataset
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sample.config import SampleSettings
from unitok.sample.pipeline import draw

from .alignment import are_shapes, check_pictures, wrong_attributes
from .clipscore import clip_score
from .features import FeatureNetwork, ImageTextNetwork, extract
from .frechet import too_few
from .pictures import MAX_BAD, progress, read_indexed, read_records
from .report import Fact, Figure, Item, Number, Section
from .retrieval import name_retrieval, picture_retrieval
from .sets import distances

SHOWN = 32
"""Pictures in a figure."""


def measure_generation(
    model: UniTok,
    dataset: RecordDataset,
    network: FeatureNetwork,
    clip: ImageTextNetwork,
    *,
    settings: SampleSettings | None = None,
    seed: int = 0,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
    gallery: RecordDataset | None = None,
    labels: Sequence[str] | None = None,
) -> Section:
    """Draws one picture for each caption of a data set and compares them with its pictures and captions.

    FID, KID and CLIPScore; on `shapes` also what the checker reads in the pictures; with a gallery, retrieval of
    the right name by the nearest known picture and by the nearest name.

    Args:
        model: draws the pictures.
        dataset: captions, and pictures of the model's size.
        network: features for FID, KID and retrieval.
        clip: network for CLIPScore.
        settings: how codes are chosen; default: as the model likes it.
        seed: picture i is drawn with seed + i.
        limit: captions used; None for all (of an endless data set, 1000).
        max_bad: share of broken pictures that is left out; more of them are an error.
        batch_size: pictures drawn at a time; changes the speed, not the pictures.
        precision: see `unitok.device`.
        gallery: known pictures whose captions are names; `labels` says which name each record of `dataset` should get.
        labels: one name per record of `dataset`, broken ones included.
    """
    settings = settings or SampleSettings.of(model.config)
    rows = list(read_indexed(dataset, limit, max_bad))
    if len(rows) < 4:
        raise UserError(f"data {dataset.name!r} gives {len(rows)} captions: measuring needs at least 4")
    captions = [record.caption or "" for _, record in rows]
    real = torch.stack([record.image for _, record in rows if record.image is not None])
    parts = []
    for start in progress(range(0, len(captions), batch_size), "drawing"):
        some = captions[start : start + batch_size]
        seeds = list(range(seed + start, seed + start + len(some)))
        parts.append(draw(model, some, settings, seeds, batch_size=batch_size, precision=precision))
    drawn = torch.cat(parts)

    facts: dict[str, Fact] = {
        "data": dataset.name,
        "pictures": len(drawn),
        "image size": f"{drawn.shape[3]}x{drawn.shape[2]}",
        "seed": seed,
        "model_sha256": model.fingerprint(),
        "settings": str(settings),
    }
    features = {"real": extract(network, real.split(batch_size)), "drawn": extract(network, drawn.split(batch_size))}
    numbers = distances(features["real"], features["drawn"], network, facts, seed)
    score, best = clip_score(clip, drawn, captions), clip_score(clip, real, captions)
    of_clip: dict[str, Fact] = {**facts, **clip.origin}
    numbers["clipscore"] = Number(f"CLIPScore ({clip.pair_label})", score.score, "", "higher", of_clip)
    numbers["clipscore_real"] = Number(
        f"CLIPScore of the data's own pictures ({clip.pair_label})", best.score, "", "", of_clip
    )
    verdicts = check_pictures(drawn, captions) if are_shapes(captions) else None
    if verdicts:
        exact = accuracy(verdicts)
        scene = exact.pop("scene")
        exact_facts: dict[str, Fact] = {**facts, "checker": "exact, without learned parts"}
        numbers["attribute_accuracy"] = Number("Attribute accuracy", exact, "%", "higher", exact_facts)
        numbers["scene_accuracy"] = Number("Scene accuracy (all is right)", scene, "%", "higher", exact_facts)
    if gallery is not None:
        assert labels is not None
        wanted = [labels[index] for index, _ in rows]
        known = list(read_records(gallery, max_bad=max_bad))
        numbers |= picture_retrieval(network, features, wanted, known, gallery.name, batch_size, facts)
        names = list(dict.fromkeys(record.caption or "" for record in known))
        numbers |= name_retrieval(clip, {"drawn": drawn, "real": real}, wanted, names, batch_size, of_clip)

    items = []
    for i in range(min(SHOWN, len(drawn))):
        wrong = wrong_attributes(verdicts[i]) if verdicts else []
        detail = f"wrong: {', '.join(wrong)}" if wrong else ""
        items.append(Item([drawn[i], real[i]], captions[i], verdicts[i].all if verdicts else None, detail))
    figure = Figure("Drawn from the caption, and the data's own picture beside it", items)
    return Section("generation", "Generation", numbers, [figure], too_few(len(drawn), network.dim))
