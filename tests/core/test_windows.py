"""Layers of language models that see no further than a window: against the authors' own forward, and by every way in
which positions are run."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from language_models import MARKS, documents_of, model_on, save, settings_of, through_the_cache
from reading_models import assert_likeliest

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.ports import add_features
from unitok.sequence import document, lay_out
from unitok.trunk.hf import HFTrunk
from unitok.trunk.hf.reading import read_language_model

WINDOW = 5
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0},
    "gemma3_text": {"sliding_window": WINDOW},
}
"""Family -> what gives its layers a window: all of them, the last, all, the first."""
WINDOWS = {"mistral": [5, 5], "qwen2": [None, 5], "qwen3": [5, 5], "gemma3_text": [5, None]}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Family -> (the authors' model, what was read of its folder)."""
    found = {}
    for family, own in OWN.items():
        folder = tmp_path_factory.mktemp(family)
        theirs = save(family, folder, **own)
        found[family] = theirs, read_language_model(f"hf:{folder}")
    return found


def shared(model: UniTok, **changed: Any) -> UniTok:
    """The same weights, with other values in the language model's configuration."""
    trunk = HFTrunk.of({**model.config.trunk.language_model, **changed})  # type: ignore[union-attr]
    other = UniTok(dataclasses.replace(model.config, trunk=trunk), model.image_tokenizer, model.text_tokenizer)
    other.load_state_dict(model.state_dict(), strict=False)  # it may have fewer layers
    return other.eval()


@pytest.mark.parametrize("family", OWN)
@torch.inference_mode()
def test_a_text_longer_than_the_window_has_the_authors_logits(family: str, read: dict[str, tuple[Any, Any]]) -> None:
    """In one pass, and id by id through the cache; without the window they are others."""
    theirs, language = read[family]
    model = model_on(language, "next_token")
    assert language.trunk.windows == WINDOWS[family]
    ids = torch.randint(12, (4 * WINDOW,), generator=torch.Generator().manual_seed(0)).tolist()
    item = document(model.modalities()["text"].given([ids]))
    batch = lay_out([[item]], pad=model.vocabulary.pad)
    texts = model.text_tokenizer.size
    expected = theirs(torch.tensor([[MARKS["bos_token_id"], *ids]])).logits[0, :, :texts]

    def logits(states: torch.Tensor) -> torch.Tensor:
        return model.ids.scores(states, model.vocabulary.text_range)[..., :texts]

    torch.testing.assert_close(logits(model.states(batch))[0], expected, atol=2e-5, rtol=1e-5)
    cache, steps = model.trunk.cache(2, len(item)), []
    for n in range(len(item)):
        here, seen = slice(n, n + 1), cache.extend([1], 1)
        steps.append(model.hidden(batch.inputs[:, here], batch.places[:, here], seen, cache)[0])
    torch.testing.assert_close(logits(torch.cat(steps)), expected, atol=2e-5, rtol=1e-5)
    wide = logits(shared(model, sliding_window=1000).states(batch))[0]
    torch.testing.assert_close(wide[:WINDOW], expected[:WINDOW], atol=2e-5, rtol=1e-5)
    assert (wide[WINDOW:] - expected[WINDOW:]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("objective", ["masked_token", "next_scale"])
def test_rows_and_steps_change_nothing(family: str, objective: str, read: dict[str, tuple[Any, Any]]) -> None:
    """With pictures longer than the window: packed is unpacked, and the cache gives what one pass does."""
    model = model_on(read[family][1], objective)
    short, story = documents_of(model)
    with torch.no_grad():
        alone = [model.states(lay_out([[item]], pad=model.vocabulary.pad))[0] for item in (story, short)]
        packed = model.states(lay_out([[story, short]], pad=model.vocabulary.pad))[0]
        torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(through_the_cache(model, short), alone[1], atol=2e-5, rtol=1e-4)


def test_gradients_reach_exactly_what_the_window_lets_be_seen(read: dict[str, tuple[Any, Any]]) -> None:
    """Of one layer. A picture takes one step: it is seen whole, or not at all; a private copy moves no window."""
    model = model_on(read["qwen2"][1], "masked_token")
    model = shared(model, num_hidden_layers=1, max_window_layers=0, layer_types=None, sliding_window=3)
    batch = lay_out([documents_of(model)[::-1]], pad=model.vocabulary.pad)
    x = add_features(model.ids(batch.inputs), model.ports, batch.features).detach().requires_grad_()
    seen, orders = batch.visibility(), batch.places[0, :, 0]
    assert batch.stands is not None
    allowed = seen.mask[0, 0] & (orders[:, None] - batch.stands[0, :, 0] < 3)
    hidden = model.trunk(x, batch.places, seen, None, batch.stands)
    assert 0 < allowed.sum() < seen.mask.sum()
    for q in [*range(0, hidden.shape[1], 7), hidden.shape[1] - 1]:
        (gradient,) = torch.autograd.grad(hidden[0, q].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(-1) > 0, allowed[q]), q


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
@torch.inference_mode()
def test_what_the_engine_writes_is_what_one_pass_finds_likeliest(family: str, read: dict[str, tuple[Any, Any]]) -> None:
    """Behind prompts of several lengths, of which one is encoded in two passes."""
    model = model_on(read[family][1], "next_token")
    model = shared(model, sliding_window=3)
    model.config.tasks = ("image_to_text", "question")
    codes = torch.randint(model.vocabulary.codebook_size, (2, model.layout.length))
    asked = [model.text_ids(text) for text in ("a small red circle left of a", "blue")]
    texts = assert_likeliest(model, "image_to_text", "caption", [{"image": one} for one in codes])
    records = [{"image": one, "question": words} for one, words in zip(codes, asked, strict=True)]
    texts += assert_likeliest(model, "question", "answer", records)
    assert max(map(len, texts)) > 3


@pytest.mark.parametrize(
    ("family", "own", "message"),
    [
        ("mistral", {"sliding_window": 0}, "the language model's sliding_window is 0: choose"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "has layers of chunked_attention: taken are sliding_att"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "sees texts in both directions"),
    ],
)
def test_layers_that_cannot_be(family: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        HFTrunk.of({**settings_of(family), **own})
