"""From logits to ids, on cases that a person can check."""

from __future__ import annotations

import math

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.choose import choose, entropy_factor, guide, keep_top_p, lane_weights, pick
from unitok.sampling import SampleSettings

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def test_guidance_is_the_standard_scale() -> None:
    conditional, bare = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert guide([conditional, bare], [3.0]).tolist() == [4.0, -2.0]
    assert guide([conditional], []) is conditional


def test_guidance_of_two_conditions_is_that_of_instruct_pix2pix() -> None:
    """e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0)), the text left out first."""
    both, image, none = torch.randn(3, 5).unbind(0)
    for text_scale, image_scale in ((7.5, 1.5), (2.0, 2.0), (1.0, 3.0), (3.0, 1.0), (0.0, 1.0), (1.0, 1.0)):
        weights = lane_weights([text_scale, image_scale])
        lanes = {0: both, 1: image, 2: none}
        guided = guide([lanes[lane] for lane in weights], list(weights.values())[:-1])
        expected = none + image_scale * (image - none) + text_scale * (both - image)
        torch.testing.assert_close(guided, expected)
    assert list(lane_weights([1.0, 1.0])) == [0], "nothing to compare with"
    assert list(lane_weights([2.0, 2.0])) == [0, 2], "both conditions are left out together"
    assert list(lane_weights([3.0, 1.0])) == [0, 1] and list(lane_weights([0.0])) == [1]


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    assert keep_top_p(LOGITS, 0.5).isinf().tolist() == [[False, True, True, True]]
    assert keep_top_p(LOGITS, 0.6).isinf().tolist() == [[False, False, True, True]]
    assert keep_top_p(LOGITS, 0.0) is LOGITS and keep_top_p(LOGITS, 1.0) is LOGITS
    assert keep_top_p(LOGITS.flip(-1), 0.6).isinf().tolist() == [[True, True, False, False]]


