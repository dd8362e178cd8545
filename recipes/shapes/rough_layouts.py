"""How a model draws from boxes that are not exact, as a person draws them.

    python recipes/shapes/rough_layouts.py runs/tasks/generator --records 64

gives held-out layouts of `shapes` to the model of `unitok demo --tasks all`, unchanged and with their boxes changed at
random, and prints how many pictures the checker finds right. Amounts are shares of the picture's side: sides are moved
to either side, boxes are grown outwards at each side, or moved as a whole, by up to so much.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unitok.data.judging import judge
from unitok.data.open import open_data
from unitok.model import UniTok
from unitok.sample.performing import perform

Change = Callable[[Sequence[float], float, random.Random], list[float]]


def sides(box: Sequence[float], most: float, draw: random.Random) -> list[float]:
    return [side + draw.uniform(-most, most) for side in box]


def grown(box: Sequence[float], most: float, draw: random.Random) -> list[float]:
    return [side + sign * draw.uniform(0, most) for side, sign in zip(box, (-1, -1, 1, 1), strict=True)]


def moved(box: Sequence[float], most: float, draw: random.Random) -> list[float]:
    across, down = draw.uniform(-most, most), draw.uniform(-most, most)
    return [side + by for side, by in zip(box, (across, down, across, down), strict=True)]


CHANGES: list[tuple[Change, float]] = [
    (sides, 0.0),
    (sides, 0.01),
    (sides, 0.03),
    (grown, 0.03),
    (grown, 0.08),
    (moved, 0.03),
    (moved, 0.1),
]


def changed(named: Sequence[Any], change: Change, most: float, draw: random.Random) -> list[Any]:
    """A caption with boxes, its boxes changed; they stay inside the picture."""
    return [
        part if isinstance(part, str) else [min(1.0, max(0.0, side)) for side in change(part, most, draw)]
        for part in named
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--records", type=int, default=64)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    model = UniTok.from_pretrained(given.model).eval()
    data = open_data(f"shapes@val?task=ground&limit={given.records}", model.image_tokenizer.image_size)
    records = [data[number] for number in range(len(data))]
    for change, most in CHANGES:
        draw = random.Random(0)
        given_boxes = [changed(record.fields["named"], change, most, draw) for record in records]
        asked = [
            replace(record, fields={**record.fields, "named": named})
            for record, named in zip(records, given_boxes, strict=True)
        ]
        drawn = perform(model, "layout_to_image", asked)
        right = sum(bool(judge("layout_to_image", one, found)) for one, found in zip(asked, drawn, strict=True))
        print(f"{change.__name__} {most:g}: {right} of {len(asked)}", flush=True)


if __name__ == "__main__":
    main()
