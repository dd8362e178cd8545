"""Emoji that a model draws of held-out captions, beside the nearest pictures that it was trained on.

    python recipes/emoji/look.py runs/emoji/generator data/emoji --out runs/emoji/look

draws every held-out caption once and writes `pictures/` with names and styles (for `unitok eval retrieval`),
`drawn.png`, which shows 40 of them, and `sheet.png`, where these stand beside the nearest training picture and the
held-out one. It prints how often the style is the asked one, by a linear classifier of features that is told styles by
the training pictures, and how many are copies of the emoji in another style. Features are those of the embedded
network; `--features efficientnet_lite0` sees more, and takes long without a GPU.
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
    from unitok.data.records import Record

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


def read(data: Path, split: str) -> tuple[list[Record], list[tuple[str, str]]]:
    """Records, and the name and style of each."""
    from unitok.data.open import open_data
    from unitok.eval.pictures import read_records

    records = list(read_records(open_data(f"{data}@{split}?caption={{text}}, {{style}} style", (64, 64))))
    split_up = [str(record.caption).removesuffix(" style").rsplit(", ", 1) for record in records]
    return records, [(name, style) for name, style in split_up]


def look(model_folder: Path, data: Path, out: Path, features: str, seed: int, best_of: int | None) -> None:
    from tokenizers_vq.images import save_grid, save_png
    from unitok.eval.feature_network import extract
    from unitok.eval.metrics.memorisation import nearest
    from unitok.eval.networks.features import load_features
    from unitok.eval.pictures import picture_batches, progress
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw
    from unitok.sampling import SampleSettings

    train, known = read(data, "train")
    held, asked = read(data, "val")
    model = UniTok.from_pretrained(model_folder).eval()
    captions = [str(record.caption) for record in held]
    settings = SampleSettings.of(model.config, None if best_of is None else {"best_of": best_of})
    seeds = [seed + n for n in range(len(held))]
    drawn = draw(model, captions, settings, seeds, precision=prepare(model, "auto")).cpu()
    network = load_features(features)

    def measured(records: list[Record], what: str) -> torch.Tensor:
        return extract(network, (some for some, _ in picture_batches(progress(records, what, len(records)), 64)))

    seen, own = measured(train, "training pictures"), measured(held, "held-out pictures")
    ours = extract(network, drawn.split(64))
    style_of = classifier(seen, [style for _, style in known])
    cosine, place = nearest(ours, [seen])
    limit = nearest(own, [seen])[0].double().quantile(0.99)
    twins = [known[at] for at in place.tolist()]
    styles = [style for _, style in asked]
    pairs = list(zip(style_of(ours), twins, asked, strict=True))
    print(f"style told right: the data's own {share([a == b for a, b in zip(style_of(own), styles, strict=True)])}")
    print(f"style told right: drawn {share([style == want[1] for style, _, want in pairs])}")
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
    trios = [one for n in shown for one in (drawn[n], train[int(place[n])].image, held[n].image) if one is not None]
    labels = [label for n in shown for label in (captions[n], ", ".join(twins[n]), "")]
    save_grid(out / "sheet.png", torch.stack(trios), columns=12, labels=labels)
    save_grid(out / "drawn.png", drawn[shown], columns=10)
    print(f"wrote {out / 'sheet.png'}: drawn, nearest training picture, held-out picture")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", default="embedded", help="network, as --features of unitok eval generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--best_of", type=int, help="as of unitok sample; left out: the model's own")
    given = parser.parse_args()
    look(given.model, given.data, given.out, given.features, given.seed, given.best_of)


if __name__ == "__main__":
    main()
