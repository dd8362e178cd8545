"""The measurement of drawn pictures: from captions to a section of a report.

Pictures are looked at as they are drawn and not kept, so memory does not grow with their number, but for a line of
values and two CLIP embeddings each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.records import Record, RecordDataset
from unitok.data.shapes.checker import ATTRIBUTES, Verdict, accuracy
from unitok.device import Precision
from unitok.model import UniTok
from unitok.prepare import noted
from unitok.sample.pipeline import draw
from unitok.sampling import SampleSettings
from unitok.text import CaptionEncoder

from .feature_network import FeatureNetwork, ImageTextNetwork
from .metrics.alignment import are_shapes, by_category, check_pictures, object_count, share_by_objects, wrong_attributes
from .metrics.clipscore import cosine_scores, summarize
from .metrics.cmmd import cmmd
from .metrics.distances import distances
from .metrics.geneval import CATEGORIES, overall
from .metrics.intervals import with_intervals
from .metrics.r_precision import r_precision
from .metrics.retrieval import name_retrieval, picture_retrieval
from .metrics.statistics import KEPT, Statistics, StatisticsMeter
from .pictures import MAX_BAD, count_pictures, progress, read_records
from .provenance import Fact, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""
FEWEST = 4
"""Captions; below it, KID has no subsets."""


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
    reference: Statistics | None = None,
    gallery: RecordDataset | None = None,
    save_features: bool = False,
) -> Section:
    """Draws one picture for each caption of a data set and compares them with its pictures and captions. Where records
    have a field `prompt`, that is drawn from, and the captions are what the pictures are compared with.

    FID, KID, precision, recall, density, coverage, CMMD, CLIPScore and R-precision; the Inception Score with Inception;
    on `shapes` also what the checker reads in the pictures; with a gallery, retrieval of the right name by the nearest
    known picture and by the nearest name. The section has one line of values per picture.

    Args:
        model: draws the pictures.
        dataset: captions, and pictures of the model's size.
        network: features for FID, KID, precision and retrieval.
        clip: network for CLIPScore, R-precision and CMMD.
        settings: how codes are chosen; default: as the model likes it.
        seed: picture i is drawn with seed + i.
        limit: captions used; None for all (of an endless data set, 1000).
        max_bad: share of broken pictures that is left out; more of them are an error.
        batch_size: pictures drawn at a time; changes the speed, not the pictures.
        precision: see `unitok.device`.
        reference: of the set that FID and its kin compare with; None for the pictures of `dataset`.
        gallery: known pictures whose captions are names; the field `label` of a record of `dataset` is the right one.
        save_features: keep all features in the section, for a bootstrap of FID; they grow with the number of pictures.

    Raises:
        UserError: too few captions, records without a prompt among such with one, labels that are no names of the
            gallery, or `save_features` with a reference whose features are not known.
    """
    settings = settings or SampleSettings.of(model.config)
    count = count_pictures(dataset, limit)
    if count < FEWEST:
        raise UserError(f"data {dataset.name!r} gives {count} captions: measuring needs at least {FEWEST}")
    if save_features and reference is not None:
        reference.all_features()  # an error before anything is drawn
    keep = None if gallery is not None or save_features else KEPT
    meters = {
        "drawn": StatisticsMeter(network, "drawn pictures", keep=keep),
        "real": StatisticsMeter(network, dataset.name, keep=keep),
    }
    embeddings: dict[str, list[Tensor]] = {"drawn": [], "real": [], "text": []}
    text_ids, cut = CaptionEncoder(model.text_tokenizer, model.config.text_length), 0
    captions: list[str] = []
    drawn_from: list[str] = []
    labels: list[str] = []
    verdicts: list[Verdict] | None = []
    values: list[dict[str, Fact]] = []
    items: list[Item] = []
    for batch in _batches(progress(read_records(dataset, limit, max_bad), "drawing", count), batch_size):
        some = [record.caption or "" for record in batch]
        prompts = _prompts(batch, dataset.name)
        seeds = list(range(seed + len(captions), seed + len(captions) + len(some)))
        real = torch.stack([record.image for record in batch if record.image is not None])
        cut += sum(map(model.too_long, prompts))
        drawn = draw(model, prompts, settings, seeds, batch_size=batch_size, precision=precision, text_ids=text_ids)
        meters["drawn"].update(drawn)
        if reference is None or gallery is not None:
            meters["real"].update(real)
        embeddings["drawn"].append(clip.image_embeddings(drawn))
        embeddings["real"].append(clip.image_embeddings(real))
        embeddings["text"].append(clip.text_embeddings(some))
        judged = None
        if verdicts is not None and are_shapes(some):
            judged = check_pictures(drawn, some)
            verdicts += judged
        else:
            verdicts = None
        for i, record in enumerate(batch):
            asked = {"prompt": prompts[i]} if prompts[i] != some[i] else {}
            values.append({"item": record.name, "caption": some[i], **asked, "seed": seeds[i]})
            if len(items) < SHOWN:
                wrong = f"wrong: {', '.join(wrong_attributes(judged[i]))}" if judged and not judged[i].all else ""
                items.append(Item([drawn[i], real[i]], prompts[i], judged[i].all if judged else None, wrong))
        captions += some
        drawn_from += prompts
        labels += [record.fields.get("label", "") for record in batch]
    if len(captions) < FEWEST:
        raise UserError(f"data {dataset.name!r} gives {len(captions)} captions: measuring needs at least {FEWEST}")

    prompted = drawn_from != captions
    of_drawn = meters["drawn"].result()
    of_real = reference or meters["real"].result()
    facts: Provenance = {
        "data": dataset.name,
        "captions_sha256": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
        **({"prompts_sha256": hashlib.sha256("\n".join(drawn_from).encode()).hexdigest()} if prompted else {}),
        "pictures": len(captions),
        "image size": meters["drawn"].pictures.size,
        "seed": seed,
        "model_sha256": model.fingerprint(),
        "settings": str(settings),
        "precision": precision,
        **noted(model),
    }
    joined = {name: torch.cat(parts) for name, parts in embeddings.items()}
    numbers, of_each, warnings = picture_numbers(
        of_drawn, of_real, network, clip, joined, captions, verdicts or [], facts, seed
    )
    warnings += cut_warning(cut, model)
    values = [{**one, **other} for one, other in zip(values, of_each, strict=True)]
    numbers = with_intervals(numbers, values, "caption")
    if gallery is not None:
        features = {name: meter.rows.result() for name, meter in meters.items()}
        known = list(read_records(gallery, max_bad=max_bad))
        numbers |= picture_retrieval(network, features, labels, known, gallery.name, batch_size, facts)
        names = list(dict.fromkeys(record.caption or "" for record in known))
        numbers |= name_retrieval(clip, joined, labels, names, batch_size, {**facts, **clip.origin})
    figure = Figure("Drawn from the caption, and the data's own picture beside it", items)
    kept = {"drawn": of_drawn.all_features(), "real": of_real.all_features()} if save_features else {}
    return Section("generation", "Generation", numbers, [figure], warnings, values=values, features=kept)


def picture_numbers(
    drawn: Statistics,
    real: Statistics,
    network: FeatureNetwork,
    clip: ImageTextNetwork,
    embeddings: dict[str, Tensor],
    captions: list[str],
    verdicts: list[Verdict],
    facts: Provenance,
    seed: int,
) -> tuple[dict[str, Number], list[dict[str, Fact]], list[str]]:
    """All numbers of drawn pictures: distances, agreement with the captions, and what the checker read.

    Returns:
        Numbers, a line of values per picture, and warnings.
    """
    numbers, warnings = distances(drawn, real, network, facts)
    found, of_each = clip_numbers(clip, embeddings, captions, facts, seed)
    numbers |= found
    if verdicts:
        found, exact_values = exact_numbers(verdicts, captions, facts)
        numbers |= found
        of_each = [{**one, **other} for one, other in zip(of_each, exact_values, strict=True)]
    return numbers, of_each, warnings


def cut_warning(cut: int, model: UniTok) -> list[str]:
    """What a report says where captions of the data were longer than the model reads."""
    if not cut:
        return []
    return [
        f"captions longer than the {model.config.text_length} tokens that the model reads (text_length): {cut}; it "
        "draws their beginning, as in training, and is measured by the whole captions"
    ]


def clip_numbers(
    clip: ImageTextNetwork, embeddings: dict[str, Tensor], captions: list[str], facts: Provenance, seed: int
) -> tuple[dict[str, Number], list[dict[str, Fact]]]:
    """Numbers from the embeddings of drawn and real pictures and of captions, and each picture's share in them."""
    scores = {name: cosine_scores(embeddings[name], embeddings["text"]) for name in ("drawn", "real")}
    of_clip: Provenance = {**facts, **clip.origin}
    label = clip.pair_label
    numbers = {
        "clipscore": Number(f"CLIPScore ({label})", summarize(scores["drawn"]).score, "", "higher", of_clip),
        "clipscore_real": Number(
            f"CLIPScore of the data's own pictures ({label})", summarize(scores["real"]).score, "", "", of_clip
        ),
        "cmmd": Number(f"CMMD ({label})", cmmd(embeddings["drawn"], embeddings["real"]), "", "lower", of_clip),
    }
    values: list[dict[str, Fact]] = [
        {"clipscore": drawn, "clipscore_real": real}
        for drawn, real in zip(scores["drawn"].tolist(), scores["real"].tolist(), strict=True)
    ]
    if len(set(captions)) > 1:
        found = r_precision(embeddings["drawn"], embeddings["text"], captions, seed=seed)
        title = f"R-precision (own caption among {found.candidates}, {label})"
        numbers["r_precision"] = Number(title, found.share, "%", "higher", {**of_clip, "R": found.candidates})
        values = [{**one, "r_precision": int(right)} for one, right in zip(values, found.right, strict=True)]
    return numbers, values


