"""A style of which there are only a few pictures: what a model that never saw it learns from them.

    python recipes/emoji/few.py split data/emoji runs/emoji/few --style fluent --pictures 100
    python recipes/emoji/few.py sheet runs/emoji/few runs/emoji/base runs/emoji/lora --out few.png

`split` writes folders of pictures with their captions, for `unitok encode`, `train generator` and `eval generator`:

    others      the training pictures of all other styles
    few         some training pictures of the style
    held        the held-out pictures of the style
    kept        the held-out pictures of the other styles

`sheet` draws some captions of `held` and `kept` with each model, a row each, above the held-out pictures themselves.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

SHOWN = 8
"""Captions of each kind on the sheet."""


def read(data: Path, split: str) -> list[dict[str, Any]]:
    """Rows of parquet files with the columns image, file_name, text and style."""
    return [row for path in sorted(data.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def write(rows: list[dict[str, Any]], folder: Path) -> None:
    """A folder of pictures with `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        name = f"{number:05d}.png"
        (folder / name).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": name, "text": row["text"], "style": row["style"]}))
    (folder / "metadata.jsonl").write_text("".join(line + "\n" for line in lines))
    print(f"{folder}: {len(rows):,} pictures")


def split(data: Path, out: Path, style: str, pictures: int) -> None:
    train, val = read(data, "train"), read(data, "val")
    mine = [row for row in train if row["style"] == style]
    if len(mine) < pictures:
        styles = ", ".join(sorted({row["style"] for row in train}))
        raise SystemExit(f"{len(mine)} training pictures have the style {style!r}: choose fewer, or one of {styles}")
    write([row for row in train if row["style"] != style], out / "others")
    write(random.Random(0).sample(mine, pictures), out / "few")
    write([row for row in val if row["style"] == style], out / "held")
    write([row for row in val if row["style"] != style], out / "kept")


def sheet(folder: Path, models: list[Path], out: Path) -> None:
    import torch

    from tokenizers_vq.images import save_grid
    from unitok.data.open import open_data
    from unitok.data.records import Record
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw

    records: list[Record] = []
    for part in ("held", "kept"):
        data = open_data(f"{folder / part}?caption={{text}}, {{style}} style", (64, 64))
        records += [data[number] for number in range(0, len(data), len(data) // SHOWN)][:SHOWN]
    captions = [str(record.caption) for record in records]
    rows = []
    for name in models:
        model = UniTok.from_pretrained(name)
        rows.append(draw(model, captions, seeds=list(range(len(captions))), precision=prepare(model, "auto")).cpu())
    rows.append(torch.stack([record.image for record in records if record.image is not None]))
    save_grid(out, torch.cat(rows), columns=len(records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("split")
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--style", required=True)
    one.add_argument("--pictures", type=int, default=100)
    two = commands.add_parser("sheet")
    two.add_argument("folder", type=Path)
    two.add_argument("models", type=Path, nargs="+")
    two.add_argument("--out", type=Path, required=True)
    given = vars(parser.parse_args())
    {"split": split, "sheet": sheet}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
