"""Pictures and where they come from: a folder or another data spec, a model that draws as it goes, a saved file.

Each source is an iterable of batches uint8 (B, 3, H, W); any other iterable of such tensors will do as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.open import open_data
from unitok.data.records import RecordDataset
from unitok.device import Precision
from unitok.model import UniTok
from unitok.sample.pipeline import draw
from unitok.sampling import SampleSettings
from unitok.text import CaptionEncoder

from .feature_network import FeatureNetwork
from .metrics.statistics import KEPT, Statistics, measure_statistics
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .saved import count_npz_pictures, holds, load_statistics, npz_pictures


def dataset_pictures(
    dataset: RecordDataset, limit: int | None = None, max_bad: float = MAX_BAD, batch_size: int = 32
) -> Iterator[Tensor]:
    """The pictures of an open data set, broken ones left out; a batch ends where the size changes."""
    return (images for images, _ in picture_batches(read_records(dataset, limit, max_bad), batch_size))


def model_pictures(
    model: UniTok,
    captions: Sequence[str],
    settings: SampleSettings | None = None,
    seed: int = 0,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Iterator[Tensor]:
    """One picture for each caption, drawn when it is asked for; picture i has seed + i, whatever its batch. Captions
    longer than the model reads are cut."""
    text_ids = CaptionEncoder(model.text_tokenizer, model.config.text_length)
    for start in range(0, len(captions), batch_size):
        some = list(captions[start : start + batch_size])
        seeds = list(range(seed + start, seed + start + len(some)))
        yield draw(model, some, settings, seeds, batch_size=batch_size, precision=precision, text_ids=text_ids)


def load_set(
    what: str,
    network: FeatureNetwork,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    keep: int | None = KEPT,
    seed: int = 0,
) -> Statistics:
    """Statistics of what a user names: a data spec (see `unitok.data.spec`), or an `.npz` file.

    A file with mu and sigma gives these. A file with pictures (arr_0) is looked at as a folder would be. A file with
    both, as ADM's reference batches, gives FID its mu and sigma, and the other metrics its pictures.

    Args:
        what: data spec or path of an `.npz` file.
        network: see `features.load_features`.
        image_size: pictures of a data spec are first scaled and cropped to this square; None leaves them.
        limit, max_bad, batch_size: see `pictures.read_records`.
        keep, seed: see `statistics.measure_statistics`.

    Raises:
        UserError: nothing of use there, or statistics of another network.
    """
    if not what.endswith(".npz"):
        dataset = open_data(what, image_size, captions=False)
        batches = dataset_pictures(dataset, limit, max_bad, batch_size)
        batches = _shown(batches, count_pictures(dataset, limit), batch_size)
        found = measure_statistics(network, batches, dataset.name, keep=keep, seed=seed)
        if image_size is None:
            return found
        size = f"{found.provenance['image size']} (scaled and cropped before the network)"
        return replace(found, provenance={**found.provenance, "image size": size})
    path = Path(what).expanduser()
    keys = holds(path)
    saved = load_statistics(path) if "mu" in keys or "arr_0" not in keys else None
    if saved is not None:
        check_network(saved, network)
        if "arr_0" not in keys or keep == 0:
            return saved
    if image_size is not None:
        raise UserError(f"--image_size {image_size} does not resize the pictures in {path}: leave it out")
    count = min(count_npz_pictures(path), limit or count_npz_pictures(path))
    if saved is not None and keep is not None:
        count = min(count, keep)
    batches = _shown(npz_pictures(path, batch_size, count), count, batch_size)
    seen = measure_statistics(network, batches, path.name, keep=keep, seed=seed)
    if saved is None:
        return seen
    facts = {**seen.provenance, **saved.provenance, "pictures": saved.provenance.get("pictures")}
    return Statistics(saved.gaussian, seen.features, seen.score, facts)


def check_network(saved: Statistics, network: FeatureNetwork) -> None:
    """Raises UserError when saved statistics cannot be of this network."""
    name, facts = saved.provenance["name"], saved.provenance
    made = saved.gaussian.network
    if made and made != network.hash:
        raise UserError(
            f"{name} was made with features {facts.get('features')} ({made[:12]}), not with {network.name} "
            f"({network.hash[:12]}): give the same --features and weights, or compute the statistics again"
        )
    if len(saved.gaussian.mean) != network.dim:
        raise UserError(
            f"{name} has {len(saved.gaussian.mean)} dimensions, {network.name} has {network.dim}: it was made with "
            "another network; give that one as --features (2048 dimensions are those of inception)"
        )


def _shown(batches: Iterator[Tensor], count: int, batch_size: int) -> Iterator[Tensor]:
    yield from progress(batches, "features", -(-count // batch_size))
