"""The measurement of a tokenizer: from a data set to a section of a report."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from unitok.data.records import RecordDataset

from .feature_network import FeatureNetwork
from .metrics.frechet import too_few
from .metrics.perturbed import Perturbation
from .metrics.probe import PROBED, code_products, probe
from .metrics.reconstruction import ReconstructionMeter, as_known
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .report import Fact, Figure, Item, Number, Section
from .reports.figures import codebook_figure, with_errors

SHOWN, SHOWN_BY_SCALE = 32, 8
"""Pictures in a figure."""
ONE_PICTURE = "rFID is left out: it compares sets, and needs two pictures or more"


def measure_tokenizer(
    tokenizer: ImageTokenizer,
    dataset: RecordDataset,
    network: FeatureNetwork,
    *,
    lpips: nn.Module | None = None,
    perturbation: Perturbation | None = None,
    probed: bool = False,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """PSNR, SSIM, LPIPS (with its network), rFID, codebook use and perplexity over the pictures of a data set.

    Args:
        tokenizer: what is measured, on its own device.
        dataset: pictures of a size that the tokenizer takes.
        network: features for rFID.
        lpips: network of `tokenizers_vq.losses.reconstruction.load_lpips`, or None to leave LPIPS out.
        perturbation: what pFID does to the codes, or None to leave pFID out.
        probed: a linear probe says how much of the field `label` of the records can be read from the codes.
        limit: pictures used; None for all (of an endless data set, 1000).
        max_bad: share of broken pictures that is left out; more of them are an error.
        batch_size: pictures at a time; changes the speed, not the numbers.
    """
    meter = ReconstructionMeter(tokenizer, network, dataset.name, lpips, perturbation)
    records = progress(read_records(dataset, limit, max_bad), "reconstructing", count_pictures(dataset, limit))
    shown: list[tuple[Tensor, list[Tensor], str]] = []
    rows: list[Tensor] = []
    labels: list[str | None] = []
    for images, batch in picture_batches(records, batch_size):
        back, codes = meter.update(images)
        if probed and len(labels) < PROBED:
            rows.append(codes)
            labels += [record.fields.get("label") for record in batch]
        if len(shown) < SHOWN:
            shown += [(a, [b], r.caption or r.name) for a, b, r in zip(images, back, batch, strict=True)]
    scores = meter.scores()
    facts: dict[str, Fact] = {**scores.originals, "tokenizer_sha256": tokenizer.fingerprint()}
    numbers = {
        "psnr": Number("PSNR (mean over pictures)", scores.psnr, "dB", "higher", facts),
        "ssim": Number("SSIM (mean over pictures)", scores.ssim, "", "higher", facts),
        "codebook_use": Number("Codebook use (share of codes that occur)", scores.codebook_use, "%", "higher", facts),
        "perplexity": Number(f"Code perplexity (of {tokenizer.counted})", scores.perplexity, "", "higher", facts),
    }
    warnings = [ONE_PICTURE]
    if scores.rfid is not None:
        numbers["rfid"] = Number(f"rFID ({network.label})", scores.rfid, "", "lower", {**facts, **network.origin})
        warnings = too_few(scores.count, network.dim)
    if scores.pfid is not None and perturbation is not None:
        share, among = perturbation.share, perturbation.among
        title = f"pFID ({100 * share:g} % of the codes, each one of {among} near ones; {network.label})"
        disturbed: dict[str, Fact] = {"share of codes": share, "nearest codes": among, **facts, **network.origin}
        numbers["pfid"] = Number(title, scores.pfid, "", "lower", disturbed)
    if probed:
        numbers["probe"] = _probe(tokenizer, torch.cat(rows)[:PROBED], labels[:PROBED], facts)
    if len(scores.scale_use) > 1:
        title = "Codebook use of each scale (share of the codes it could have used)"
        numbers["scale_use"] = Number(title, scores.scale_use, "%", "higher", facts)
    if scores.lpips is not None:
        numbers["lpips"] = Number("LPIPS (mean over pictures)", scores.lpips, "", "lower", facts)
    title = "Originals, reconstructions and where they differ"
    figures = [with_errors(title, [""], shown[:SHOWN], "reconstructions.png")]
    some = [original for original, _, _ in shown[:SHOWN_BY_SCALE]]
    counts, steps = as_known(tokenizer, torch.stack(some))
    if len(counts) > 1:
        items = [Item([*row, image], text) for row, (image, _, text) in zip(steps, shown, strict=False)]
        title = f"After {', '.join(map(str, counts))} codes, and the original"
        figures.append(Figure(title, items, (*map(str, counts), "original"), file="known.png"))
    usages = {"all codes": meter.usage} | (meter.scale_usage if len(scores.scale_use) > 1 else {})
    figures.append(codebook_figure(usages, "codebook.png"))
    return Section("tokenizer", "Tokenizer", numbers, figures, warnings)


def _probe(tokenizer: ImageTokenizer, codes: Tensor, labels: list[str | None], facts: dict[str, Fact]) -> Number:
    """How much of the labels a linear map reads from codes (N, L), beside the share of the largest class."""
    found = probe(code_products(tokenizer.code_vectors(), codes), labels)
    title = f"Class known from the codes by a linear probe (of {found.classes}; leave-one-out ridge)"
    seen: dict[str, Fact] = {"probed": sum(one is not None for one in found.right), "classes": found.classes}
    value = {"right": found.accuracy, "always the largest class": found.chance}
    return Number(title, value, "%", "higher", {**facts, **seen})
