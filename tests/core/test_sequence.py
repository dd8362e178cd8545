"""Documents, packing and tasks."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, ConvVQConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from tokenizers_vq.quantizer_config import VQ
from unitok.config import TaskConfig, TasksConfig, TrunkConfig
from unitok.data.records import Key
from unitok.objectives import OBJECTIVES, ImageSegments, get_objective
from unitok.objectives.next_scale import NextScale
from unitok.sequence import IGNORE, DocumentBuilder, PackedBatch, lay_out, pack
from unitok.tasks import make_batch, task_losses, task_of_slot
from unitok.transformer import Transformer
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=20, codebook_size=16)
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


def batch_of(slots: range, objective: str = "masked_token", **options: Any) -> PackedBatch:
    if objective == "next_scale":
        tokenizer, layout = SCALED, SCALED.layout
    else:
        tokenizer, layout = TOKENIZER, LAYOUT
    codes = torch.stack([torch.arange(layout.length) % 7 + slot % 8 for slot in slots])
    captions = [[1 + slot % 5] * (1 + slot % 4) for slot in slots]
    keys = [Key(0, 100 + slot, slot) for slot in slots]
    settings: dict[str, Any] = {"tasks": TasksConfig(), "seed": 0, **options}
    settings["objective"] = get_objective(objective, tokenizer)
    return make_batch(captions, codes, keys, layout=layout, vocabulary=VOCABULARY, **settings)


def test_vocabulary_ranges_join_without_gaps() -> None:
    specials = [getattr(VOCABULARY, name) for name in Vocabulary.SPECIALS]
    assert specials == list(range(20, 25))
    assert VOCABULARY.image_range == slice(25, 41) and VOCABULARY.size == 41
    assert VOCABULARY.text_range == slice(0, 21)


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(UserError, match="codes from 0 to 16 do not fit a codebook of 16"):
        VOCABULARY.image_ids(torch.tensor([0, 16]))


def test_next_token_document_is_aligned() -> None:
    segments = get_objective("next_token", TOKENIZER).segments(torch.arange(6)[None], LAYOUT, VOCABULARY, [])
    builder = DocumentBuilder().text([7, 8], bos=VOCABULARY.bos)
    document = builder.image(segments.inputs[0], segments.targets[0], segments.groups, LAYOUT).build()
    assert document.inputs.tolist() == [21, 7, 8, 22, 25, 26, 27, 28, 29]
    assert document.targets.tolist() == [IGNORE] * 3 + [25, 26, 27, 28, 29, 30]
    assert document.groups.tolist() == list(range(9))
    assert document.places[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]
    assert document.places[3:, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_masked_token_hides_what_it_asks_for() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    codes = torch.arange(6).repeat(200, 1)
    segments = get_objective("masked_token", TOKENIZER).segments(codes, LAYOUT, VOCABULARY, generators)
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

    def segments(dropout: float, seed: int = 0) -> ImageSegments:
        generators = [torch.Generator().manual_seed(seed + row) for row in range(400)]
        return objective.segments(codes, layout, VOCABULARY, generators, TasksConfig(code_dropout=dropout))

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

    def segments(dropout: float, seed: int = 0) -> ImageSegments:
        generators = [torch.Generator().manual_seed(seed + row) for row in range(400)]
        return objective.segments(codes, layout, VOCABULARY, generators, TasksConfig(code_dropout=dropout))

    whole, some = segments(0.0), segments(0.8)
    assert whole.features is not None and some.features is not None
    hidden = ~some.features.any(-1)
    assert torch.equal(some.targets, whole.targets) and (some.inputs[hidden] == VOCABULARY.mask).all()
    assert torch.equal(some.inputs[~hidden], whole.inputs[~hidden]) and (whole.inputs[:, 1:] != VOCABULARY.mask).all()
    assert torch.equal(some.features[~hidden], whole.features[~hidden]) and whole.features.any(-1).all()
    share = hidden.float().mean(1)
    assert abs(share.mean().item() - 0.4) < 0.03 and share.min() < 0.1 and 0.65 < share.max() < 0.99
    assert torch.equal(segments(0.8).features, some.features)
    generators = [torch.Generator().manual_seed(3)]
    alone = objective.segments(codes[3:4], layout, VOCABULARY, generators, TasksConfig(code_dropout=0.8))
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
    objective = get_objective("next_scale", SCALED)

    def segments(noise: float, rows: slice = slice(0, 40), seed: int = 0) -> ImageSegments:
        generators = [torch.Generator().manual_seed(seed + row) for row in range(40)[rows]]
        return objective.segments(codes[rows], layout, VOCABULARY, generators, TasksConfig(code_noise=noise))

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


def test_next_scale_sees_the_running_reconstruction_and_predicts_the_map() -> None:
    objective = get_objective("next_scale", SCALED)
    layout = SCALED.layout
    codes = torch.randint(16, (2, 21))
    segments = objective.segments(codes, layout, VOCABULARY, [])
    assert (segments.inputs[:, 0] == VOCABULARY.mask).all(), "the first map sees nothing"
    assert torch.equal(segments.targets, codes + VOCABULARY.image_start)
    assert segments.groups.tolist() == [0] + [1] * 4 + [2] * 16
    assert segments.features is not None and segments.features.shape == (2, 21, 3 + 3) and objective.features == 6
    seen, scale = segments.features.split([3, 3], -1)
    assert scale.argmax(-1)[0].tolist() == segments.groups.tolist() and (scale.sum(-1) == 1).all()
    assert (seen[:, 0] == 0).all()
    with torch.no_grad():
        after_two = SCALED.quantizer.vectors(codes[:, :5], layout)  # (2, 3, 4, 4), already on the last grid
        nearest = SCALED.quantizer.book.nearest(after_two)
    torch.testing.assert_close(seen[:, 5:], after_two.flatten(2).transpose(1, 2) @ _whitening())
    assert torch.equal(segments.inputs[:, 5:], nearest + VOCABULARY.image_start)

    builder = DocumentBuilder().text([7, 8], bos=VOCABULARY.bos)
    builder.image(segments.inputs[0], segments.targets[0], segments.groups, layout, segments.features[0])
    batch = lay_out([[builder.build()], [DocumentBuilder().text([1], bos=VOCABULARY.bos).build()]], pad=24)
    assert batch.features is not None and batch.features.shape == (2, 24, 6)
    assert torch.equal(batch.features[0, 3:], segments.features[0])
    assert (batch.features[0, :3] == 0).all() and (batch.features[1] == 0).all()
    assert batch.places[0, 3:, 0].tolist() == [3] + [4] * 4 + [5] * 16
    assert batch.places[0, 3:5, 1:].tolist() == [[1.5, 1.5], [0.5, 0.5]], "rows and columns of the finest grid"


def test_next_scale_refuses_a_single_grid() -> None:
    with pytest.raises(UserError, match="next_scale needs a tokenizer with several scales, this one has a single grid"):
        get_objective("next_scale", TOKENIZER)


def test_slots_hold_the_tasks_in_their_shares() -> None:
    counts = Counter(task_of_slot(slot, TasksConfig()) for slot in range(1000))
    assert [round(counts[task] / 1000, 2) for task in range(3)] == [0.75, 0.2, 0.05]
    none = TasksConfig(text_only=TaskConfig(share=0, weight=1))
    assert {task_of_slot(slot, none) for slot in range(1000)} == {0, 1}


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_packed_equals_unpacked(objective: str) -> None:
    even = TasksConfig(TaskConfig(1, 1), TaskConfig(1, 1), TaskConfig(1, 1))
    batch = batch_of(range(12), objective, tasks=even)
    assert (batch.documents > 0).any(), "some rows must hold several documents"
    torch.manual_seed(0)
    features = 0 if batch.features is None else batch.features.shape[-1]
    transformer = Transformer(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1), VOCABULARY.size, features).double()
    packed = transformer(batch)
    found = 0
    for row in range(len(batch.inputs)):
        for number in range(int(batch.documents[row].max()) + 1):
            span = (batch.documents[row] == number).nonzero().squeeze(1)
            builder = DocumentBuilder()
            builder.parts = [
                (batch.inputs[row, span], batch.targets[row, span], batch.groups[row, span], batch.places[row, span])
            ]
            if batch.features is not None:
                builder.features = [(0, batch.features[row, span])]
            alone = transformer(lay_out([[builder.build()]], pad=VOCABULARY.pad))
            torch.testing.assert_close(packed[row, span], alone[0], atol=1e-12, rtol=1e-9)
            found += 1
    assert found == 12


def test_micro_batches_hold_the_same_documents_as_the_whole() -> None:
    """What a picture becomes depends on its key alone."""

    def documents(batch: PackedBatch) -> Counter[tuple[int, ...]]:
        return Counter(
            tuple(batch.inputs[row][batch.documents[row] == number].tolist())
            for row in range(len(batch.inputs))
            for number in range(int(batch.documents[row].max()) + 1)
        )

    whole = documents(batch_of(range(16)))
    assert whole == documents(batch_of(range(8))) + documents(batch_of(range(8, 16)))
    assert whole != documents(batch_of(range(16), seed=1))


def test_caption_dropout_leaves_an_empty_caption() -> None:
    only_images = TasksConfig(
        image_to_text=TaskConfig(0, 1), text_only=TaskConfig(0, 1), caption_dropout=1.0, text_to_image=TaskConfig(1, 1)
    )
    batch = batch_of(range(4), tasks=only_images)
    assert (batch.inputs[:, 0] == VOCABULARY.bos).all() and (batch.groups[:, 1:] == 1).all()
    assert batch.inputs.shape == (4, 7)


def test_at_lists_what_is_predicted() -> None:
    batch = batch_of(range(9), "next_token")
    assert (batch.targets.flatten()[batch.at] != IGNORE).all()
    assert len(batch.at) == int((batch.targets != IGNORE).sum())


def test_first_fit_puts_short_documents_together() -> None:
    short, long = (DocumentBuilder().text([1] * n, bos=21, eos=20).build() for n in (2, 8))
    batch = pack([short, long, short, short, short], pad=24)
    assert batch.documents.shape == (3, 9) and not batch.causal
    assert pack([short, short], pad=24).causal


def test_task_losses_are_sums() -> None:
    logits = torch.full((4, 3), -20.0)
    targets, tasks = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 0, 2, 2])
    logits[torch.arange(4), targets] = 20.0  # a model that knows the answer
    assert task_losses(logits, targets, tasks, 3).abs().max() < 1e-6
    sums = task_losses(torch.zeros(4, 3), targets, tasks, 3)
    torch.testing.assert_close(sums, torch.tensor([2.0, 0.0, 2.0]) * torch.log(torch.tensor(3.0)))


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(UserError, match=r"2 problems:\n  trunk.depth is 0.*\n  trunk.width is 30"):
        TrunkConfig(width=30, depth=0, heads=2)
    with pytest.raises(UserError, match="all tasks have share 0"):
        TasksConfig(TaskConfig(0, 1), TaskConfig(0, 1), TaskConfig(0, 1))
    with pytest.raises(UserError, match="objective is 'diffusion': choose one of next_token, masked_token"):
        get_objective("diffusion", TOKENIZER)
