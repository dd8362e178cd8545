"""What each objective learns of an image: its inputs, its targets and who sees whom."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from sequences import LAYOUT, SCALED, TOKENIZER, VOCABULARY, draws_of, settled

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.config import ObjectiveSettings
from unitok.modalities import text_segment
from unitok.objectives import get_objective
from unitok.objectives.base import Draw, Objective
from unitok.objectives.masked_token import PASSES
from unitok.objectives.next_scale import NextScale, in_turn
from unitok.objectives.orders import pass_sizes, spread_order
from unitok.sequence import IGNORE, document, lay_out


@dataclass
class Images:
    """What an objective says of a batch of images, stacked."""

    inputs: torch.Tensor
    targets: torch.Tensor
    groups: torch.Tensor
    features: torch.Tensor | None


def learned(objective: Objective, codes: torch.Tensor, layout: Layout, draws: list[Draw], **settings: float) -> Images:
    given = objective.settled(ObjectiveSettings(**settings)) if settings else None
    found = objective.learned(codes, layout, VOCABULARY, draws, given)
    if not found:
        return Images(codes, codes, codes, None)
    features = None if found[0].features is None else torch.stack([one.features for one in found])
    targets = torch.stack([one.target for one in found])
    return Images(torch.stack([one.ids for one in found]), targets, found[0].groups, features)


def test_next_token_document_is_aligned() -> None:
    (image,) = get_objective("next_token", TOKENIZER).learned(torch.arange(6)[None], LAYOUT, VOCABULARY, [])
    found = document([text_segment([7, 8], VOCABULARY), image])
    assert found.inputs.tolist() == [21, 7, 8, 22, 25, 26, 27, 28, 29]
    assert found.targets.tolist() == [IGNORE] * 3 + [25, 26, 27, 28, 29, 30]
    assert found.groups.tolist() == list(range(9))
    assert found.places[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3] and found.order == 4
    assert found.places[3:, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_random_order_says_where_each_code_stands() -> None:
    objective = get_objective("random_order", TOKENIZER)
    codes = torch.arange(6).repeat(400, 1)
    segments = objective.learned(
        codes, LAYOUT, VOCABULARY, draws_of(400, progress=0.0), settled("random_order", code_dropout=0)
    )
    orders = torch.stack([segment.features for segment in segments])
    assert torch.equal(orders.sort(1).values, codes), "each place once"
    assert len(set(map(tuple, orders.tolist()))) > 200
    places = LAYOUT.coordinates()
    for segment, order in zip(segments[:20], orders, strict=False):
        assert torch.equal(segment.target, order + VOCABULARY.image_start), "code k stands at place k"
        assert segment.ids[0] == VOCABULARY.boi and torch.equal(segment.ids[1:], segment.target[:-1])
        assert torch.equal(segment.places, places[order]), "a position looks from the place that it predicts"
        assert not segment.stands[0].any() and torch.equal(segment.stands[1:], places[order[:-1]])
        assert segment.groups.tolist() == list(range(6)) and segment.port == "target"
    (raster,) = objective.learned(codes[:1], LAYOUT, VOCABULARY, draws_of(1))
    assert raster.features.tolist() == list(range(6)), "read as it is drawn"


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.49, 1.0), (0.625, 0.5), (0.75, 0.0), (1.0, 0.0)])
def test_random_order_ends_in_raster_order(progress: float, share: float) -> None:
    objective = get_objective("random_order", TOKENIZER)
    layout = Layout(((8, 8),))
    codes = torch.zeros(400, 64, dtype=torch.int64)
    segments = objective.learned(codes, layout, VOCABULARY, draws_of(400, 0, progress), settled("random_order"))
    permuted = sum(segment.features.tolist() != list(range(64)) for segment in segments)
    assert abs(permuted / 400 - share) < 0.08


def test_masked_token_sees_the_codes_of_the_passes_before() -> None:
    objective, layout = get_objective("masked_token", TOKENIZER), Layout(((8, 8),))
    codes, places = torch.arange(64).repeat(300, 1) % 16, layout.coordinates()
    segments = objective.learned(
        codes, layout, VOCABULARY, draws_of(300, progress=0.0), settled("masked_token", code_dropout=0)
    )
    for segment in segments:
        order = segment.features
        assert order.sort().values.tolist() == list(range(64)), "each place is predicted once"
        assert torch.equal(segment.target, order % 16 + VOCABULARY.image_start)
        assert torch.equal(segment.places, places[order]), "a position looks from the place that it predicts"
        sizes = segment.groups.bincount().tolist()
        assert sizes == pass_sizes(64, PASSES) == sorted(sizes) and segment.ids[0] == VOCABULARY.boi
        start = 0
        for number in range(1, len(sizes)):
            here = segment.groups == number
            carried = here & (segment.ids != VOCABULARY.mask)
            before = order[start : start + sizes[number - 1]]
            assert torch.equal(segment.ids[carried], before % 16 + VOCABULARY.image_start), "all of the pass before"
            assert torch.equal(segment.stands[carried], places[before]), "where they stand"
            start += sizes[number - 1]
    (drawn,) = objective.learned(codes[:1], layout, VOCABULARY, draws_of(1))
    assert torch.equal(drawn.features, spread_order(layout)) and drawn.groups.max() == 15, "read as it is drawn"


def test_a_spread_order_goes_through_every_grid_and_far_apart() -> None:
    order = spread_order(Layout(((1, 4), (3, 5), (8, 8))))
    assert order[:4].tolist() == [0, 1, 2, 3], "a row is no plane"
    assert sorted(order[4:19].tolist()) == list(range(4, 19)) and sorted(order[19:].tolist()) == list(range(19, 83))
    first = [divmod(place - 19, 8) for place in order[19:27].tolist()]
    nearest = [min(abs(a - c) + abs(b - d) for c, d in first if (a, b) != (c, d)) for a, b in first]
    assert min(nearest) >= 2, "the first eight of 64 places do not touch"


@pytest.mark.parametrize(("passes", "sizes"), [(1, [6]), (3, [1, 2, 3]), (6, [1] * 6), (9, [1] * 6)])
def test_passes_draw_ever_more_codes(passes: int, sizes: list[int]) -> None:
    assert pass_sizes(6, passes) == sizes
    for codes in (1, 2, 63, 64, 680):
        found = pass_sizes(codes, passes)
        assert sum(found) == codes and len(found) == min(passes, codes) and found == sorted(found) and found[0] >= 1


def test_maskgit_hides_what_it_asks_for() -> None:
    codes = torch.arange(6).repeat(200, 1)
    segments = learned(get_objective("maskgit", TOKENIZER), codes, LAYOUT, draws_of(200))
    hidden = segments.inputs == VOCABULARY.mask
    assert torch.equal(hidden, segments.targets != IGNORE)
    assert torch.equal(torch.where(hidden, segments.targets, segments.inputs), codes + VOCABULARY.image_start)
    assert hidden.sum(1).min() >= 1 and set(hidden.sum(1).tolist()) == set(range(1, 7))
    assert abs(hidden.float().mean().item() - 2 / torch.pi) < 0.06, "the cosine schedule hides 2/pi on average"
    assert segments.groups.tolist() == [0] * 6


def test_code_dropout_hides_a_share_of_what_is_continued_and_nothing_else() -> None:
    layout = Layout(((8, 8),))
    codes = torch.arange(16).repeat(400, 4)
    objective = get_objective("next_token", TOKENIZER)

    def segments(dropout: float, seed: int = 0) -> Images:
        return learned(objective, codes, layout, draws_of(400, seed), code_dropout=dropout)

    whole, some = segments(0.0), segments(0.8)
    hidden = some.inputs == VOCABULARY.mask
    assert torch.equal(some.targets, whole.targets) and torch.equal(some.groups, whole.groups)
    assert torch.equal(some.inputs[~hidden], whole.inputs[~hidden]) and not (whole.inputs == VOCABULARY.mask).any()
    assert not hidden[:, 0].any(), "the start of the image is no code"
    share = hidden[:, 1:].float().mean(1)
    assert abs(share.mean().item() - 0.4) < 0.03 and share.min() < 0.1 and 0.65 < share.max() < 0.95
    assert torch.equal(segments(0.8).inputs, some.inputs) and not torch.equal(segments(0.8, 1).inputs, some.inputs)


def test_code_dropout_hides_a_share_of_what_the_maps_are_written_from() -> None:
    layout, objective = SCALED.layout, get_objective("next_scale", SCALED)
    codes = torch.randint(16, (400, 21), generator=torch.Generator().manual_seed(0))

    def segments(dropout: float, seed: int = 0) -> Images:
        return learned(objective, codes, layout, draws_of(400, seed), code_dropout=dropout)

    whole, some = segments(0.0), segments(0.8)
    assert whole.features is not None and some.features is not None
    hidden = ~some.features.any(-1)
    assert torch.equal(some.targets, whole.targets) and (some.inputs[hidden] == VOCABULARY.mask).all()
    assert torch.equal(some.inputs[~hidden], whole.inputs[~hidden]) and (whole.inputs[:, 1:] != VOCABULARY.mask).all()
    assert torch.equal(some.features[~hidden], whole.features[~hidden]) and whole.features.any(-1).all()
    share = hidden.float().mean(1)
    assert abs(share.mean().item() - 0.4) < 0.03 and share.min() < 0.1 and 0.65 < share.max() < 0.99
    assert torch.equal(segments(0.8).features, some.features)
    alone = learned(objective, codes[3:4], layout, draws_of(1, 3), code_dropout=0.8)
    torch.testing.assert_close(alone.features, some.features[3:4])


def _whitening() -> torch.Tensor:
    """(3, 3): the inverse root of the covariance of the code vectors, by its definition."""
    vectors = SCALED.quantizer.book.vectors(torch.arange(16)[None], (4, 4))[0].flatten(1).detach().double()
    variances, directions = torch.linalg.eigh(torch.cov(vectors))
    return (directions / variances.sqrt()).float()


def test_next_scale_sees_all_directions_of_the_latents_alike() -> None:
    quantizer = copy.deepcopy(SCALED.quantizer)
    with torch.no_grad():
        quantizer.book.codebook[:, 0] *= 1e-2
    objective = NextScale(quantizer, 3)
    vectors = quantizer.book.vectors(torch.arange(16)[None], (4, 4))[0].flatten(1).T.detach()
    seen = objective.mark(vectors[None], torch.zeros(16, dtype=torch.int64))[0, :, :3]
    torch.testing.assert_close(torch.cov(seen.T), torch.eye(3), atol=1e-4, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as pictures are drawn
        assert torch.equal(objective.mark(vectors[None], torch.zeros(16, dtype=torch.int64))[0, :, :3], seen)


def test_code_noise_changes_what_is_continued_and_the_targets_correct_it() -> None:
    layout, quantizer = SCALED.layout, SCALED.quantizer
    codes = torch.randint(16, (40, 21), generator=torch.Generator().manual_seed(0))
    objective = get_objective("var", SCALED)

    def segments(noise: float, rows: slice = slice(0, 40), seed: int = 0) -> Images:
        return learned(objective, codes[rows], layout, draws_of(40, seed)[rows], code_noise=noise)

    plain, noisy = segments(0.0), segments(1.5)
    assert plain.features is not None and noisy.features is not None
    assert torch.equal(plain.targets, codes + VOCABULARY.image_start)
    straight = torch.linalg.inv(_whitening())
    seen = noisy.features[..., :3] @ straight
    changed = (noisy.features != plain.features).any(-1)
    assert not changed[:, 0].any() and 0.5 < changed[:, 1:].float().mean() < 1, "the first map continues nothing"
    goal = quantizer.shrink(quantizer.total(codes, layout), 2, layout)  # the last map writes what is missing, no more
    rest = (goal - seen[:, 5:]).flatten(0, 1)
    book = quantizer.book.vectors(torch.arange(16)[None], (4, 4))[0].flatten(1).T
    nearest = torch.cdist(rest, book).argmin(1).view(40, 16)
    assert torch.equal(noisy.targets[:, 5:] - VOCABULARY.image_start, nearest)
    assert torch.equal(segments(1.5).features, noisy.features) and not torch.equal(
        segments(1.5, seed=1).features, noisy.features
    )
    alone = segments(1.5, slice(3, 4), 0)
    torch.testing.assert_close(alone.features, noisy.features[3:4])
    assert torch.equal(alone.targets, noisy.targets[3:4]), "batch mates change nothing"
    assert len(segments(1.5, slice(0, 0)).targets) == 0


def test_var_sees_the_running_reconstruction_and_predicts_the_map() -> None:
    objective = get_objective("var", SCALED)
    layout = SCALED.layout
    codes = torch.randint(16, (2, 21))
    segments = learned(objective, codes, layout, [])
    assert (segments.inputs[:, 0] == VOCABULARY.mask).all(), "the first map sees nothing"
    assert torch.equal(segments.targets, codes + VOCABULARY.image_start)
    assert segments.groups.tolist() == [0] + [1] * 4 + [2] * 16
    assert (
        segments.features is not None
        and segments.features.shape == (2, 21, 3 + 3)
        and objective.ports(layout)["image"].size == 6
    )
    seen, scale = segments.features.split([3, 3], -1)
    assert scale.argmax(-1)[0].tolist() == segments.groups.tolist() and (scale.sum(-1) == 1).all()
    assert (seen[:, 0] == 0).all()
    with torch.no_grad():
        after_two = SCALED.quantizer.vectors(codes[:, :5], layout)  # (2, 3, 4, 4), already on the last grid
        nearest = SCALED.quantizer.book.nearest(after_two)
    torch.testing.assert_close(seen[:, 5:], after_two.flatten(2).transpose(1, 2) @ _whitening())
    assert torch.equal(segments.inputs[:, 5:], nearest + VOCABULARY.image_start)

    image = objective.learned(codes, layout, VOCABULARY, [])[0]
    rows = [[document([text_segment([7, 8], VOCABULARY), image])], [document([text_segment([1], VOCABULARY)])]]
    batch = lay_out(rows, pad=24)
    at, features = batch.features["image"]
    assert at.tolist() == list(range(3, 24)) and torch.equal(features, segments.features[0])
    assert batch.places[0, 3:, 0].tolist() == [3] + [4] * 4 + [5] * 16
    assert batch.places[0, 3:5, 1:].tolist() == [[1.5, 1.5], [0.5, 0.5]], "rows and columns of the finest grid"


def test_next_scale_draws_the_children_of_a_place_in_turn() -> None:
    layout = SCALED.layout
    turns = in_turn(layout)
    assert sorted(itertools.chain(*turns)) == list(range(21))
    assert [len(here) for here in turns] == [1, 1, 1, 1, 1, 4, 4, 4, 4]
    for number, here in enumerate(turns[1:], 1):
        start, side = (5, 4) if number > 4 else (1, 2)
        parents = [((place - start) // side // 2, (place - start) % side // 2) for place in here]
        assert len(set(parents)) == len(parents), "no two of one parent at once"
    assert in_turn(Layout(((1, 1), (1, 4)))) == [[0], [1, 3], [2, 4]]


def test_next_scale_sees_what_is_drawn_around_a_place() -> None:
    """A position sees the map so far in the 3x3 places around it: codes drawn before, else the coarser maps."""
    objective, layout, quantizer = get_objective("next_scale", SCALED), SCALED.layout, SCALED.quantizer
    codes = torch.randint(16, (2, 21))
    turns = in_turn(layout)
    order = torch.tensor(list(itertools.chain(*turns)))
    passes = torch.tensor([number for number, here in enumerate(turns) for _ in here])
    (image, _) = objective.learned(codes, layout, VOCABULARY, draws_of(2))
    assert torch.equal(image.target, codes[0, order] + VOCABULARY.image_start) and torch.equal(image.groups, passes)
    assert torch.equal(image.places, layout.coordinates()[order])
    assert image.features is not None and objective.ports(layout)["image"].size == 9 * 4 + 3 == image.features.shape[1]
    seen = quantizer.seen_before(codes, layout)[0]
    straight = torch.linalg.inv(_whitening())
    around = image.features[:, :36].unflatten(1, (9, 4))
    vectors = quantizer.placed(seen[None, 5:], codes[:1, 5:], 2, layout)[0]
    for at in range(5, 21):  # the last map, 4 x 4
        place = int(order[at]) - 5
        for number, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            row, column = place // 4 + dy, place % 4 + dx
            if not (0 <= row < 4 and 0 <= column < 4):
                assert not around[at, number].any(), "nothing lies outside"
                continue
            there = 4 * row + column
            drawn = int(passes[order.tolist().index(5 + there)]) < int(passes[at])
            assert around[at, number, 3] == float(drawn)
            wanted = vectors[there] if drawn else seen[5 + there]
            torch.testing.assert_close(around[at, number, :3] @ straight, wanted, atol=1e-4, rtol=1e-4)
    assert (image.features[:, 36:].argmax(1) == objective.groups(layout)[order]).all()
    (read, _) = objective.given(codes, layout, VOCABULARY)
    assert read.features is not None and read.features.shape == (16, 39)
    (plain, _) = get_objective("var", SCALED).given(codes, layout, VOCABULARY)
    assert plain.features is not None and torch.equal(read.features[:, 16:19], plain.features[:, :3])
    assert not read.features[:, :16].any() and not read.features[:, 19:].any(), "a place alone, of no scale"


def test_noise_changes_what_next_scale_sees_of_earlier_maps_and_passes() -> None:
    layout = SCALED.layout
    codes = torch.randint(16, (40, 21), generator=torch.Generator().manual_seed(0))
    objective = get_objective("next_scale", SCALED)

    def segments(noise: float, rows: slice = slice(0, 40), seed: int = 0) -> Images:
        return learned(objective, codes[rows], layout, draws_of(40, seed)[rows], code_noise=noise, code_dropout=0)

    plain, noisy = segments(0.0), segments(1.5)
    assert plain.features is not None and noisy.features is not None
    changed = (noisy.features != plain.features).any(-1)
    assert not changed[:, 0].any() and changed[:, 1:].float().mean() > 0.5, "the first map continues nothing"
    assert torch.equal(segments(1.5).features, noisy.features)
    alone = segments(1.5, slice(3, 4))
    torch.testing.assert_close(alone.features, noisy.features[3:4])
    assert torch.equal(alone.targets, noisy.targets[3:4]), "batch mates change nothing"
    assert objective.learned(codes[:0], layout, VOCABULARY, []) == []


def test_next_scale_refuses_a_single_grid() -> None:
    with pytest.raises(UserError, match="next_scale needs a tokenizer with several scales, this one has a single grid"):
        get_objective("next_scale", TOKENIZER)
