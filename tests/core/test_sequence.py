"""Documents, packing and tasks."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizer_config import VQ
from unitok.boxes import BoxModality
from unitok.config import ObjectiveSettings, TaskConfig, TasksConfig, TrunkConfig
from unitok.modalities import text_segment
from unitok.model import modalities
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.objectives.base import Draw, Objective
from unitok.objectives.masked_token import PASSES
from unitok.objectives.next_scale import NextScale, in_turn
from unitok.objectives.orders import pass_sizes, spread_order
from unitok.ports import IdPort, add_features, build_ports
from unitok.seeding import keyed_generator
from unitok.sequence import IGNORE, Document, PackedBatch, document, lay_out, pack
from unitok.tasks import FIELDS, TASKS, WITH_HOLES, conditions, documents, needs, prompt, task_of_slot
from unitok.trunk.native import Transformer
from unitok.vocabulary import SPECIALS, Vocabulary

VOCABULARY = Vocabulary.of(text_size=20, codebook_size=16)
LAYOUT = Layout(((2, 3),))
TOKENIZER = build_tokenizer(TOKENIZER_PRESETS["debug"]())
torch.manual_seed(0)
SCALED = build_tokenizer(
    ConvVQConfig(
        image_size=16,
        stem=4,
        channels=8,
        channel_multipliers=(1,),
        blocks=1,
        attention="none",
        latent_dim=8,
        quantizer=VQ(codebook_size=16, dim=3),
        scales=(1, 2, 4),
    )
).eval()


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


def settled(objective: str, **settings: float) -> ObjectiveSettings:
    return objective_class(objective).settled(ObjectiveSettings(**settings))


def draws_of(count: int, seed: int = 0, progress: float = 1.0) -> list[Draw]:
    return [Draw(torch.Generator().manual_seed(seed + row), progress) for row in range(count)]


def tokenizer_of(objective: str) -> tuple[Any, Layout]:
    return (SCALED, SCALED.layout) if objective in ("next_scale", "var") else (TOKENIZER, LAYOUT)


def documents_of(
    slots: range, objective: str = "masked_token", tasks: TasksConfig | None = None, seed: int = 0
) -> list[Document]:
    tasks = tasks or TasksConfig()
    tokenizer, layout = tokenizer_of(objective)
    records = [
        {
            "caption": [1 + slot % 5] * (1 + slot % 4),
            "image": torch.arange(layout.length) % 7 + slot % 8,
        }
        for slot in slots
    ]
    names, shares = zip(*tasks.shares().items(), strict=True)
    chosen = [names[task_of_slot(slot, shares)] for slot in slots]
    draws = [Draw(keyed_generator(seed, "task", 0, 100 + slot)) for slot in slots]
    found = modalities(VOCABULARY, list, 9, layout, get_objective(objective, tokenizer), settled(objective))
    dropout, numbers = {"text": tasks.caption_dropout}, {task: number for number, task in enumerate(TASKS)}
    return documents(chosen, records, draws, found, dropout, numbers)


def batch_of(slots: range, objective: str = "masked_token", **options: Any) -> PackedBatch:
    return pack(documents_of(slots, objective, **options), pad=VOCABULARY.pad)


def test_vocabulary_ranges_join_without_gaps() -> None:
    specials = [getattr(VOCABULARY, name) for name in SPECIALS]
    assert specials == list(range(20, 25))
    assert VOCABULARY.image_range == slice(25, 41) and VOCABULARY.size == 41
    assert VOCABULARY.text_range == slice(0, 21)


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(UserError, match="codes from 0 to 16 do not fit a codebook of 16"):
        VOCABULARY.image_ids(torch.tensor([0, 16]))


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
    order, passes = in_turn(layout)
    assert sorted(order.tolist()) == list(range(21)) and passes.tolist() == sorted(passes.tolist())
    assert passes.bincount().tolist() == [1, 1, 1, 1, 1, 4, 4, 4, 4]
    for number in range(1, 9):
        places = order[passes == number] - (5 if number > 4 else 1)
        side = 4 if number > 4 else 2
        parents = [(int(place) // side // 2, int(place) % side // 2) for place in places]
        assert len(set(parents)) == len(parents), "no two of one parent at once"
    wide = in_turn(Layout(((1, 1), (1, 4))))[1]
    assert wide.tolist() == [0, 1, 1, 2, 2]


def test_next_scale_sees_what_is_drawn_around_a_place() -> None:
    """A position sees the map so far in the 3x3 places around it: codes drawn before, else the coarser maps."""
    objective, layout, quantizer = get_objective("next_scale", SCALED), SCALED.layout, SCALED.quantizer
    codes = torch.randint(16, (2, 21))
    order, passes = in_turn(layout)
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


def test_slots_hold_the_tasks_in_their_shares() -> None:
    shares = list(TasksConfig().shares().values())
    counts = Counter(task_of_slot(slot, shares) for slot in range(1000))
    assert [round(counts[task] / 1000, 2) for task in range(3)] == [0.75, 0.2, 0.05]
    none = TasksConfig(text_only=TaskConfig(share=0, weight=1)).shares()
    assert list(none) == ["text_to_image", "image_to_text"]


def test_every_task_is_a_row_of_the_table() -> None:
    assert [name for name, _ in TasksConfig().items()] == list(TASKS), "the numbers of tasks"
    for task, parts in TASKS.items():
        assert any(part.learned for part in parts), task
        assert all(part.field in FIELDS or part.field == "parts" for part in parts), task
        assert needs([task]) == {WITH_HOLES.get(part.field, part.field) for part in parts}
        assert not needs([task]) & WITH_HOLES.keys()
    assert conditions("edit") == ["text", "image"] and conditions("text_to_image") == ["text"]


def test_guidance_leaves_conditions_out_in_order() -> None:
    record = {"source": torch.zeros(6), "instruction": [5, 6], "image": torch.zeros(6)}

    def shape(without: list[str]) -> list[tuple[str, int]]:
        return [(piece.modality, len(piece.value)) for piece in prompt("edit", record, without)]

    assert shape([]) == [("image", 6), ("text", 2)]
    assert shape(["text"]) == [("image", 6), ("text", 0)]
    assert shape(["text", "image"]) == [("text", 0)]
    with pytest.raises(UserError, match="a record has no instruction, which the task edit needs"):
        prompt("edit", {"source": torch.zeros(6)})


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_packed_equals_unpacked(objective: str) -> None:
    even = TasksConfig(TaskConfig(1, 1), TaskConfig(1, 1), TaskConfig(1, 1))
    found = documents_of(range(12), objective, tasks=even)
    batch = pack(found, pad=VOCABULARY.pad)
    assert (batch.documents > 0).any(), "some rows must hold several documents"
    torch.manual_seed(0)
    tokenizer, layout = tokenizer_of(objective)
    ids = IdPort(VOCABULARY.size, 32, tied=False).double()
    ports = build_ports(get_objective(objective, tokenizer).ports(layout), 32).double()
    trunk = Transformer(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1)).double()

    def hidden(batch: PackedBatch) -> torch.Tensor:
        x = add_features(ids(batch.inputs), ports, batch.features)
        return trunk(x, batch.places, batch.visibility(), None, batch.stands)

    packed, met = hidden(batch), 0
    rows = [batch.inputs[row][batch.documents[row] == n] for row in range(len(batch.inputs)) for n in range(12)]
    assert sum(len(row) > 0 for row in rows) == 12
    for one in found:
        alone = hidden(lay_out([[one]], pad=VOCABULARY.pad))[0]
        for row in range(len(batch.inputs)):
            for number in range(int(batch.documents[row].max()) + 1):
                span = (batch.documents[row] == number).nonzero().squeeze(1)
                if batch.inputs[row, span].tolist() == one.inputs.tolist():
                    same = torch.allclose(packed[row, span], alone, atol=1e-12, rtol=1e-9)
                    met += same and torch.equal(batch.places[row, span], one.places)
    assert met >= 12


def test_micro_batches_hold_the_same_documents_as_the_whole() -> None:
    """What a picture becomes depends on its key alone."""

    def met(slots: range, seed: int = 0) -> Counter[tuple[int, ...]]:
        return Counter(tuple(one.inputs.tolist()) for one in documents_of(slots, seed=seed))

    whole = met(range(16))
    assert whole == met(range(8)) + met(range(8, 16))
    assert whole != met(range(16), seed=1)


def test_caption_dropout_leaves_an_empty_caption() -> None:
    only_images = TasksConfig(
        image_to_text=TaskConfig(0, 1), text_only=TaskConfig(0, 1), caption_dropout=1.0, text_to_image=TaskConfig(1, 1)
    )
    batch = batch_of(range(4), "maskgit", tasks=only_images)
    assert (batch.inputs[:, 0] == VOCABULARY.bos).all() and (batch.groups[:, 1:] == 1).all()
    assert batch.inputs.shape == (4, 7)


def test_targets_lie_in_the_spans_that_can_stand_there() -> None:
    """Those of one span after those of another, each with its ids."""
    found = documents_of(range(9), "next_token")
    batch = pack(found, pad=VOCABULARY.pad)
    assert len(batch.at) == sum(int((one.targets != IGNORE).sum()) for one in found) == len(batch.targets)
    assert {(ids.start, ids.stop) for ids, _ in batch.spans} == {(25, 41), (0, 21)}
    start = 0
    for ids, count in batch.spans:
        here = batch.targets[start : start + count]
        assert count > 0 and (here >= ids.start).all() and (here < ids.stop).all()
        start += count
    assert start == len(batch.at)
    for position, target in zip(batch.at.tolist(), batch.targets.tolist(), strict=True):
        row, column = divmod(position, batch.inputs.shape[1])
        after = batch.inputs[row, column + 1].item() if column + 1 < batch.inputs.shape[1] else None
        assert target in (VOCABULARY.eos, after) or after in (
            None,
            VOCABULARY.pad,
            VOCABULARY.bos,
            VOCABULARY.mask,
        ), "the next input, where it is not hidden"


def test_grids_with_books_of_their_own_hold_no_other_ids() -> None:
    layout = Layout(((1, 2), (1, 2)), books=((0, 10), (10, 6)))
    codes = torch.tensor([[3, 9, 10, 15]])
    for objective in ("next_token", "masked_token", "maskgit", "random_order"):
        (segment,) = get_objective(objective, TOKENIZER).learned(codes, layout, VOCABULARY, draws_of(1, progress=0.0))
        batch = lay_out([[document([segment])]], pad=VOCABULARY.pad)
        assert {(ids.start, ids.stop) for ids, _ in batch.spans} <= {(25, 35), (35, 41)}
        start = 0
        for ids, count in batch.spans:
            assert all(ids.start <= target < ids.stop for target in batch.targets[start : start + count].tolist())
            start += count
    with pytest.raises(UserError, match=r"layout has 2 grids and books \[\(0, 10\)\]"):
        Layout(((1, 2), (1, 2)), books=((0, 10),))


def test_boxes_are_written_in_locations() -> None:
    vocabulary = VOCABULARY.grown("location", 256)
    boxes = BoxModality(vocabulary)
    value = [[0.1, 0.2, 0.5, 1.0], [0.0, 0.0, 0.25, 0.75]]
    ((segment,),) = boxes.learned([value], draws_of(1), [False])
    assert segment.ids.tolist()[1:] == segment.target.tolist()[:-1] == boxes.ids(value)
    either, location = ((vocabulary["location"], slice(20, 21)), 1), (vocabulary["location"], 3)
    assert segment.runs == (either, location, either, location, either), "when to end is learned"
    for found, wanted in zip(boxes.value(torch.tensor(boxes.ids(value))), value, strict=True):
        assert found == pytest.approx(wanted, abs=1 / 256)
    with pytest.raises(UserError, match=r"box \[0, 2, 1, 1\] is no box"):
        boxes.ids([[0, 2, 1, 1]])


def test_first_fit_puts_short_documents_together() -> None:
    short, long = (document([text_segment([1] * n, VOCABULARY)]) for n in (2, 8))
    batch = pack([short, long, short, short, short], pad=24)
    assert batch.documents.shape == (3, 9) and not batch.causal
    assert pack([short, short], pad=24).causal
    assert pack([short, long, short], pad=24).documents.tolist()[1] == [0, 0, 0, 1, 1, 1, -1, -1, -1]


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(UserError, match=r"2 problems:\n  trunk.depth is 0.*\n  trunk.width is 30"):
        TrunkConfig(width=30, depth=0, heads=2)
    with pytest.raises(UserError, match="all tasks have share 0"):
        TasksConfig(TaskConfig(0, 1), TaskConfig(0, 1), TaskConfig(0, 1))
    with pytest.raises(UserError, match=r"permuted_until is 0.9 and ordered_from 0.5: choose two shares of the run"):
        settled("masked_token", permuted_until=0.9)
    with pytest.raises(UserError, match="objective is 'diffusion': choose one of next_token, masked_token"):
        get_objective("diffusion", TOKENIZER)
