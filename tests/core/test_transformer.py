"""Trunk and ports: counts, presets, initial loss, checkpointing, autocast."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unitok.config import TRUNK_PRESETS, PortConfig, TrunkConfig
from unitok.modalities import text_segment
from unitok.ports import IdPort, add_features, build_ports
from unitok.sequence import PackedBatch, document, lay_out
from unitok.trunk.native import Dropout, Rotary, Transformer, rotate
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(40, 5)


class Bare(nn.Module):
    """Ids, ports and a trunk, without tokenizers."""

    def __init__(self, config: TrunkConfig, ports: dict[str, PortConfig] | None = None) -> None:
        super().__init__()
        self.ids = IdPort(VOCABULARY.size, config.width, config.tied_head)
        self.ports = build_ports(ports or {}, config.width)
        self.trunk = Transformer(config)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        x = add_features(self.ids(batch.inputs), self.ports, batch.features)
        return self.ids.scores(self.trunk(x, batch.places, batch.visibility()), slice(0, VOCABULARY.size))


@pytest.mark.parametrize(
    "config",
    [
        TrunkConfig(width=64, depth=3, heads=4, kv_heads=2),
        TrunkConfig(width=64, depth=1, heads=1, tied_head=True, hidden=72),
    ],
)
def test_parameters_are_counted_without_building(config: TrunkConfig) -> None:
    ports = {"image": PortConfig("linear", 7), "target": PortConfig("table", 9)}
    built = sum(parameter.numel() for parameter in Bare(config, ports).parameters())
    assert config.parameters(VOCABULARY.size, 16)["total"] == built


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"), [("small", 10_000, 100), ("base", 20_000, 350), ("large", 20_000, 800)]
)
def test_presets_have_the_sizes_they_promise(name: str, vocabulary: int, millions: int) -> None:
    total = TRUNK_PRESETS[name]().parameters(vocabulary)["total"]
    assert abs(total / 1e6 / millions - 1) < 0.12


def small_batch() -> PackedBatch:
    return lay_out([[document([text_segment([1, 2, 3, 4], VOCABULARY)])]], pad=VOCABULARY.pad)


def test_fresh_model_is_undecided() -> None:
    torch.manual_seed(0)
    logits = Bare(TrunkConfig(width=64, depth=2, heads=2))(small_batch())
    assert abs(-logits.log_softmax(-1)[0, 0, 3].item() - math.log(50)) < 0.3


def test_activation_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Bare(TrunkConfig(width=32, depth=2, heads=2, dropout=0.1))
    gradients = []
    for model.trunk.checkpointing in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        model(small_batch()).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_every_parameter_gets_a_gradient_under_autocast() -> None:
    """Also those of ports that the batch has nothing for."""
    ports = {"image": PortConfig("linear", 7), "target": PortConfig("table", 9)}
    model = Bare(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1), ports)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(small_batch())
    assert logits.dtype == torch.float32
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(not port.grad.any() for port in model.ports.parameters() if port.grad is not None)


def test_features_of_different_widths_stand_in_one_batch() -> None:
    model = Bare(TrunkConfig(width=32, depth=1, heads=2), {"a": PortConfig("linear", 3), "b": PortConfig("linear", 5)})
    text = text_segment([1, 2], VOCABULARY)
    one, two = torch.randn(3, 3), torch.randn(3, 5)
    text_a, text_b = (text_segment([1, 2], VOCABULARY) for _ in range(2))
    text_a.features, text_a.port, text_b.features, text_b.port = one, "a", two, "b"
    batch = lay_out([[document([text_a, text])], [document([text, text_b])]], pad=VOCABULARY.pad)
    assert batch.features["a"][0].tolist() == [0, 1, 2] and batch.features["b"][0].tolist() == [9, 10, 11]
    x = add_features(torch.zeros(2, 6, 32), model.ports, batch.features)
    torch.testing.assert_close(x[0, :3], one @ model.ports["a"].projection.weight.T)
    torch.testing.assert_close(x[1, 3:], two @ model.ports["b"].projection.weight.T)
    assert not x[0, 3:].any() and not x[1, :3].any()


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


def test_losses_over_several_ranges_leave_out_all_other_ids() -> None:
    torch.manual_seed(0)
    port, hidden, targets = IdPort(40, 8, tied=False), torch.randn(6, 8), torch.tensor([3, 4, 5, 20, 21, 35])
    ranges = (slice(3, 6), slice(20, 22), slice(35, 36))
    allowed = torch.cat([torch.arange(one.start, one.stop) for one in ranges])
    others = torch.ones(40, dtype=torch.bool).index_fill(0, allowed, False)
    right = F.cross_entropy(port.head(hidden).masked_fill(others, -torch.inf), targets, reduction="none")
    torch.testing.assert_close(port.losses(hidden, targets, ranges), right)


def test_scores_and_losses_of_a_span_are_those_of_a_slice() -> None:
    port = IdPort(50, 32, tied=False)
    hidden, targets = torch.randn(6, 32), torch.randint(10, 20, (6,))
    every = port.scores(hidden, slice(0, 50))
    torch.testing.assert_close(port.scores(hidden, slice(10, 20)), every[:, 10:20])
    expected = -every[:, 10:20].log_softmax(-1)[torch.arange(6), targets - 10]
    torch.testing.assert_close(port.losses(hidden, targets, slice(10, 20)), expected)


def test_dropout_takes_its_share_and_leaves_the_mean() -> None:
    """As torch's does: by the seed, other places each time, gradients where values are, nothing but in training."""
    dropout, x = Dropout(0.1), torch.full((64, 33, 65), 2.0, requires_grad=True)  # no multiple of eight
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)
    share = (first == 0).float().mean().item()
    assert share == pytest.approx(26 / 256, abs=0.003)
    assert first.unique().tolist() == [0.0, pytest.approx(2 * 256 / 230)]
    assert first.mean().item() == pytest.approx(2, abs=0.01)
    together = ((first == 0) & (second == 0)).float().mean().item()
    assert together == pytest.approx((26 / 256) ** 2, abs=0.002)
    (gradient,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(gradient * 2, first)
    assert torch.equal(dropout.eval()(x), x)
    state = torch.get_rng_state()
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert torch.equal(torch.get_rng_state(), state)
