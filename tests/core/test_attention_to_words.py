"""Attention from codes to words equals what the layers themselves compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.pipeline import score_codes
from unitok.trunk import attention
from unitok.trunk.attention import attention_to_words, watched

CAPTION = "a  small red circle"


def codes_of(model: UniTok) -> torch.Tensor:
    return torch.arange(model.layout.length) * 7 % model.vocabulary.codebook_size


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_word_gets_a_share_and_none_is_given_twice(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    codes = codes_of(model)
    before = score_codes(model, [CAPTION], codes[None])
    found = attention_to_words(model, CAPTION, codes)
    assert found is not None and [word for word, _ in found] == ["a", "small", "red", "circle"]
    shares = torch.stack([share for _, share in found])
    assert shares.shape == (4, len(codes)) and (shares > 0).all() and (shares.sum(0) < 1).all()
    assert torch.equal(score_codes(model, [CAPTION], codes[None]), before), "nothing of it stays in the model"


@pytest.mark.parametrize("key_heads", [1, 2])
@torch.inference_mode()
def test_the_weights_are_the_softmax_that_the_layers_use(
    make_model: Callable[..., UniTok], key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("masked_token", kv_heads=key_heads)
    given: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    real = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v, seen: given.append((q, k, seen)) or real(q, k, v, seen))
    with watched(model.trunk) as weights:  # type: ignore[arg-type]
        score_codes(model, [CAPTION], codes_of(model)[None])
    assert len(weights) == model.config.trunk.depth
    per_layer = len(given) // len(weights)
    for layer, found in enumerate(weights):
        q, k, seen = given[layer * per_layer]
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) / q.shape[-1] ** 0.5
        mask = seen.mask if seen.mask is not None else torch.ones(scores.shape[2:], dtype=torch.bool).tril()
        wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1).mean(1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-4)


def test_a_code_looks_where_the_word_stands(make_model: Callable[..., UniTok]) -> None:
    """A word that is moved takes its share along; an empty caption has none."""
    model = make_model()
    assert attention_to_words(model, "", codes_of(model)) == []
    (one,), pair = (attention_to_words(model, text, codes_of(model)) or [] for text in ("red", "red red"))
    assert one[0] == "red" and [word for word, _ in pair] == ["red", "red"]
    assert not torch.equal(pair[0][1], pair[1][1])
