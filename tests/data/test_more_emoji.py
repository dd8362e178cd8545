"""recipes/emoji/more.py: the emoji of a data set in further styles, from icon packages."""

import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unitok.data.open import open_data

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "emoji" / "more.py"
SQUARE = '<path fill="#ff0000" d="M2 2h12v12H2z"/>'


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("resvg_py", reason="pip install resvg-py")
    spec = importlib.util.spec_from_file_location("more_emoji", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def row(text: str, style: str, unicode: str, name: str = "") -> dict[str, Any]:
    picture = {"bytes": png("white"), "path": f"{style}/{unicode}.png"}
    return {"image": picture, "text": text, "style": style, "name": name or text, "unicode": unicode}


def write_data(folder: Path) -> Path:
    folder.mkdir()
    known = [
        row("strawberry", "twemoji", "U+1F353"),
        row("flag of the united states", "noto", "U+1F1FA U+1F1F8", "flag: United States"),
        row("woman health worker", "noto", "U+1F469 U+200D U+2695 U+FE0F"),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(known), folder / "train-00000.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([row("strawberry", "noto", "U+1F353")]), folder / "val-00000.parquet")
    return folder


def write_packages(folder: Path, sets: dict[str, list[str]]) -> Path:
    """Sets of icons that are all the same red square."""
    for style, names in sets.items():
        where = folder / "@iconify-json" / style
        where.mkdir(parents=True)
        (where / "icons.json").write_text(
            json.dumps({"width": 16, "height": 16, "icons": {name: {"body": SQUARE} for name in names}})
        )
        about = {"name": style.title(), "author": {"name": "Somebody"}, "license": {"title": "MIT"}}
        (where / "info.json").write_text(json.dumps(about))
    codes = folder / "emojibase-data" / "en" / "shortcodes"
    codes.mkdir(parents=True)
    for source in ("cldr", "emojibase", "emojibase-legacy", "iamcal", "joypixels", "github"):
        known = {"1F469-200D-2695": ["female-doctor", "lady_doctor"]} if source == "iamcal" else {"1F9FF": "nazar"}
        (codes / f"{source}.json").write_text(json.dumps(known))
    return folder


def test_icons_join_under_the_captions_of_the_data(script: ModuleType, tmp_path: Path) -> None:
    sets = {style: ["unknown-thing"] for style in script.SETS}
    sets["emojione"] = ["flag-for-united-states", "lady-doctor", "strawberry"]
    sets["streamline-emojis"] = ["strawberry-1", "strawberry-2", "unknown-thing-1"]
    sets["noto-v1"] = ["strawberry", "female-doctor"]
    data = write_data(tmp_path / "emoji")
    script.more(data, write_packages(tmp_path / "icons", sets), tmp_path / "more")
    captions = sorted(
        str(record.caption)
        for record in open_data(f"{tmp_path / 'more'}@train?caption={{text}}, {{style}} style", (64, 64))
    )
    # Held out is the strawberry of noto: that of its earlier version is left out too.
    assert captions == [
        "flag of the united states, emojione style",
        "flag of the united states, noto style",
        "strawberry, emojione style",
        "strawberry, streamline-emojis style",
        "strawberry, twemoji style",
        "woman health worker, emojione style",
        "woman health worker, noto style",
        "woman health worker, noto-v1 style",
    ]
    licences = (tmp_path / "more" / "LICENSES.txt").read_text()
    assert all(f"{style}: {style.title()}, Somebody, MIT" in licences for style in script.SETS)


def test_an_icon_becomes_a_picture_on_white(script: ModuleType) -> None:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{SQUARE}</svg>'
    pixels = np.asarray(Image.open(io.BytesIO(script.drawn(svg))).convert("RGB"))
    assert pixels.shape == (64, 64, 3)
    assert pixels[32, 32].tolist() == [255, 0, 0] and pixels[2, 2].tolist() == [255, 255, 255]
    red = (pixels == [255, 0, 0]).all(2)
    assert red.sum() == 48 * 48, "12 of 16 units a side"
