"""The commands that measure tokenizers. Free of torch until one runs, so that help is quick."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers_vq.errors import Problems, UserError, shown
from unitok.data.text_files import printable

from .commands import Device, check_counts, finish, with_texts

if TYPE_CHECKING:
    import torch


Lpips = Literal["auto", "alex", "vgg", "squeeze", "none"]


def reconstruct(
    pictures: list[Path], tokenizer: Path, out: Path = Path("runs/reconstructed"), device: Device = "auto"
) -> None:
    """Pictures of any size through a tokenizer and back: what its codes keep.

    Writes NAME.png of every picture, in its own size, and prints one line each: file, pixels, codes, and PSNR. Pictures
    of more than a megapixel go through in tiles.

    Args:
        pictures: Picture files. Where the tokenizer's stride does not divide a side, the edge is repeated and cut off
            again.
        tokenizer: Folder of a tokenizer, as `unitok train tokenizer` writes it, or of a model that holds one.
        out: Folder for the pictures.
        device: auto takes a GPU where there is one.

    Example:
        unitok reconstruct pictures/cat.png --tokenizer runs/demo/tokenizer --out runs/reconstructed
    """
    problems = Problems()
    problems.check(bool(pictures), "nothing to reconstruct: give picture files")
    for path in pictures:
        problems.check(path.is_file(), f"{printable(str(path))} is not a file")
    names = [f"{path.stem}.png" for path in pictures]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems.check(not twice, f"several pictures would be written as {shown(', '.join(twice))}: rename them")
    problems.raise_if_any()
    from tokenizers_vq.base import find_tokenizer
    from tokenizers_vq.images import save_png
    from unitok.device import pick_device
    from unitok.sample.pictures import read_picture

    from .metrics.reconstruction import reconstruct_whole

    loaded = find_tokenizer(tokenizer, pick_device(device))
    loaded.check_pixels()
    for path, name in zip(pictures, names, strict=True):
        picture = read_picture(path)
        back, codes, decibels = reconstruct_whole(loaded, picture)
        out.mkdir(parents=True, exist_ok=True)
        save_png(out / name, back)
        height, width = picture.shape[1:]
        size = f"{height}x{width}\t{codes:,} codes of {loaded.codebook_size:,}"
        print(f"{printable(str(path))}\t{size}\tPSNR {decibels:.2f} dB", flush=True)


def eval_tokenizer(
    tokenizer: Path,
    data: str,
    out: Path = Path("runs/eval-tokenizer"),
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    lpips: Lpips = "auto",
    lpips_weights: Path | None = None,
    pfid: float | None = None,
    pfid_among: int = 100,
    label: str | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> None:
    """Measure a tokenizer: PSNR, SSIM, LPIPS, reconstruction FID and codebook use; on request pFID and a linear probe.

    Prints a table and writes report.json, report.html, and its figures as PNG files: reconstructions beside originals
    with maps of the error, how often codes occur, and of several scales the picture after each.

    Args:
        tokenizer: Folder of a tokenizer, as `unitok train tokenizer` writes it, or of a model that holds one.
        data: Pictures to reconstruct, SOURCE[@SPLIT][?key=value&...]; captions are not needed.
        out: Folder for the report.
        limit: Pictures used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are scaled and cropped to this square; null for the tokenizer's own size.
        features: Network for rFID: embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or
            dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        lpips: Network of LPIPS, whose weights are fetched if need be; auto takes alex where they are on this machine,
            and leaves LPIPS out elsewhere.
        lpips_weights: File with torchvision's weights of that network, instead of the download.
        pfid: Also pFID (arXiv:2503.08354): FID after this share of each picture's codes was replaced by near ones, such
            as 0.25. It decodes every picture once more.
        pfid_among: Nearest codes that a replaced one is drawn from, itself included.
        label: Column or template of the data that holds a picture's class, such as label (its folder's name): also a
            linear probe, how well the class is known from the codes. It looks at the first 4,000 pictures.
        batch_size: Pictures at a time; changes the speed, not the numbers.
        device: auto takes a GPU where there is one.

    Example:
        unitok eval tokenizer --tokenizer runs/demo/tokenizer --data shapes@val --out runs/eval-tokenizer
    """
    started = time.time()
    check_counts(batch_size, limit)
    from tokenizers_vq.base import find_tokenizer
    from unitok.data.open import open_data
    from unitok.device import pick_device

    from .measure import measure_tokenizer
    from .metrics.perturbed import Perturbation
    from .networks.features import load_features
    from .reports.output import claim_folder

    where = pick_device(device)
    loaded = find_tokenizer(tokenizer, where)
    loaded.check_pixels()
    perturbation = None if pfid is None else Perturbation(loaded, pfid, pfid_among)
    dataset = open_data(with_texts(data, label=label), image_size or loaded.image_size, captions=False)
    network = load_features(features, where, feature_weights)
    perceptual, left_out = _open_lpips(lpips, lpips_weights, where)
    claim_folder(out)
    section = measure_tokenizer(
        loaded,
        dataset,
        network,
        lpips=perceptual,
        perturbation=perturbation,
        probed=label is not None,
        limit=limit,
        max_bad=max_bad,
        batch_size=batch_size,
    )
    section.warnings += left_out
    finish("Tokenizer evaluation", [section], out, started, {"tokenizer": str(tokenizer)})


def compare_tokenizers(
    tokenizers: list[Path],
    data: str,
    out: Path = Path("runs/compare-tokenizers"),
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    lpips: Lpips = "auto",
    lpips_weights: Path | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> None:
    """Tokenizers side by side on the same pictures: quality, codebook use, bits, parameters and speed in one table.

    Writes report.json, report.html with the same pictures reconstructed by each, and the figures as PNG files. Speeds
    are taken in turns, so that whatever else the machine does falls on all alike.

    Args:
        tokenizers: Folders of tokenizers, or of models that hold one.
        data: Pictures to reconstruct, SOURCE[@SPLIT][?key=value&...]; captions are not needed.
        out: Folder for the report.
        limit: Pictures used; null for all (of endless data, 1000).
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are scaled and cropped to this square; null for the size that all the tokenizers have.
        features: Network for rFID: embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or
            dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        lpips: Network of LPIPS, whose weights are fetched if need be; auto takes alex where they are on this machine,
            and leaves LPIPS out elsewhere.
        lpips_weights: File with torchvision's weights of that network, instead of the download.
        batch_size: Pictures at a time, also when speed is measured.
        device: auto takes a GPU where there is one.

    Example:
        unitok compare-tokenizers runs/tokenizer runs/tokenizer_scales --data "shapes@val?limit=500"
    """
    started = time.time()
    check_counts(batch_size, limit)
    if len(tokenizers) < 2:
        raise UserError(f"{len(tokenizers)} tokenizer given: name two folders or more to compare")
    from tokenizers_vq.base import find_tokenizer
    from unitok.data.open import open_data
    from unitok.device import pick_device

    from .compare_tokenizers import common_size, measure_side_by_side, short_names
    from .networks.features import load_features
    from .reports.output import claim_folder

    where = pick_device(device)
    names = short_names(tokenizers)
    loaded = {name: find_tokenizer(path, where) for name, path in zip(names, tokenizers, strict=True)}
    for one in loaded.values():
        one.check_pixels()
    size = common_size(loaded, image_size)
    dataset = open_data(data, size, captions=False)
    network = load_features(features, where, feature_weights)
    perceptual, left_out = _open_lpips(lpips, lpips_weights, where)
    claim_folder(out)
    section = measure_side_by_side(
        loaded, dataset, network, lpips=perceptual, limit=limit, max_bad=max_bad, batch_size=batch_size
    )
    section.warnings += left_out
    facts = {name: str(path) for name, path in zip(names, tokenizers, strict=True)}
    finish("Tokenizers side by side", [section], out, started, facts)


def _open_lpips(name: Lpips, weights: Path | None, device: torch.device) -> tuple[torch.nn.Module | None, list[str]]:
    """The network of LPIPS, or None and why it is left out."""
    from tokenizers_vq.losses.reconstruction import load_lpips, lpips_url
    from tokenizers_vq.storage.foreign import cached

    if name == "none":
        return None, []
    place = cached(lpips_url("alex"))
    if name == "auto" and weights is None and not place.is_file():
        return None, [
            f"LPIPS is left out: its weights {place.name} are not in {place.parent}; --lpips alex fetches them, and "
            "--lpips_weights FILE takes them from elsewhere"
        ]
    return load_lpips("alex" if name == "auto" else name, weights, "--lpips_weights").to(device), []
