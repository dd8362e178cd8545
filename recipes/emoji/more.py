"""The emoji of a data set in more styles, from icon packages of npm.

    for set in emojione emojione-v1 fxemoji streamline-emojis noto-v1 fluent-emoji-flat; do
      npm install --prefix icons @iconify-json/$set
    done
    npm install --prefix icons emojibase-data
    pip install resvg-py pyarrow
    python recipes/emoji/more.py data/emoji icons/node_modules data/more

writes `data/more/`: the training pictures of data/emoji and, under the same captions, those of six further sets, 64 px
on white (`train-*.parquet`, shuffled), and LICENSES.txt. A set's icons are found by name: the caption, the Unicode
name, or a short code of emojibase. Two sets are other drawings of a style that is there (`RELATED`): where that style
is held out, theirs is left out too, so that nobody has seen the held-out drawing. data/emoji holds `train-*.parquet`
and `val-*.parquet` with the columns image, text, style, name and unicode.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers_vq.storage.files import read_json

SETS = ("emojione", "emojione-v1", "fxemoji", "streamline-emojis", "noto-v1", "fluent-emoji-flat")
RELATED = {"noto-v1": "noto", "fluent-emoji-flat": "fluent"}
SHORT_CODES = ("cldr", "emojibase", "emojibase-legacy", "iamcal", "joypixels", "github")
SIDE = 64
SHARD = 4096
Row = dict[str, Any]


def key(name: str) -> str:
    """Letters and digits of a name alone; flags are called in many ways."""
    name = re.sub(r"^flag[ -](of the|of|for)[ -]", "flag-", name.lower())
    return re.sub(r"[^a-z0-9]", "", name)


def code_points(text: str) -> tuple[str, ...]:
    """Of `U+1F415` or `1f468-200d-2695-fe0f`, without the mark that asks for colour."""
    return tuple(point for point in re.findall(r"[0-9a-f]{4,6}", text.lower()) if point != "fe0f")


def names_of(rows: list[Row], packages: Path) -> dict[str, str]:
    """Key of every name an emoji is known by -> its caption."""
    captions: dict[str, str] = {}
    for row in rows:
        captions.setdefault(key(row["text"]), row["text"])
    for row in rows:
        captions.setdefault(key(row["name"].replace("&", "and")), row["text"])
    by_points = {code_points(row["unicode"]): row["text"] for row in rows}
    for source in SHORT_CODES:
        codes = read_json(packages / f"emojibase-data/en/shortcodes/{source}.json")
        for points, names in codes.items():
            caption = by_points.get(code_points(points))
            for name in [names] if isinstance(names, str) else names:
                if caption is not None:
                    captions.setdefault(key(name), caption)
    return captions


def icons(folder: Path, captions: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(caption, SVG) of every emoji of a set; a second drawing, called `strawberry-1`, where there is no first."""
    about = read_json(folder / "icons.json")
    found: dict[str, str] = {}
    for name in sorted(about["icons"], key=lambda name: (bool(re.search(r"-\d$", name)), name)):
        caption = captions.get(key(name)) or captions.get(key(re.sub(r"-\d$", "", name)))
        if caption is not None:
            found.setdefault(caption, name)
    for caption, name in found.items():
        icon = about["icons"][name]
        width, height = (icon.get(side) or about.get(side) or 16 for side in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        yield caption, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def drawn(svg: str) -> bytes:
    """PNG file of SIDE x SIDE pixels on white."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white"))


def more(data: Path, packages: Path, out: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    def read(split: str) -> list[Row]:
        return [row for file in sorted(data.glob(f"{split}-*.parquet")) for row in parquet.read_table(file).to_pylist()]

    known, held = read("train"), read("val")
    hidden = {(row["style"], row["text"]) for row in held}
    captions = names_of(known + held, packages)
    rows = [{"image": row["image"], "text": row["text"], "style": row["style"]} for row in known]
    licences = [f"The pictures of {data}: see there."]
    for style in SETS:
        folder = packages / "@iconify-json" / style
        made = [
            {"image": {"bytes": drawn(svg), "path": f"{style}/{key(caption)}.png"}, "text": caption, "style": style}
            for caption, svg in icons(folder, captions)
            if (RELATED.get(style), caption) not in hidden
        ]
        info = read_json(folder / "info.json")
        licences.append(f"{style}: {info['name']}, {info['author']['name']}, {info['license']['title']}")
        print(f"{licences[-1]}: {len(made)} pictures")
        rows += made
    random.Random(0).shuffle(rows)
    out.mkdir(parents=True, exist_ok=True)
    count = -(-len(rows) // SHARD)
    for shard in range(count):
        table = pyarrow.Table.from_pylist(rows[shard * SHARD : (shard + 1) * SHARD])
        parquet.write_table(table, out / f"train-{shard:05d}-of-{count:05d}.parquet")
    (out / "LICENSES.txt").write_text("\n".join(licences) + "\n")
    print(f"wrote {out}: {len(rows)} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the emoji, as README.md says")
    parser.add_argument("packages", type=Path, help="node_modules with the icon packages")
    parser.add_argument("out", type=Path, help="new folder")
    given = parser.parse_args()
    more(given.data, given.packages, given.out)


if __name__ == "__main__":
    main()
