"""A part of a picture is drawn, the rest stays to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.config import ModelConfig, TrunkConfig
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.objectives.masked_token import PASSES
from unitok.objectives.orders import pass_sizes, spread_order
from unitok.sample import inpainting
from unitok.sample.inpainting import LONGEST_SIDE, Sides, extend, extend_all, inpaint, plan
from unitok.sample.jobs import job_for
from unitok.sample.masks import fit_mask, touched
from unitok.sample.pipeline import Drawn, draw, draw_codes, run
from unitok.sampling import SampleSettings
from unitok.text import train_bpe
from unitok.vocabulary import Vocabulary

CAPTIONS = ["a small red circle", "a large blue square", "zebra"]
SETTINGS = SampleSettings(guidance=2.0, steps=3)


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(n)).to(torch.uint8)


def holes(n: int) -> torch.Tensor:
    """A hole of its own for each picture, off the grid of codes."""
    masks = torch.zeros(n, 32, 32, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[5 + number : 17, 9 : 22 + number] = True
    return masks


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_what_is_known_stays_to_the_bit_and_the_rest_is_drawn(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    given, masks = pictures(3), holes(3)
    found = inpaint(model, given, masks, CAPTIONS, SETTINGS, [4, 5, 6])
    outside = ~masks[:, None].expand_as(given)
    assert found.dtype == torch.uint8 and torch.equal(found[outside], given[outside])
    assert not torch.equal(found[~outside], given[~outside])
    alone = inpaint(model, given[1:2], masks[1:2], CAPTIONS[1:2], SETTINGS, [5])
    assert torch.equal(alone[0], found[1]), "whatever the batch"
    other = inpaint(model, given[1:].flip(0), masks[1:].flip(0), ["a cat", CAPTIONS[1]], SETTINGS, [6, 9])
    assert not torch.equal(other[0], found[2]), "by another caption"
    assert not torch.equal(other[1], found[1]), "by another seed"


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_what_is_known_is_seen(make_model: Callable[..., UniTok], objective: str) -> None:
    """The same hole, caption and seed in two pictures: what is drawn follows from what stands around."""
    model = make_model(objective)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 16:, 16:] = True  # last in the order of the codes, so that every objective sees the rest
    one, two = inpaint(model, pictures(2), masks, CAPTIONS[:1] * 2, SETTINGS, [0, 0])
    assert not torch.equal(one[:, 16:, 16:], two[:, 16:, 16:])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_model_that_learned_it_reads_what_stands_behind_the_hole(
    make_model: Callable[..., UniTok], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures that differ behind the hole: the codes in it do too, though `next_token` draws them first."""
    model = make_model(objective)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, :16, :16] = True
    given = pictures(1).repeat(2, 1, 1, 1)
    given[1, :, 24:] = 255 - given[1, :, 24:]
    known = inpainting.known_codes(model, given, masks)
    here = known[0] == -1
    known[1, :-8] = known[0, :-8]  # convolutions look further than they should here
    monkeypatch.setattr(inpainting, "known_codes", lambda *_: known)
    drawn: list[torch.Tensor] = []

    def keep(model: UniTok, jobs: list[Any], *_: Any, **__: Any) -> Iterator[Drawn]:
        drawn[:] = [codes for [codes] in run(model, jobs)]
        for place, codes in enumerate(drawn):
            yield Drawn(place, given[place], [codes])

    monkeypatch.setattr(inpainting, "draw_jobs", keep)

    def filled(*tasks: str) -> list[torch.Tensor]:
        model.config = dataclasses.replace(model.config, tasks=tasks)
        inpaint(model, given, masks, CAPTIONS[:1] * 2, SETTINGS, [0, 0])
        return [codes[here] for codes in drawn]

    if objective == "next_token":
        one, two = filled("text_to_image")
        assert torch.equal(one, two)
    if objective_class(objective).sets_scales:
        with pytest.raises(UserError, match="inpaint needs a tokenizer in which each map is of the whole picture"):
            filled("text_to_image", "inpaint")
    else:
        one, two = filled("text_to_image", "inpaint")
        assert not torch.equal(one, two)


