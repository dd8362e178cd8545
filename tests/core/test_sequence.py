"""Documents, packing and tasks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.config import TaskConfig, TasksConfig, TrunkConfig
from unitok.data.records import Key
from unitok.objectives import OBJECTIVES, get_objective
from unitok.sequence import IGNORE, DocumentBuilder, PackedBatch, lay_out, pack
from unitok.tasks import make_batch, task_losses, task_of_slot
from unitok.transformer import Transformer
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=20, codebook_size=16)
LAYOUT = Layout(((2, 3),))


def batch_of(slots: range, objective: str = "masked_token", **options: Any) -> PackedBatch:
    codes = torch.stack([torch.arange(6) + slot % 8 for slot in slots])
    captions = [[1 + slot % 5] * (1 + slot % 4) for slot in slots]
    keys = [Key(0, 100 + slot, slot) for slot in slots]
    settings: dict[str, Any] = {"tasks": TasksConfig(), "seed": 0, **options}
    return make_batch(
        captions, codes, keys, layout=LAYOUT, vocabulary=VOCABULARY, objective=get_objective(objective), **settings
    )


def test_vocabulary_ranges_join_without_gaps() -> None:
    specials = [getattr(VOCABULARY, name) for name in Vocabulary.SPECIALS]
    assert specials == list(range(20, 25))
    assert VOCABULARY.image_range == slice(25, 41) and VOCABULARY.size == 41
    assert VOCABULARY.text_range == slice(0, 21)


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(UserError, match="codes from 0 to 16 do not fit a codebook of 16"):
        VOCABULARY.image_ids(torch.tensor([0, 16]))


def test_next_token_document_is_aligned() -> None:
    segments = get_objective("next_token").segments(torch.arange(6)[None], LAYOUT, VOCABULARY, [])
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
    segments = get_objective("masked_token").segments(codes, LAYOUT, VOCABULARY, generators)
    hidden = segments.inputs == VOCABULARY.mask
    assert torch.equal(hidden, segments.targets != IGNORE)
    assert torch.equal(torch.where(hidden, segments.targets, segments.inputs), codes + VOCABULARY.image_start)
    assert hidden.sum(1).min() >= 1 and set(hidden.sum(1).tolist()) == set(range(1, 7))
    assert abs(hidden.float().mean().item() - 2 / torch.pi) < 0.06, "the cosine schedule hides 2/pi on average"
    assert segments.groups.tolist() == [0] * 6


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
    transformer = Transformer(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1), VOCABULARY.size).double()
    packed = transformer(batch)
    found = 0
    for row in range(len(batch.inputs)):
        for number in range(int(batch.documents[row].max()) + 1):
            span = (batch.documents[row] == number).nonzero().squeeze(1)
            builder = DocumentBuilder()
            builder.parts = [
                (batch.inputs[row, span], batch.targets[row, span], batch.groups[row, span], batch.places[row, span])
            ]
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
        get_objective("diffusion")
