"""Emoji that a model draws of held-out captions, beside the nearest pictures that it was trained on.

    python recipes/emoji/look.py runs/emoji/generator data/emoji --out runs/emoji/look

draws every held-out caption once and writes `pictures/` with names and styles (for `unitok eval retrieval`), and
`sheet.png`, which shows 40 of them: drawn, nearest training picture, held-out picture. It prints how often the style is
the asked one, by a linear classifier of features that is told styles by the training pictures, and how many are copies
of the emoji in another style. Features are those of EfficientNet-Lite0 (`pip install "unitok-vq[features]"`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from unitok.data.records import Record, RecordDataset

SHOWN = 40
PENALTY = 1e-3
"""Of the classifier, as a share of a picture's mean squared length."""


def classifier(features: torch.Tensor, labels: Sequence[str]) -> Callable[[torch.Tensor], list[str]]:
    """Ridge regression of features (N, D) to one-hot labels."""
    names = sorted(set(labels))
    wanted = F.one_hot(torch.tensor([names.index(label) for label in labels]), len(names)).double()
    mean, middle = features.double().mean(0), wanted.mean(0)
    x = features.double() - mean
    penalty = PENALTY * x.square().sum() * torch.eye(x.shape[1], dtype=torch.float64) / x.shape[1]
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (wanted - middle))

    def classify(some: torch.Tensor) -> list[str]:
        return [names[number] for number in ((some.double() - mean) @ weights + middle).argmax(1).tolist()]

    return classify


def share(hits: Sequence[bool]) -> str:
    return f"{sum(hits) / len(hits):.1%}"


def named(data: Path, split: str) -> tuple[RecordDataset, list[tuple[str, str]]]:
    """Pictures, and the name and style of each."""
    from unitok.data.open import open_data

    pictures = open_data(f"{data}@{split}?caption={{text}}, {{style}} style", (64, 64))
    captions = [str(pictures[number].caption) for number in range(len(pictures))]
    split_up = [caption.removesuffix(" style").rsplit(", ", 1) for caption in captions]
    return pictures, [(name, style) for name, style in split_up]


def look(model_folder: Path, data: Path, out: Path, seed: int) -> None:
    from tokenizers_vq.images import save_grid, save_png
    from unitok.eval.metrics.memorisation import nearest
    from unitok.eval.networks.features import load_features
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw

    train, known = named(data, "train")
    held, asked = named(data, "val")
    model = UniTok.from_pretrained(model_folder).eval()
    captions = [f"{name}, {style} style" for name, style in asked]
    drawn = draw(model, captions, seeds=[seed + n for n in range(len(held))], precision=prepare(model, "auto")).cpu()
    network = load_features("efficientnet_lite0")

    def features(pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([network.features(torch.stack(list(some))) for some in batches(pictures)])

    def of(records: RecordDataset) -> torch.Tensor:
        return features([picture(records[number]) for number in range(len(records))])

    seen, own, ours = of(train), of(held), features(list(drawn))
    style_of = classifier(seen, [style for _, style in known])
    told = style_of(ours)
    cosine, place = nearest(ours, [seen])
    limit = nearest(own, [seen])[0].double().quantile(0.99)
    twins = [known[at] for at in place.tolist()]
    pairs = list(zip(told, twins, asked, strict=True))
    print(f"style told right: the data's own {share([a == b[1] for a, b in zip(style_of(own), asked, strict=True)])}")
    print(f"style told right: drawn {share([style == want for style, _, (_, want) in pairs])}")
    print(f"nearest training picture is the asked emoji: {share([twin[0] == want[0] for _, twin, want in pairs])}")
    copies = [style == twin[1] != want[1] and twin[0] == want[0] for style, twin, want in pairs]
    print(f"the asked emoji in another style, and told as that style: {share(copies)}")
    print(f"nearer to a training picture than 99 % of the data's own: {share((cosine > limit).tolist())}")

    (out / "pictures").mkdir(parents=True, exist_ok=True)
    with (out / "pictures" / "metadata.jsonl").open("w") as about:
        for number, (image, (name, style)) in enumerate(zip(drawn, asked, strict=True)):
            save_png(out / "pictures" / f"{number:04d}.png", image)
            about.write(json.dumps({"file_name": f"{number:04d}.png", "text": name, "style": style}) + "\n")
    shown = [n * len(held) // SHOWN for n in range(SHOWN)]
    trios = [one for n in shown for one in (drawn[n], picture(train[int(place[n])]), picture(held[n]))]
    labels = [label for n in shown for label in (captions[n], ", ".join(twins[n]), "")]
    save_grid(out / "sheet.png", torch.stack(trios), columns=12, labels=labels)
    print(f"wrote {out / 'sheet.png'}: drawn, nearest training picture, held-out picture")


def picture(record: Record) -> torch.Tensor:
    assert record.image is not None
    return record.image


def batches(pictures: Sequence[torch.Tensor], size: int = 64) -> list[Sequence[torch.Tensor]]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    look(given.model, given.data, given.out, given.seed)


if __name__ == "__main__":
    main()