@pytest.mark.parametrize("objective", ["var", "next_scale"])
def test_maps_of_the_whole_picture_are_read_with_holes(objective: str) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=(1, 2, 4, 8), scale_residual=False)
    tokenizer = build_tokenizer(config).eval()
    vocabulary = Vocabulary.of(20, tokenizer.codebook_size)
    codes = torch.randint(tokenizer.codebook_size, (1, tokenizer.layout.length))
    holed = codes.clone()
    holed[0, -10:] = -1
    reader = get_objective(objective, tokenizer)
    (whole,), (part,) = (reader.given(one, tokenizer.layout, vocabulary) for one in (codes, holed))
    far = -10 - 3 * 8  # convolutions look a little further
    assert torch.equal(part.ids[:far], whole.ids[:far]) and (part.ids[-10:] == vocabulary.mask).all()
    assert part.features is not None and whole.features is not None
    assert torch.equal(part.features[:far], whole.features[:far]) and not part.features[-10:].any()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_picture_of_which_nothing_is_known_is_drawn_as_from_its_caption(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    everything = torch.ones(3, 32, 32, dtype=torch.bool)
    found = inpaint(model, pictures(3), everything, CAPTIONS, SETTINGS, [0, 1, 2])
    assert torch.equal(found, draw(model, CAPTIONS, SETTINGS, [0, 1, 2]))


def test_a_code_is_drawn_if_its_place_covers_any_pixel_of_the_mask() -> None:
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, 11, 12] = True  # in the third row and the fourth column of 8x8, the second of 3x3
    mask[1, 15:17, 15:17] = True  # around the middle
    found = touched(mask, Layout(((1, 1), (2, 2), (3, 3), (8, 8))))
    assert found[0].nonzero()[:, 0].tolist() == [0, 1, 5 + 4, 14 + 2 * 8 + 3]
    assert found[1, 1:5].all() and found[1, 5:14].nonzero()[:, 0].tolist() == [4]
    assert found[1, 14:].nonzero()[:, 0].tolist() == [27, 28, 35, 36]


