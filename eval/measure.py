"""The measurements: each goes from a data set to a section of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from unitok.data.checker import accuracy
from unitok.data.records import Record, RecordDataset
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sample.config import SampleSettings
from unitok.sample.pipeline import caption, draw

from .alignment import are_shapes, check_pictures, exact_share, nearest_group, true_share, wrong_attributes
from .clipscore import clip_score, pair_scores, summarize
from .features import FeatureNetwork, ImageTextNetwork, extract
from .frechet import frechet_distance, too_few
from .kid import kernel_distance
from .pictures import MAX_BAD, count_pictures, picture_batches, read_indexed, read_records
from .reconstruction import ReconstructionMeter, as_known
from .report import Fact, Figure, Item, Number, Section

SHOWN, SHOWN_BY_SCALE = 32, 8
"""Pictures in a figure."""
T = TypeVar("T")


def measure_tokenizer(
    tokenizer: ImageTokenizer,
    dataset: RecordDataset,
    network: FeatureNetwork,
    *,
    lpips: nn.Module | None = None,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """PSNR, SSIM, LPIPS (with its network), rFID, codebook use and perplexity over the pictures of a data set.

    Args:
        tokenizer: what is measured, on its own device.
        dataset: pictures of a size that the tokenizer takes.
        network: features for rFID.
        lpips: network of `tokenizers_vq.losses.load_lpips`, or None to leave LPIPS out.
        limit: pictures used; None for all (of an endless data set, 1000).
        max_bad: share of broken pictures that is left out; more of them are an error.
        batch_size: pictures at a time; changes the speed, not the numbers.
    """
    meter = ReconstructionMeter(tokenizer, network, lpips)
    records = _progress(read_records(dataset, limit, max_bad), "reconstructing", count_pictures(dataset, limit))
    shown: list[Item] = []
    for images, batch in picture_batches(records, batch_size):
        back = meter.update(images)
        if len(shown) < SHOWN:
            shown += [Item([a, b], r.caption or r.name) for a, b, r in zip(images, back, batch, strict=True)]
        size = f"{images.shape[3]}x{images.shape[2]}"
    scores = meter.scores()
    facts: dict[str, Fact] = {
        "data": dataset.name,
        "pictures": scores.count,
        "image size": size,
        "tokenizer_sha256": tokenizer.fingerprint(),
    }
    numbers = {
        "psnr": Number("PSNR (mean over pictures)", scores.psnr, "dB", "higher", facts),
        "ssim": Number("SSIM (mean over pictures)", scores.ssim, "", "higher", facts),
        "rfid": Number(f"rFID ({network.label})", scores.rfid, "", "lower", {**facts, **_origin(network)}),
        "codebook_use": Number("Codebook use (share of codes that occur)", scores.codebook_use, "%", "higher", facts),
        "perplexity": Number(f"Code perplexity (of {tokenizer.codebook_size})", scores.perplexity, "", "higher", facts),
    }
    if len(scores.scale_use) > 1:
        title = "Codebook use of each scale (share of the codes it could have used)"
        numbers["scale_use"] = Number(title, scores.scale_use, "%", "higher", facts)
    if scores.lpips is not None:
        numbers["lpips"] = Number("LPIPS (mean over pictures)", scores.lpips, "", "lower", facts)
    figures = [Figure("Originals and reconstructions", shown[:SHOWN])]
    some = [item.pictures[0] for item in shown[:SHOWN_BY_SCALE]]
    counts, steps = as_known(tokenizer, torch.stack(some))
    if len(counts) > 1:
        items = [Item([*row, image], item.text) for row, image, item in zip(steps, some, shown, strict=False)]
        figures.append(Figure(f"After {', '.join(map(str, counts))} codes, and the original", items))
    return Section("tokenizer", "Tokenizer", numbers, figures, _warnings(too_few(scores.count, network.dim)))


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
    for start in _progress(range(0, len(captions), batch_size), "drawing"):
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
    numbers = _distances(features["real"], features["drawn"], network, facts, seed)
    score, best = clip_score(clip, drawn, captions), clip_score(clip, real, captions)
    of_clip: dict[str, Fact] = {**facts, **_origin(clip)}
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
        numbers |= _picture_retrieval(network, features, wanted, known, gallery.name, batch_size, facts)
        names = list(dict.fromkeys(record.caption or "" for record in known))
        numbers |= _name_retrieval(clip, {"drawn": drawn, "real": real}, wanted, names, batch_size, of_clip)

    items = []
    for i in range(min(SHOWN, len(drawn))):
        wrong = wrong_attributes(verdicts[i]) if verdicts else []
        detail = f"wrong: {', '.join(wrong)}" if wrong else ""
        items.append(Item([drawn[i], real[i]], captions[i], verdicts[i].all if verdicts else None, detail))
    figure = Figure("Drawn from the caption, and the data's own picture beside it", items)
    return Section("generation", "Generation", numbers, [figure], _warnings(too_few(len(drawn), network.dim)))


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
    records = _progress(read_records(dataset, limit, max_bad), "captioning", count_pictures(dataset, limit))
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


def compare_sets(
    a: RecordDataset,
    b: RecordDataset,
    network: FeatureNetwork,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    seed: int = 0,
) -> Section:
    """FID and KID between the pictures of two data sets; `seed` chooses KID's subsets."""
    features, counts = [], []
    for dataset in (a, b):
        records = _progress(read_records(dataset, limit, max_bad), "features", count_pictures(dataset, limit))
        features.append(extract(network, (images for images, _ in picture_batches(records, batch_size))))
        counts.append(len(features[-1]))
    facts: dict[str, Fact] = {"a": a.name, "b": b.name, "pictures a": counts[0], "pictures b": counts[1]}
    numbers = _distances(features[0], features[1], network, facts, seed)
    return Section("fid", f"{a.name} and {b.name}", numbers, [], _warnings(too_few(min(counts), network.dim)))


