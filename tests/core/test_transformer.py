"""The transformer: counts, presets, initial loss, checkpointing, autocast."""

from __future__ import annotations

import math

import pytest
import torch

from unitok.config import TRUNK_PRESETS, TrunkConfig
from unitok.sequence import DocumentBuilder, PackedBatch, lay_out
from unitok.transformer import Rotary, Transformer, rotate


@pytest.mark.parametrize(
    "config",
    [
        TrunkConfig(width=64, depth=3, heads=4, kv_heads=2),
        TrunkConfig(width=64, depth=1, heads=1, tied_head=True, hidden=72),
    ],
)
def test_parameters_are_counted_without_building(config: TrunkConfig) -> None:
    built = sum(parameter.numel() for parameter in Transformer(config, 97).parameters())
    assert config.parameters(97)["total"] == built


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"), [("small", 10_000, 100), ("base", 20_000, 350), ("large", 20_000, 800)]
)
def test_presets_have_the_sizes_they_promise(name: str, vocabulary: int, millions: int) -> None:
    total = TRUNK_PRESETS[name]().parameters(vocabulary)["total"]
    assert abs(total / 1e6 / millions - 1) < 0.12


def small_batch() -> PackedBatch:
    return lay_out([[DocumentBuilder().text([1, 2, 3, 4], bos=5, eos=6).build()]], pad=7)


def test_fresh_model_is_undecided() -> None:
    torch.manual_seed(0)
    logits = Transformer(TrunkConfig(width=64, depth=2, heads=2), 50)(small_batch())
    assert abs(-logits.log_softmax(-1)[0, 0, 3].item() - math.log(50)) < 0.3


def test_activation_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(TrunkConfig(width=32, depth=2, heads=2, dropout=0.1), 50)
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        model(small_batch()).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_every_parameter_gets_a_gradient_under_autocast() -> None:
    model = Transformer(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(small_batch())
    assert logits.dtype == torch.float32
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_rotary_scores_depend_on_differences_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 32)
    rotary = Rotary(32)

    def score(at: list[int], to: list[int]) -> float:
        turns = [rotary(torch.tensor([[place]]), torch.float32) for place in (at, to)]
        return float((rotate(q, turns[0]) * rotate(k, turns[1])).sum())

    assert score([5, 2, 3], [4, 1, 1]) == pytest.approx(score([9, 7, 8], [8, 6, 6]), abs=1e-4)
    for place in ([4, 2, 3], [5, 1, 3], [5, 2, 1]):
        assert abs(score([5, 2, 3], [5, 2, 3]) - score([5, 2, 3], place)) > 1e-3, "each axis must count"


def test_logits_of_a_range_are_a_slice_of_all() -> None:
    model = Transformer(TrunkConfig(width=32, depth=1, heads=2), 50)
    hidden = torch.randn(2, 3, 32)
    torch.testing.assert_close(model.logits(hidden, slice(10, 20)), model.logits(hidden)[..., 10:20])