def test_a_mask_is_scaled_and_cropped_with_its_picture() -> None:
    mask = torch.zeros(320, 640, dtype=torch.bool)
    mask[15, 160 + 25] = True  # one of the hundred pixels of a pixel
    found = fit_mask(mask, (32, 32))
    assert found.nonzero().tolist() == [[1, 2]]
    mask = torch.zeros(320, 640, dtype=torch.bool)
    mask[:, :150] = True
    assert not fit_mask(mask, (32, 32)).any(), "cut off"


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_canvas_is_drawn_around_a_picture(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    (given,) = pictures(1, 33, 36)
    sides = Sides(left=3, right=0, top=0, bottom=18)
    found = extend_all(model, given, sides, "a red circle", SETTINGS, [0, 1])
    assert found.shape == (2, 3, 33 + 18, 3 + 36) and found.dtype == torch.uint8
    for canvas in found:
        assert torch.equal(canvas[:, :33, 3:], given)
    for part in (found[..., :3], found[..., 33:, :]):
        assert not torch.equal(part[0], part[1]), "by their seeds"
    assert torch.equal(extend(model, given, sides, "a red circle", SETTINGS, 1), found[1])


def test_windows_begin_beside_the_picture_and_know_a_part_of_what_they_show(make_model: Callable[..., UniTok]) -> None:
    model = make_model()
    for size, sides in (
        ((32, 32), Sides(40, 3, 0, 17)),
        ((50, 39), Sides(1, 100, 33, 0)),
        ((64, 64), Sides(0, 0, 0, 5)),
    ):
        windows, around = plan(model, size, sides)
        assert all(wide - wanted in range(4) for wide, wanted in zip(around, sides, strict=True))
        height, width = around.top + size[0] + around.bottom, around.left + size[1] + around.right
        known = torch.zeros(height, width, dtype=torch.bool)
        known[around.top : around.top + size[0], around.left : around.left + size[1]] = True
        for top, left in windows:
            assert (top - around.top) % 4 == (left - around.left) % 4 == 0, "on the grid of the picture's codes"
            here = known[top : top + 32, left : left + 32]
            assert here.shape == (32, 32) and 0.45 < here.float().mean() < 1
            here[:] = True
        assert known.all()


def test_what_cannot_be_drawn_is_refused(make_model: Callable[..., UniTok]) -> None:
    model = make_model()
    given, masks = pictures(1), holes(1)
    with pytest.raises(UserError, match=r"pictures are \(3, 16, 16\), this model reads \(3, 32, 32\): resize them"):
        inpaint(model, given[..., :16, :16], masks, ["a"])
    with pytest.raises(UserError, match=r"masks are \(1, 16, 32\), the pictures need \(1, 32, 32\): give each picture"):
        inpaint(model, given, masks[:, :16], ["a"])
    with pytest.raises(UserError, match="mask 0 is empty, so there is nothing to draw"):
        inpaint(model, given, masks & False, ["a"])
    with pytest.raises(UserError, match=r"has \d+ tokens, this model takes 48: shorten it"):
        inpaint(model, given, masks, ["word " * 60])
    with pytest.raises(UserError, match="the picture is 16 wide and 32 high, and this model draws windows of 32x32"):
        extend(model, given[0, :, :, :16], Sides(4), "a")
    with pytest.raises(UserError, match="--left is -4: choose 0 or more"):
        extend(model, given[0], Sides(-4, 8), "a")
    with pytest.raises(UserError, match="nothing to extend: give --left, --right, --top or --bottom in pixels"):
        extend(model, given[0], Sides(), "a")
    with pytest.raises(UserError, match=r"the canvas needs \d+ windows of 32x32, at most 4096 are drawn"):
        extend(model, given[0], Sides(2000, 0, 2000, 0), "a")
    # Sixty-seven million: they are counted, not listed.
    with pytest.raises(UserError, match=r"the canvas needs 671\d{5} windows"):
        plan(model, (32, 2**19), Sides(top=LONGEST_SIDE, bottom=LONGEST_SIDE))
    with pytest.raises(UserError, match="--top is 1000000000: choose at most 16384"):
        extend(model, given[0], Sides(0, 0, 10**9, 0), "a")


def test_a_tokenizer_whose_codes_have_no_place_is_refused() -> None:
    config = TOKENIZER_PRESETS["shapes_query"]()
    tokenizer = build_tokenizer(dataclasses.replace(config, width=32, tokens=8, depth=1, channels=16)).eval()
    text_tokenizer = train_bpe(CAPTIONS, 300)
    spans = Vocabulary.of(text_tokenizer.size, tokenizer.codebook_size).spans
    trunk = TrunkConfig(width=32, depth=1, heads=2)
    model = UniTok(ModelConfig(trunk, "next_token", spans, 48), tokenizer, text_tokenizer).eval()
    with pytest.raises(
        UserError, match=r"the codes of this model's tokenizer \(queries\) have no place in the picture"
    ):
        inpaint(model, pictures(1), holes(1), ["a"])
    with pytest.raises(
        UserError, match=r"the codes of this model's tokenizer \(queries\) have no place in the picture"
    ):
        extend(model, pictures(1)[0], Sides(4), "a")


@pytest.mark.parametrize("objective", ["next_token", "random_order", "masked_token"])
def test_known_codes_that_come_in_one_pass_are_as_those_that_were_drawn(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    """The codes that a picture began with are given; the same seed then ends it in the same way."""
    model = make_model(objective)
    length = model.layout.length
    settings = SampleSettings(guidance=2.0, steps=PASSES)
    whole = draw_codes(model, CAPTIONS, settings, [0, 1, 2])
    order, last = torch.arange(length), 21
    if objective == "masked_token":  # its last pass
        order, last = spread_order(model.layout), pass_sizes(length, PASSES)[-1]
        settings = SampleSettings(guidance=2.0, steps=1)
    known = whole.clone()
    known[:, order[-last:]] = -1
    runs: list[int] = []
    jobs = [
        job_for("text_to_image", {"caption": caption}, seed, settings, known=row)
        for seed, (caption, row) in enumerate(zip(CAPTIONS, known, strict=True))
    ]
    found = run(model, jobs, watch=lambda numbers, logits: runs.append(logits.shape[1]))
    assert torch.equal(torch.stack([codes for (codes,) in found]), whole)
    assert sum(runs) == last, "nothing is scored where all is known"


def test_codes_that_are_known_cost_no_step_of_their_own(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("next_token")
    lengths: list[int] = []
    hidden = model.hidden

    def counted(ids: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return hidden(ids, *more, **named)

    monkeypatch.setattr(model, "hidden", counted)
    known = torch.arange(64)
    known[[10, 11, 20]] = -1
    job = job_for("text_to_image", {"caption": "a"}, 0, SampleSettings(guidance=1.0), known=known)
    run(model, [job])
    assert lengths[1:] == [11, 1, 9], "behind the prompt; nothing is run behind the last code that is drawn"