def kept_in_order(logits: torch.Tensor, p: float) -> list[bool]:
    """Which ids of a row top-p keeps, one after the other."""
    left, kept = p, [False] * len(logits)
    for place in logits.argsort(descending=True, stable=True).tolist():
        if left <= 0:
            break
        kept[place] = True
        left -= logits.double().softmax(0)[place].item()
    return kept


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0, 20.0])
def test_top_p_of_many_ids_keeps_what_a_slow_search_keeps(sharpness: float) -> None:
    """Also where the set is larger than what is put in order first."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 2000) * sharpness
    for p in (0.1, 0.5, 0.9):
        found = keep_top_p(logits, p)
        assert (found.isneginf() | (found == logits)).all()
        for row, wanted in zip(found.flatten(0, 1), logits.flatten(0, 1), strict=True):
            assert (~row.isneginf()).tolist() == kept_in_order(wanted, p)


def test_top_p_of_a_row_does_not_depend_on_its_batch() -> None:
    """A flat row takes a longer search; ids that are equally likely stay together in either."""
    torch.manual_seed(0)
    sharp, flat = (torch.randn(1, 1, 300) * 6).round(), torch.zeros(1, 1, 300)
    assert torch.equal(keep_top_p(torch.cat([sharp, flat]), 0.7)[:1], keep_top_p(sharp, 0.7))
    assert not keep_top_p(flat, 0.5).isinf().any()


def shares(**settings: float) -> list[float]:
    """How often each id is chosen, by draws that are spread evenly."""
    uniform = ((torch.arange(1000) + 0.5) / 1000)[None]
    ids, chances = choose(LOGITS[:, None].expand(1, 1000, 4), uniform, [SampleSettings(**settings)])
    assert ((chances > 0) & (chances <= 1)).all()
    return (torch.bincount(ids[0], minlength=4) / 1000).tolist()


def test_settings_shape_the_choice() -> None:
    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=2e-3)
    assert shares(temperature=0) == shares(temperature=1e-60) == shares(top_k=1) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == pytest.approx([x / 0.345 for x in (0.25, 0.0625, 0.0225, 0.01)], abs=2e-3)
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=2e-3)
    assert shares(top_p=0.8) == pytest.approx([x / 0.9 for x in (0.5, 0.25, 0.15, 0)], abs=2e-3)
    assert shares(top_k=3, top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=2e-3), "top-k comes first"
    assert shares(top_k=9) == shares()


def test_a_temperature_by_entropy_is_that_of_the_formula() -> None:
    """Of what is left of every distribution by itself: here they are one, so a plain temperature draws the same."""
    for rule in ([2.5, 3.0, 0.6], [-0.5, 0.5, 1.0], [1.0, 0.2, 0.0]):
        for cut, kept in (({}, 4), ({"top_k": 3}, 3), ({"top_p": 0.6}, 2)):
            left = LOGITS.exp()[0, :kept] / LOGITS.exp()[0, :kept].sum()
            factor = rule[0] * math.exp(sum(share * math.log(share) for share in left.tolist()) / rule[1]) + rule[2]
            wanted = shares(temperature=factor / 2, top_k=kept)
            assert shares(entropy_temperature=rule, temperature=0.5, **cut) == pytest.approx(wanted, abs=2e-3)
    assert shares(entropy_temperature=[0.0, 1.0, 1.0]) == shares(entropy_temperature=[]) == shares()
    some = torch.stack([torch.zeros(16), torch.arange(16.0) * 100, torch.randn(16)])
    for one, alone in zip(entropy_factor(some, -0.5, 2.0, 0.9), some, strict=True):
        assert torch.equal(one, entropy_factor(alone, -0.5, 2.0, 0.9))
    sure = entropy_factor(some[:2], -0.9, 2.0, 0.9).flatten().tolist()
    assert sure == pytest.approx([0.9 - 0.9 / 4, 0.0], abs=1e-6), "16 ids alike are e ** 2.77 ids, and one is certain"


def test_a_temperature_by_entropy_may_come_to_nothing() -> None:
    """Where one id is certain nothing but this id is drawn, whatever the number."""
    logits = torch.tensor([[[0.0, 300.0, 0.0], [0.0, 0.0, 0.0]]]).repeat(1, 50, 1)
    ids, chances = choose(logits, torch.rand(1, 100), [SampleSettings(entropy_temperature=[-1.0, 1.0, 1.0])])
    assert (ids[0, ::2] == 1).all() and len(ids[0, 1::2].unique()) == 3 and chances.isfinite().all()


def test_top_k_chooses_as_a_mask_would() -> None:
    """Looking at k ids alone changes no choice."""
    torch.manual_seed(0)
    logits, uniform = torch.randn(3, 50, 40), torch.rand(3, 50)
    found = choose(logits, uniform, [SampleSettings(top_k=7, temperature=0.8)] * 3)[0]
    scaled = logits / 0.8
    masked = scaled.masked_fill(scaled < scaled.topk(7, -1).values[..., -1:], float("-inf"))
    assert torch.equal(found, pick(masked.softmax(-1), uniform))


def test_rows_with_settings_of_their_own_choose_as_alone() -> None:
    torch.manual_seed(0)
    logits, uniform = torch.randn(4, 6, 30), torch.rand(4, 6)
    kinds = [SampleSettings(), SampleSettings(top_k=3), SampleSettings(temperature=0), SampleSettings(top_p=0.5)]
    kinds[0].entropy_temperature, kinds[1].entropy_temperature = [1.0, 0.5, 0.2], [-0.5, 2.0, 1.0]
    ids, chances = choose(logits, uniform, kinds)
    for row, kind in enumerate(kinds):
        alone = choose(logits[row : row + 1], uniform[row : row + 1], [kind])
        assert torch.equal(ids[row], alone[0][0]) and torch.equal(chances[row], alone[1][0])


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


@pytest.mark.parametrize(
    "rule",
    [[1.0], [1.0, 0.5, 0.5, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, -0.1], [-0.6, 1.0, 0.5], [1e4, 1.0, 0.0], [math.nan] * 3],
)
def test_a_rule_that_gives_no_temperature_is_refused(rule: list[float]) -> None:
    with pytest.raises(
        UserError, match=r"--entropy-temperature is \[.*\]: give three numbers a, b, c for a factor of a \*"
    ):
        SampleSettings(entropy_temperature=rule)
