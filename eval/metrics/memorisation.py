"""Are drawn pictures copies of training pictures? The nearest of these, by the cosine of the features.

A cosine alone is not informative, because plain pictures resemble each other. The reference is held-out data: without
copying, drawn pictures are as far from the training set as held-out pictures are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from unitok.data.records import Record, RecordDataset

from ..feature_network import FeatureNetwork, check_features
from ..pictures import MAX_BAD, count_pictures, picture_batches, progress, read_indexed
from ..provenance import PictureSet, Provenance
from ..report import Figure, Item, Number, Section

SHOWN = 16
"""Drawn pictures shown, those with the nearest neighbours."""
YARDSTICK = 0.99
"""A drawn picture is close when it is nearer to the training set than this share of the data's own pictures."""
SAME = 0.99999
"""Cosine from which two pictures are taken for one."""


def measure_memorisation(
    drawn: Tensor,
    real: Tensor,
    train: RecordDataset,
    network: FeatureNetwork,
    *,
    show: Callable[[int], tuple[Tensor, str]],
    facts: Provenance,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
) -> Section:
    """How near drawn pictures and the data's own come to the training pictures, with the nearest pairs.

    Args:
        drawn, real: features (N, D) and (M, D) of drawn pictures, and of pictures that were not trained on.
        train: what the model was trained on; of endless data, the first 1000.
        network: that made the features.
        show: the picture uint8 (3, H, W) and the caption of drawn picture number i.
        facts: what every number carries.
        max_bad, batch_size: of reading `train`, see `pictures.read_indexed`.
    """
    seen, where = PictureSet(train.name), list[int]()

    def records() -> Iterator[Record]:
        rows = read_indexed(train, None, max_bad)
        for index, record in progress(rows, "training pictures", count_pictures(train, None)):
            where.append(index)  # in the order of the features
            yield record

    def features() -> Iterator[Tensor]:
        for images, _ in picture_batches(records(), batch_size):
            yield check_features(network.features(images), network.label, seen.count)
            seen.update(images)

    cosine, place = nearest(torch.cat([drawn, real]), features())
    of_drawn, of_real = cosine[: len(drawn)], cosine[len(drawn) :]
    limit = float(of_real.double().quantile(YARDSTICK))
    origin: Provenance = {
        **facts,
        **network.origin,
        "pictures": len(drawn),
        "train": train.name,
        "train_sha256": seen.hexdigest(),
        "train pictures": seen.count,
    }
    label = network.label
    numbers = {
        "nearest_drawn": Number(
            f"Cosine to the nearest training picture, drawn ({label})", float(of_drawn.double().mean()), "", "", origin
        ),
        "nearest_real": Number(
            f"Cosine to the nearest training picture, the data's own ({label})",
            float(of_real.double().mean()),
            "",
            "",
            origin,
        ),
        "close": Number(
            f"Drawn pictures nearer to one than {YARDSTICK:.0%} of the data's own (by chance {1 - YARDSTICK:.0%})",
            float((of_drawn > limit).double().mean()),
            "%",
            "lower",
            {**origin, "cosine": limit},
        ),
    }
    items = []
    for number in of_drawn.argsort(descending=True, stable=True)[:SHOWN].tolist():
        picture, caption = show(number)
        twin = train[where[int(place[number])]].image
        assert twin is not None
        items.append(Item([picture, twin], caption, detail=f"cosine {float(of_drawn[number]):.4f}"))
    figure = Figure("The nearest pairs", items, ("drawn", "training"), file="nearest.png")
    return Section("memorisation", "Nearest training pictures", numbers, [figure], _notes(of_real))


def nearest(queries: Tensor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Of each query, how near the nearest row of all batches is and which it is; batches are not kept.

    Args:
        queries: (N, D).
        batches: (B, D) each, at least one.

    Returns:
        Cosines (N,) and positions (N,) int64, counted through the batches.
    """
    queries = F.normalize(queries.float(), dim=1)
    best, place = torch.full((len(queries),), -torch.inf), torch.zeros(len(queries), dtype=torch.int64)
    first = 0
    for batch in batches:
        found, row = (queries @ F.normalize(batch.float(), dim=1).T).max(dim=1)
        nearer = found > best
        best, place = torch.where(nearer, found, best), torch.where(nearer, row + first, place)
        first += len(batch)
    return best, place


def _notes(of_real: Tensor) -> list[str]:
    notes = []
    known = float((of_real > SAME).double().mean())
    if known > 1 - YARDSTICK:
        notes.append(
            f"{known:.0%} of the data's own pictures are also training pictures: the share of close drawn pictures "
            "says little; give data that the model was not trained on"
        )
    if len(of_real) < 1 / (1 - YARDSTICK):
        notes.append(
            f"{len(of_real)} pictures of the data are too few to estimate how near {YARDSTICK:.0%} of them come to "
            "the training pictures: give at least 100"
        )
    return notes
