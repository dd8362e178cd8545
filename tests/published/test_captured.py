"""Published trunks, and language models with windows, draw by captured passes what they draw without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captures import Captures
from language_models import model_on, save

from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.sample import engine
from unitok.sample.pipeline import draw_codes, settings_for
from unitok.trunk import cache, steps
from unitok.trunk.hf.reading import read_language_model

from .tiny import SIDES, llamagen_weights, tokenizer, var_weights


def published(family: str) -> Callable[[Path], UniTok]:
    def opened(folder: Path) -> UniTok:
        weights = {"var": lambda: var_weights(False), "llamagen": llamagen_weights}[family]()
        torch.save(weights, folder / "x.pt")
        images = tokenizer(SIDES if family == "var" else ())
        return import_generator(family, folder / "x.pt", images, {"n_head": 4} if family == "llamagen" else None)

    return opened


def on_windows(folder: Path) -> UniTok:
    """Layers that see fewer positions than a picture has."""
    save("mistral", folder, sliding_window=5)
    return model_on(read_language_model(f"hf:{folder}"), "next_token")


@pytest.mark.parametrize(
    ("opened", "conditions"),
    [
        (published("var"), ["1", "7", "7", "2"]),
        (published("llamagen"), ["3", "0", "9", "9"]),
        (on_windows, ["a red circle", "a small blue square", "green", "and a"]),
    ],
    ids=["var", "llamagen", "windows"],
)
def test_captured_passes_draw_the_same(
    opened: Callable[[Path], UniTok], conditions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows at a time, so that other rows with other conditions come through the captured passes."""
    model = opened(tmp_path)
    settings = settings_for(model, {"guidance": 2.0, "temperature": 1.0, "top_k": 0})
    right = draw_codes(model, conditions, settings, range(4), batch_size=2)
    captures = Captures()
    monkeypatch.setattr(engine, "capturing", lambda device: captures)
    monkeypatch.setattr(steps, "REPEATED", 1)
    monkeypatch.setattr(cache, "FEWEST", 8)
    assert torch.equal(draw_codes(model, conditions, settings, range(4), batch_size=2), right)
    assert captures.replayed > 1