def score_pairs(
    dataset: RecordDataset,
    clip: ImageTextNetwork,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """CLIPScore of the pictures and captions of a data set, with the best and the worst pairs."""
    scores: list[Tensor] = []
    items: list[Item] = []
    records = _progress(read_records(dataset, limit, max_bad), "scoring", count_pictures(dataset, limit))
    for images, batch in picture_batches(records, batch_size):
        captions = [record.caption or "" for record in batch]
        scores.append(pair_scores(clip, images, captions))
        items += [
            Item([image], text, detail=f"{score:.1f}")
            for image, text, score in zip(images, captions, scores[-1].tolist(), strict=True)
        ]
        items = sorted(items, key=lambda item: -float(item.detail))
        items = items if len(items) <= SHOWN else items[: SHOWN // 2] + items[-SHOWN // 2 :]
    result = summarize(torch.cat(scores))
    count = len(result.per_picture)
    facts: dict[str, Fact] = {"data": dataset.name, "pictures": count, **_origin(clip)}
    numbers = {"clipscore": Number(f"CLIPScore ({clip.pair_label})", result.score, "", "higher", facts)}
    return Section("pairs", dataset.name, numbers, [Figure("Best pairs first, worst last", items)])


def _distances(a: Tensor, b: Tensor, network: FeatureNetwork, facts: dict[str, Fact], seed: int) -> dict[str, Number]:
    facts = {**facts, **_origin(network)}
    kid = kernel_distance(a, b, seed=seed)
    of_kid: dict[str, Fact] = {**facts, "subsets": 100, "subset size": kid.subset_size, "seed": seed}
    return {
        "fid": Number(f"FID ({network.label})", frechet_distance(a, b), "", "lower", facts),
        "kid": Number(f"KID ({network.label})", kid.mean, "", "lower", of_kid),
        "kid_std": Number("KID, standard deviation over subsets", kid.std, "", "", of_kid),
    }


def _picture_retrieval(
    network: FeatureNetwork,
    features: dict[str, Tensor],
    labels: list[str],
    known: list[Record],
    gallery: str,
    batch_size: int,
    facts: dict[str, Fact],
) -> dict[str, Number]:
    """How often the nearest known picture has the right name, for the drawn pictures and for the real ones."""
    names = [record.caption or "" for record in known]
    vectors = extract(network, (images for images, _ in picture_batches(known, batch_size)))
    more: dict[str, Fact] = {"gallery": gallery, "gallery pictures": len(names), "names": len(set(names))}
    origin: dict[str, Fact] = {**facts, **more, **_origin(network)}
    numbers = {}
    for key, whose in {"drawn": "drawn pictures", "real": "the data's own pictures"}.items():
        share = nearest_group(features[key], labels, vectors, names)
        title = f"Right name among {len(set(names))} by nearest picture, {whose} ({network.label})"
        numbers[f"retrieval_{key}"] = Number(title, share, "%", "higher", origin)
    return numbers


def _name_retrieval(
    clip: ImageTextNetwork,
    pictures: dict[str, Tensor],
    labels: list[str],
    names: list[str],
    batch_size: int,
    facts: dict[str, Fact],
) -> dict[str, Number]:
    """How often the nearest name is the right one, for the drawn pictures and for the real ones."""
    texts = [clip.text_embeddings(names[i : i + batch_size]) for i in range(0, len(names), batch_size)]
    numbers = {}
    for key, whose in {"drawn": "drawn pictures", "real": "the data's own pictures"}.items():
        vectors = torch.cat([clip.image_embeddings(part) for part in pictures[key].split(batch_size)])
        share = nearest_group(vectors, labels, torch.cat(texts), names)
        title = f"Right name among {len(names)} by nearest caption, {whose} ({clip.pair_label})"
        numbers[f"naming_{key}"] = Number(title, share, "%", "higher", {**facts, "names": len(names)})
    return numbers


def _origin(network: FeatureNetwork) -> dict[str, Fact]:
    return {"features": network.name, "features_sha256": network.hash, "resize": network.resize}


def _warnings(*texts: str | None) -> list[str]:
    return [text for text in texts if text]


def _progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    return track(items, what, total=total, console=Console(stderr=True), transient=True)
