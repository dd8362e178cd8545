"""Models prepared for drawing: other forms of the weights, the same model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from unitok import prepare as module
from unitok.config import TrunkConfig
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.prepare import multiplier, normed, prepare
from unitok.sample.pipeline import caption_codes, draw_codes
from unitok.sampling import SampleSettings
from unitok.trunk.native import Attention, Rotary, rotate

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", ""]
SETTINGS = SampleSettings(guidance=2.0, top_p=0.9, steps=4)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer counts as large."""
    monkeypatch.setattr(module, "LARGE", 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("packing", [True, False])
def test_a_multiplier_is_a_linear_layer(
    large: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float, packing: bool
) -> None:
    if not packing:
        monkeypatch.setattr(module, "_packed", lambda weight: None)
    torch.manual_seed(0)
    weight = torch.randn(96, 40)
    multiply = multiplier(weight, dtype)
    for shape in ((1, 1), (2, 1), (3, 7), (1, 200)):
        x = torch.randn(*shape, 40)
        found = multiply(x)
        assert found.dtype == torch.float32 and found.shape == (*shape, 96)
        torch.testing.assert_close(found, F.linear(x, weight), rtol=tolerance, atol=10 * tolerance)


def test_torch_without_the_private_operators_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert module._packed(torch.randn(8, 8)) is None


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e15])
def test_a_norm_in_fewer_operations_is_the_norm(size: float) -> None:
    torch.manual_seed(0)
    x, weight = size * torch.randn(3, 5, 24), torch.rand(24)
    x[1, 2] = 0
    found = normed(weight, 1e-6)(x)
    torch.testing.assert_close(found, F.rms_norm(x, (24,), weight, 1e-6), rtol=1e-5, atol=1e-7)
    for row in range(3):
        assert torch.equal(normed(weight, 1e-6)(x[row : row + 1])[0], found[row])


def test_a_wide_turn_is_the_turn() -> None:
    torch.manual_seed(0)
    rotary, x, places = Rotary(16), torch.randn(2, 3, 5, 16), torch.randint(0, 40, (2, 5, 3))
    right = rotate(x, rotary(places, torch.float32))
    rotary.wide = True
    torch.testing.assert_close(rotate(x, rotary(places, torch.float32)), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_queries_and_keys_are_prepared_together(elsewhere: bool) -> None:
    """Also where they are of different numbers, have other weights, and stand elsewhere than they look from."""
    torch.manual_seed(0)
    attention, rotary = Attention(TrunkConfig(width=64, heads=4, kv_heads=2)), Rotary(16)
    for norm in (attention.query_norm, attention.key_norm):
        torch.nn.init.uniform_(norm.weight)
    x, places = torch.randn(2, 5, 64), torch.randint(0, 40, (2, 2, 5, 3))

    def projected() -> tuple[torch.Tensor, ...]:
        turn = rotary(places[0], torch.float32)
        turns = (turn, rotary(places[1], torch.float32) if elsewhere else turn)
        return attention.project(x, turns)

    with torch.no_grad():
        right = projected()
        attention.norm, rotary.wide = normed(attention.norm_weights(), 1e-6), True
        for found, expected in zip(projected(), right, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_model_is_the_same_model(large: None, make_model: Callable[..., UniTok], precision: str) -> None:
    plain = make_model("next_token")
    model = deepcopy(plain)
    assert prepare(model, precision) == precision
    assert model.fingerprint() == plain.fingerprint() and model.state_dict().keys() == plain.state_dict().keys()


def logits(model: UniTok, precision: str = "fp32") -> torch.Tensor:
    """Of the first steps of drawing three pictures."""
    seen: list[torch.Tensor] = []
    draw_codes(
        model, CAPTIONS, SETTINGS, [0, 1, 2], precision=precision, watch=lambda _, one: seen.append(one.flatten(0, 1))
    )
    return torch.cat(seen[:1])


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_prepared_model_computes_the_same(large: None, make_model: Callable[..., UniTok], objective: str) -> None:
    """In fp32 all but the last bits; in bf16 no farther from it than autocast is."""
    plain = make_model(objective)
    right = logits(plain)
    single, half = deepcopy(plain), deepcopy(plain)
    prepare(single, "fp32"), prepare(half, "bf16")
    torch.testing.assert_close(logits(single), right, rtol=1e-4, atol=1e-5)
    mistake, usual = ((one - right).abs().mean() for one in (logits(half), logits(plain, "bf16")))
    assert 0 < mistake < 1.5 * usual


@pytest.mark.parametrize("objective", ["next_token", "masked_token"])
def test_prepared_rows_do_not_depend_on_their_batch(
    large: None, make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    prepare(model, "bf16")
    together = draw_codes(model, CAPTIONS, SETTINGS, [3, 4, 5])
    for row, caption in enumerate(CAPTIONS):
        assert torch.equal(draw_codes(model, [caption], SETTINGS, [3 + row])[0], together[row])
    assert len(caption_codes(model, together)) == 3


def test_a_prepared_model_computes_as_it_was_prepared(large: None, make_model: Callable[..., UniTok]) -> None:
    """Autocast is for models in training."""
    model = make_model("next_token")
    prepare(model, "bf16")
    assert torch.equal(logits(model, "bf16"), logits(model, "fp32"))


def test_small_models_stay_as_they_are(make_model: Callable[..., UniTok]) -> None:
    """`auto` is bf16 only where there is something to gain, and fp32 of a small model is exact."""
    plain = make_model("next_token")
    model = deepcopy(plain)
    assert prepare(model, "auto") == "fp32"
    assert torch.equal(logits(model), logits(plain))


def test_auto_follows_the_hardware(
    large: None, make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(module, "bf16_supported", lambda device, able=able: able)
        assert prepare(make_model("next_token"), "auto") == chosen
