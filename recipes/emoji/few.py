"""A style of which there are only a few pictures: what a model that never saw it learns from them.

    python recipes/emoji/few.py data/emoji runs/emoji/few --style fluent --pictures 100

writes folders of pictures with their captions, for `unitok encode`, `train generator` and `eval generator`:

    others      the training pictures of all other styles
    few         some training pictures of the style
    held        the held-out pictures of the style
    kept        the held-out pictures of the other styles
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--style", required=True)
    parser.add_argument("--pictures", type=int, default=100)
    given = parser.parse_args()
    train, val = read(given.data, "train"), read(given.data, "val")
    mine = [row for row in train if row["style"] == given.style]
    if len(mine) < given.pictures:
        styles = ", ".join(sorted({row["style"] for row in train}))
        parser.error(f"{len(mine)} training pictures have the style {given.style!r}: choose fewer, or one of {styles}")
    write([row for row in train if row["style"] != given.style], given.out / "others")
    write(random.Random(0).sample(mine, given.pictures), given.out / "few")
    write([row for row in val if row["style"] == given.style], given.out / "held")
    write([row for row in val if row["style"] != given.style], given.out / "kept")


if __name__ == "__main__":
    main()
