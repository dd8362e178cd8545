"""`unitok compare-tokenizers`: several tokenizers on the same pictures, in one table and side by side."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.data.records import RecordDataset

from .feature_network import FeatureNetwork
from .measure import ONE_PICTURE, SHOWN
from .metrics.frechet import too_few
from .metrics.reconstruction import ReconstructionMeter
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .report import Fact, Number, Section
from .reports.figures import codebook_figure, with_errors

ROUNDS = 5
"""Times that each tokenizer encodes and decodes a batch when its speed is measured."""


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    >>> short_names([Path("runs/a/tokenizer"), Path("runs/b/tokenizer")])
    ['a/tokenizer', 'b/tokenizer']

    Raises:
        UserError: a folder is named twice.
    """
    parts = [path.absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path, one in zip(paths, parts, strict=True) if parts.count(one) > 1)
        raise UserError(f"{twice} is named twice: name different tokenizers")
    longest = max(len(one) for one in parts)
    ends = (["/".join(one[-count:]) for one in parts] for count in range(1, longest + 1))
    return next(names for names in ends if len(set(names)) == len(names))


def common_size(tokenizers: Mapping[str, ImageTokenizer], image_size: int | None) -> tuple[int, int]:
    """(H, W) that all take: the size asked for, else the one that they all have. UserError where there is none."""
    sizes = {name: tokenizer.image_size for name, tokenizer in tokenizers.items()}
    if image_size is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise UserError(f"the tokenizers have different image sizes ({listed}): give --image_size, a size all can take")
    size = next(iter(sizes.values())) if image_size is None else (image_size, image_size)
    for name, tokenizer in tokenizers.items():
        try:
            tokenizer.layout_for(*size)
        except UserError as error:
            raise UserError(f"tokenizer {name} cannot take --image_size {size[0]}: {error}") from error
    return size


def measure_side_by_side(
    tokenizers: Mapping[str, ImageTokenizer],
    dataset: RecordDataset,
    network: FeatureNetwork,
    *,
    lpips: nn.Module | None = None,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """What `measure_tokenizer` measures, and codes, bits, parameters and speed, of several tokenizers.

    Args:
        tokenizers: by name, all on one device.
        dataset: pictures of one size, which all of them take.
        network, lpips, limit, max_bad: as for `measure_tokenizer`.
        batch_size: pictures at a time; speed is measured with so many.
    """
    meters = {
        name: ReconstructionMeter(tokenizer, network, dataset.name, lpips) for name, tokenizer in tokenizers.items()
    }
    records = progress(read_records(dataset, limit, max_bad), "reconstructing", count_pictures(dataset, limit))
    shown: list[tuple[Tensor, list[Tensor], str]] = []
    first: Tensor | None = None
    for images, batch in picture_batches(records, batch_size):
        first = images if first is None else first
        backs = [meter.update(images)[0] for meter in meters.values()]
        if len(shown) < SHOWN:
            texts = [record.caption or record.name for record in batch]
            shown += [(image, list(back), text) for image, text, *back in zip(images, texts, *backs, strict=True)]
    assert first is not None  # a data set without pictures is an error before
    height, width = first.shape[2:]
    scores = {name: meter.scores() for name, meter in meters.items()}
    speeds = _speeds(tokenizers, first)

    hashes = {f"tokenizer_sha256 of {name}": tokenizer.fingerprint() for name, tokenizer in tokenizers.items()}
    one = next(iter(scores.values()))
    facts: dict[str, Fact] = {**one.originals, **hashes}
    device = next(next(iter(tokenizers.values())).parameters()).device
    timing: dict[str, Fact] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "batch": len(first),
        "measured": f"in turns, median of {ROUNDS} rounds, float32",
    }
    codes = {name: tokenizer.layout_for(height, width).length for name, tokenizer in tokenizers.items()}
    sizes = {name: tokenizer.codebook_size for name, tokenizer in tokenizers.items()}
    bits = {name: codes[name] * math.log2(sizes[name]) for name in tokenizers}
    parameters = {name: sum(p.numel() for p in tokenizer.parameters()) for name, tokenizer in tokenizers.items()}
    rfids = {name: score.rfid for name, score in scores.items() if score.rfid is not None}
    lpips_values = {name: score.lpips for name, score in scores.items() if score.lpips is not None}
    of_network: dict[str, Fact] = {**facts, **network.origin}

    numbers = {
        "psnr": Number("PSNR (mean over pictures)", {n: s.psnr for n, s in scores.items()}, "dB", "higher", facts),
        "ssim": Number("SSIM (mean over pictures)", {n: s.ssim for n, s in scores.items()}, "", "higher", facts),
        "lpips": Number("LPIPS (mean over pictures)", lpips_values, "", "lower", facts),
        "rfid": Number(f"rFID ({network.label})", rfids, "", "lower", of_network),
        "codes": Number("Codes per picture", dict(codes), "", "lower", facts),
        "codebook_size": Number("Codebook size", dict(sizes), "", "", facts),
        "bits": Number("Bits per picture (codes x log2 of the size)", bits, "", "lower", facts),
        "codebook_use": Number(
            "Codebook use (share of codes that occur)",
            {n: s.codebook_use for n, s in scores.items()},
            "%",
            "higher",
            facts,
        ),
        "perplexity": Number("Code perplexity", {n: s.perplexity for n, s in scores.items()}, "", "higher", facts),
        "parameters": Number("Parameters of the network", dict(parameters), "", "lower", facts),
        "encode": Number("Encoding", speeds["encode"], "pictures/s", "higher", {**facts, **timing}),
        "decode": Number("Decoding", speeds["decode"], "pictures/s", "higher", {**facts, **timing}),
    }
    if not lpips_values:
        del numbers["lpips"]
    if not rfids:
        del numbers["rfid"]
    figures = [
        with_errors("The same pictures by each", list(tokenizers), shown[:SHOWN], "reconstructions.png"),
        codebook_figure({name: meter.usage for name, meter in meters.items()}, "codebook.png"),
    ]
    few = too_few(one.count, network.dim) if rfids else [ONE_PICTURE]
    return Section("tokenizers", "Tokenizers", numbers, figures, few, tuple(tokenizers))


@torch.no_grad()
def _speeds(tokenizers: Mapping[str, ImageTokenizer], pictures: Tensor) -> dict[str, dict[str, float]]:
    """Pictures per second of "encode" and "decode", by name: all take their turn in every round."""
    device = next(next(iter(tokenizers.values())).parameters()).device
    images = to_float(pictures).to(device)
    seconds: dict[str, dict[str, list[float]]] = {kind: {n: [] for n in tokenizers} for kind in ("encode", "decode")}

    def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        started = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started, result

    for number in range(ROUNDS + 1):
        for name, tokenizer in tokenizers.items():
            layout = tokenizer.layout_for(images.shape[2], images.shape[3])
            encoding, codes = timed(lambda one=tokenizer: one.encode(images))  # type: ignore[misc]
            decoding, _ = timed(lambda one=tokenizer, c=codes, grid=layout: one.decode(c, grid))  # type: ignore[misc]
            if number:  # the first round warms up
                seconds["encode"][name].append(encoding)
                seconds["decode"][name].append(decoding)
    return {
        kind: {name: len(images) / statistics.median(values) for name, values in by_name.items()}
        for kind, by_name in seconds.items()
    }
