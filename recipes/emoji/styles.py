"""Emoji redrawn in another style: makes the pairs, and draws the held-out ones with a trained model.

    python recipes/emoji/styles.py pairs data/emoji runs/emoji/styles
    python recipes/emoji/styles.py draw runs/emoji/styles runs/emoji/style_edits runs/emoji/styles_drawn

`pairs` writes pictures, `train/records.jsonl` and `val/records.jsonl`: every training picture of an emoji from each of
its other styles, and every held-out picture from one of its training styles. `draw` writes what a model makes of the
held-out pairs as a folder of pictures with their names, for `unitok eval retrieval`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def pairs(data: Path, out: Path) -> None:
    """Writes the pictures of parquet files with the columns image, file_name, text and style, and records of edits."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "val"):
        files = sorted(data.glob(f"{split}-*.parquet"))
        rows[split] = [row for path in files for row in pq.read_table(path).to_pylist()]
    trained: dict[str, list[dict[str, Any]]] = {}
    for row in rows["train"]:
        trained.setdefault(row["text"], []).append(row)
    for split, found in rows.items():
        folder = out / split
        lines = []
        for row in found:
            others = [one for one in trained.get(row["text"], []) if one["style"] != row["style"]]
            for source in others if split == "train" else others[:1]:
                for one in (source, row):
                    path = folder / one["file_name"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(one["image"]["bytes"])
                lines.append(
                    {
                        "source": source["file_name"],
                        "instruction": f"in the style of {row['style']}",
                        "image": row["file_name"],
                        "caption": row["text"],
                    }
                )
        (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        print(f"{folder}: {len(lines):,} pairs")


def draw(pairs: Path, model_folder: Path, out: Path, device: str) -> None:
    """Draws the held-out pairs: out/pictures with their names, and out/sheet.png, whose columns are source, drawn and
    true picture."""
    import torch

    from tokenizers_vq.images import save_grid, save_png
    from unitok.data.open import open_data
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare
    from unitok.sample.performing import perform

    model = UniTok.from_pretrained(model_folder, pick_device(device)).eval()
    data = open_data(str(pairs / "val" / "records.jsonl"), model.image_tokenizer.image_size)
    records = [data[number] for number in range(len(data))]
    drawn = perform(model, "edit", records, precision=prepare(model, "auto"))
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    with (out / "pictures" / "metadata.jsonl").open("w") as about:
        for number, (picture, record) in enumerate(zip(drawn, records, strict=True)):
            save_png(out / "pictures" / f"{number:04d}.png", picture)
            about.write(json.dumps({"file_name": f"{number:04d}.png", "text": record.caption}) + "\n")
    shown = range(0, len(records), max(1, len(records) // 40))
    trios = [one for at in shown for one in (records[at].fields["source"], drawn[at].cpu(), records[at].image)]
    labels = [text for at in shown for text in ("", str(records[at].fields["instruction"]), "")]
    save_grid(out / "sheet.png", torch.stack(trios), columns=12, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pairs")
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path)
    two = commands.add_parser("draw")
    for name in ("pairs", "model", "out"):
        two.add_argument(name, type=Path)
    two.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.command == "pairs":
        pairs(given.data, given.out)
    else:
        draw(given.pairs, given.model, given.out, given.device)


if __name__ == "__main__":
    main()
