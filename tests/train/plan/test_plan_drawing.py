"""`unitok plan`: what drawing takes against what torch's allocator hands out, of our own models and published ones."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import language_models
import pytest
import torch
from planning import most_of, near, tiny_published, wanted
from published.tiny import SIDES
from torch._subclasses.fake_tensor import FakeTensor

from unitok.conditions import TextStates
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.pipeline import Condition, draw, draw_codes
from unitok.sampling import SampleSettings
from unitok.train.plan import drawing as plan_drawing
from unitok.train.plan import sums
from unitok.train.plan.drawing import drawing
from unitok.train.plan.model import batch_of, build
from unitok.trunk.published import PUBLISHED

TOKENS = 12


def draw_some(model: UniTok, pictures: int) -> torch.Tensor:
    """So many pictures, side by side, or their codes, where the tokenizer makes no pixels."""
    width, conditions = model.config.trunk.state_width, [*map(str, range(pictures))]
    given: list[Condition] = (
        [TextStates(torch.randn(TOKENS, width), TOKENS) for _ in conditions] if width else conditions
    )

    def ids(caption: str) -> list[int]:
        return [sum(map(ord, caption)) % 14] * TOKENS

    if not model.image_tokenizer.no_pixels:
        return draw(model, given, text_ids=ids)
    return draw_codes(model, given, SampleSettings.of(model.config), range(pictures), ids)


def without_content() -> int:
    """Tensors without content that something holds."""
    gc.collect()
    return sum(type(one) is FakeTensor for one in gc.get_objects())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_drawing_takes_what_was_planned(objective: str, make_model: Any, tmp_path: Path) -> None:
    """Weights, cache, and what the fullest pass or the decoder holds on top. What is drawn behind a plan, in the same
    process, is what was drawn before, for the plan leaves no tensor without content behind."""
    held = without_content()
    made = make_model(objective, width=96)
    made.save_pretrained(tmp_path / "model")
    before = draw_some(made, 2)
    model = build(wanted(tmp_path / "model"))
    batch_of(model, "text_to_image", 1, TOKENS)
    found = drawing(model, sums.count(model), 6, TOKENS)
    taken = most_of(lambda: draw_some(made, 6))
    assert near(found["cache"] + found["activations"], taken), (found, taken)
    del model
    assert without_content() <= held
    assert torch.equal(draw_some(made, 2), before)


def test_a_language_model_draws_in_what_was_planned(tmp_path: Path) -> None:
    language_models.save("qwen2", tmp_path, vocab_size=64, hidden_size=64)
    model = build(wanted(f"hf:{tmp_path}", tokenizer="debug", text_vocabulary=14))
    torch.manual_seed(0)
    made = UniTok(model.config, model.image_tokenizer, model.text_tokenizer).eval()
    batch_of(model, "text_to_image", 1, TOKENS)
    found = drawing(model, sums.count(model), 6, TOKENS)
    taken = most_of(lambda: draw_some(made, 6))
    assert near(found["cache"] + found["activations"], taken), (found, taken)
    alone, six = (drawing(model, sums.count(model), pictures, TOKENS, gpu=True)["activations"] for pictures in (1, 6))
    assert six > 4 * alone, "a GPU decodes pictures together"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_draw_in_what_was_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_drawing, "MOST_STEPS", len(SIDES))  # codes one after the other are followed for two
    made = tiny_published(name)
    made.save_pretrained(tmp_path / "model")
    model = build(wanted(tmp_path / "model"))
    batch_of(model, "text_to_image", 1, TOKENS)
    for one in (made, model):  # convolutions over so few places take buffers that larger ones do without
        one.image_tokenizer.no_pixels = "codes alone"
    found = drawing(model, sums.count(model), 6, TOKENS)
    taken = most_of(lambda: draw_some(made, 6))
    assert near(found["cache"] + found["activations"], taken), (found, taken)
