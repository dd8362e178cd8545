"""Logits processing, on cases that a person can check."""

from __future__ import annotations

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.sample.logits import finite, guide, keep_top_k, keep_top_p, pick, probabilities
from unitok.sampling import SampleSettings

INF = float("inf")
LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def test_guidance_is_the_standard_scale() -> None:
    rows = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    assert guide(rows, 3.0, 1).tolist() == [[4.0, -2.0]]
    assert guide(rows, 0.0, 1).tolist() == [[1.0, 1.0]]
    assert torch.equal(guide(rows, 3.0, 2), rows)


def test_top_k_keeps_k() -> None:
    assert keep_top_k(LOGITS, 2).isinf().tolist() == [[False, False, True, True]]
    assert keep_top_k(LOGITS, 0) is LOGITS and keep_top_k(LOGITS, 9) is LOGITS


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    assert keep_top_p(LOGITS, 0.5).isinf().tolist() == [[False, True, True, True]]
    assert keep_top_p(LOGITS, 0.6).isinf().tolist() == [[False, False, True, True]]
    assert keep_top_p(LOGITS, 0.0) is LOGITS and keep_top_p(LOGITS, 1.0) is LOGITS
    assert keep_top_p(LOGITS.flip(-1), 0.6).isinf().tolist() == [[True, True, False, False]]


def test_temperature() -> None:
    assert probabilities(LOGITS, SampleSettings(temperature=0)).tolist() == [[1, 0, 0, 0]]
    cold = probabilities(LOGITS, SampleSettings(temperature=0.5))[0]
    torch.testing.assert_close(cold, torch.tensor([0.25, 0.0625, 0.0225, 0.01]) / 0.345)


@pytest.mark.parametrize("value", [float("nan"), INF, -INF])
def test_nothing_is_chosen_by_logits_that_are_not_finite(value: float) -> None:
    broken = torch.tensor([[0.5, value, 0.25]])
    for settings in (SampleSettings(), SampleSettings(temperature=0), SampleSettings(top_k=1, top_p=0.5)):
        with pytest.raises(UserError, match=r"^the model's logits are not finite: its weights are damaged or"):
            probabilities(broken, settings)
    with pytest.raises(UserError, match="--temperature is beyond all measure"):
        probabilities(LOGITS, SampleSettings(temperature=1e-60))
    with pytest.raises(UserError, match="--guidance"):
        probabilities(guide(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 1e39, 1), SampleSettings())
    assert finite(LOGITS) is LOGITS


def test_pick_is_the_inverse_of_the_cumulative_sum() -> None:
    chances = torch.tensor([0.25, 0.0, 0.5, 0.25]).repeat(6, 1)
    drawn = pick(chances, torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.99999]))
    assert drawn.tolist() == [0, 0, 2, 2, 3, 3]


def test_pick_follows_the_probabilities() -> None:
    chances = torch.tensor([0.1, 0.2, 0.0, 0.7]).expand(20_000, 4)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(pick(chances, uniform), minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.0, 0.7]), atol=0.015, rtol=0)


def test_bad_settings_name_the_option() -> None:
    with pytest.raises(
        UserError, match=r"2 problems:\n  --guidance is -1.*\n  --top-p is 1.5: choose a value in \(0, 1\]"
    ):
        SampleSettings(guidance=-1, top_p=1.5)
