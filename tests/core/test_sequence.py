"""Documents, packing and tasks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from sequences import LAYOUT, SCALED, TOKENIZER, VOCABULARY, draws_of, settled

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.boxes import BoxModality
from unitok.config import TaskConfig, TasksConfig, TrunkConfig
from unitok.modalities import text_segment
from unitok.model import modalities
from unitok.objectives import OBJECTIVES, get_objective
from unitok.objectives.base import Draw
from unitok.ports import IdPort, add_features, build_ports
from unitok.seeding import keyed_generator
from unitok.sequence import IGNORE, Document, PackedBatch, document, lay_out, pack
from unitok.tasks import FIELDS, TASKS, WITH_HOLES, conditions, documents, needs, prompt, task_of_slot
from unitok.trunk.native import Transformer
from unitok.vocabulary import SPECIALS


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


def test_batches_of_like_lengths_have_few_shapes() -> None:
    """What multiplies a shape on a CPU is made when the shape is first met."""
    lengths = {pack([document([text_segment([1] * n, VOCABULARY)])], pad=24).inputs.shape[1] for n in range(400, 460)}
    assert len(lengths) <= 5 and max(lengths) <= 461 * 17 / 16


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(UserError, match=r"2 problems:\n  trunk.depth is 0.*\n  trunk.width is 30"):
        TrunkConfig(width=30, depth=0, heads=2)
    with pytest.raises(UserError, match="all tasks have share 0"):
        TasksConfig(TaskConfig(0, 1), TaskConfig(0, 1), TaskConfig(0, 1))
    with pytest.raises(UserError, match=r"permuted_until is 0.9 and ordered_from 0.5: choose two shares of the run"):
        settled("masked_token", permuted_until=0.9)
    with pytest.raises(UserError, match="objective is 'diffusion': choose one of next_token, masked_token"):
        get_objective("diffusion", TOKENIZER)