def exact_numbers(
    verdicts: list[Verdict], captions: list[str], facts: Provenance
) -> tuple[dict[str, Number], list[dict[str, Fact]]]:
    """Numbers from the checker's verdicts on shapes pictures, and each picture's share in them."""
    exact = accuracy(verdicts)
    scene = exact.pop("scene")
    tasks = by_category(verdicts, captions)
    counts = [object_count(caption) for caption in captions]
    by_objects = share_by_objects(captions, [verdict.all for verdict in verdicts])
    facts = {**facts, "checker": "exact, without learned parts"}
    numbers = {
        "attribute_accuracy": Number("Attribute accuracy", exact, "%", "higher", facts),
        "scene_accuracy": Number("Scene accuracy (all is right)", scene, "%", "higher", facts),
        "scene_by_objects": Number("Scenes that are all right, by number of objects", by_objects, "%", "higher", facts),
        "geneval": Number("Tasks of GenEval, on shapes by the checker", overall(tasks), "%", "higher", facts),
    }
    values: list[dict[str, Fact]] = []
    for verdict, done, count in zip(verdicts, tasks, counts, strict=True):
        shares = {name: getattr(verdict, name) for name in ATTRIBUTES if getattr(verdict, name) is not None}
        of_tasks: dict[str, Fact] = {f"geneval.{name}": int(done[name]) for name in CATEGORIES if name in done}
        of_scene: dict[str, Fact] = {"scene": int(verdict.all), f"scene_by_objects.{count}": int(verdict.all)}
        values.append({**{name: float(share) for name, share in shares.items()}, **of_scene, **of_tasks})
    return numbers, values


def _prompts(batch: Sequence[Record], name: str) -> list[str]:
    """What the pictures of records are drawn from."""
    prompted = any("prompt" in record.fields for record in batch)
    for record in batch:
        if prompted and not record.fields.get("prompt"):
            raise UserError(f"{record.name} of {name} has no prompt: give it one, or leave it out of the data")
    return [record.fields.get("prompt") or record.caption or "" for record in batch]


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
