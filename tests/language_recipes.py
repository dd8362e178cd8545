"""The recipes of recipes/language as they are, but some steps long, on small models and rendered data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from unitok.cli.main import main

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "language"
RUN: dict[str, Any] = {
    "steps": 4,
    "batch_size": 8,
    "save_every": 2,
    "log_every": 1,
    "device": "cpu",
    "precision": "fp32",
}
DATA = {
    "data/captioned@train": "shapes",
    "data/best@train": "shapes?seed=1",
    "data/imagenet@train?caption={label}": "shapes?seed=2",
    "data/answers.jsonl": "shapes?task=questions",
    "data/edits.jsonl": "shapes?task=edit",
    "data/pages.jsonl": "shapes?task=story",
}
"""What a recipe names -> rendered records with the same fields."""
TEXTS = "data/texts.jsonl"
SMALL = {"encoder": "embedded", "queries": 4, "depth": 1}
"""Of a reader."""
RANK = 4


def run_recipe(recipe: str, out: Path, images: Path, *words: str, whole: bool = False, **changed: Any) -> int:
    """`unitok train generator --config` with a recipe, of which some values are changed; None leaves one out.

    Args:
        recipe: name of the file.
        out: folder of the run; the changed recipe is written beside it.
        images: folder of the image tokenizer.
        words: further options.
        whole: whether stages with adapters train all weights instead.
        changed: values in place of the recipe's.
    """
    values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    values |= {
        "data": _sources(values["data"], out),
        "val_data": None,
        "text_length": 16,
        "image_tokenizer": str(images),
    }
    values |= {"run": RUN, "optim": {"lr": 0.01, "warmup_steps": 1}, "out": str(out)}
    if "reader" in values:
        values["reader"] |= SMALL
    if "stages" in values:
        values["stages"] = [_short(stage, out, whole) for stage in values["stages"]]
    values |= changed
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return main(["train", "generator", "--config", str(path), *words])


def _short(stage: dict[str, Any], out: Path, whole: bool) -> dict[str, Any]:
    """A stage with its own data, tasks and trainable parts, and with the length and the rate of all."""
    kept = {name: value for name, value in stage.items() if name not in ("run", "optim")}
    if "data" in stage:
        kept["data"] = _sources(stage["data"], out)
    if "lora" in stage:
        kept["lora"] = {**stage["lora"], "rank": RANK}
    if "lora" in stage and whole:
        del kept["lora"], kept["trainable"]
    return kept


def _sources(data: str | list[dict[str, Any]], out: Path) -> Any:
    if isinstance(data, str):
        return DATA[data]
    return [{**one, "data": _texts(out) if one["data"] == TEXTS else DATA[one["data"]]} for one in data]


def _texts(out: Path) -> str:
    """A file of records that are texts alone."""
    path = out.with_name("texts.jsonl")
    path.write_text("".join(json.dumps({"caption": f"a {size} red circle"}) + "\n" for size in ("small", "large")))
    return str(path)
