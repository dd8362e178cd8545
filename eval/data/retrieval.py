"""The command that looks pictures up in a gallery. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import time
from pathlib import Path

from ..commands import Device, check_counts, finish


def eval_retrieval(
    data: str,
    gallery: str,
    out: Path | None = None,
    limit: int | None = None,
    max_bad: float = 0.01,
    image_size: int | None = None,
    features: str = "embedded",
    feature_weights: Path | None = None,
    batch_size: int = 32,
    device: Device = "auto",
) -> None:
    """Is the nearest picture of a gallery called what this one is called? The share of pictures where it is, among the
    nearest name and among the nearest five.

    The captions of both sets are the names; ?caption= chooses what they are made of. A name is as near as the nearest
    of its pictures, by the cosine of their features. The gallery must not hold the pictures themselves. Use it for
    drawn pictures, or to learn how well a network tells your pictures apart at all.

    Args:
        data: Pictures with their right names, SOURCE[@SPLIT][?key=value&...], such as "emoji/@val?caption=text".
        gallery: Known pictures with their names.
        out: Folder for report.json, items.jsonl and report.html; null prints the table alone.
        limit: Pictures looked up; null for all (of endless data, 1000). The gallery is taken whole.
        max_bad: Share of broken pictures that is left out; more of them stop the measurement.
        image_size: Pictures are first scaled and cropped to this square; null leaves all resizing to the network.
        features: embedded, efficientnet_lite0, inception, clip:<hub id or folder>, dinov2, or
            dinov2:<hub id or folder>.
        feature_weights: File with the weights of inception, instead of the download.
        batch_size: Pictures at a time; changes the speed, not the numbers.
        device: auto takes a GPU where there is one.

    Example:
        unitok eval retrieval "emoji/@val?caption=text" "emoji/@train?caption=text" --features efficientnet_lite0
    """
    started = time.time()
    check_counts(batch_size, limit)
    from unitok.data.open import open_data
    from unitok.device import pick_device

    from ..networks.features import load_features
    from ..reports.output import claim_folder
    from ..sets import retrieve

    dataset, known = open_data(data, image_size), open_data(gallery, image_size)
    network = load_features(features, pick_device(device), feature_weights)
    if out is not None:
        claim_folder(out)
    section = retrieve(dataset, known, network, limit=limit, max_bad=max_bad, batch_size=batch_size)
    finish("Retrieval", [section], out, started, {})
