"""Boxes, alone and in texts: ids, spans, losses, and a writer that breaks none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import stir

from tokenizers_vq.errors import UserError
from unitok.boxes import MOST_BOXES, BoxModality, GroundedTextModality, cropped, is_box, rough, uncropped
from unitok.config import PortConfig
from unitok.model import UniTok
from unitok.objectives.base import Draw, Writer
from unitok.ports import IdPort
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import roughly
from unitok.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(text_size=20, codebook_size=16).grown("location", 50).grown("box", 1)
LOCATION, BOX = VOCABULARY["location"], VOCABULARY["box"].start
BOXES = BoxModality(VOCABULARY)
TEXTS = GroundedTextModality(VOCABULARY, lambda text: [ord(one) - ord("a") for one in text], 12)
DRAW = Draw(torch.Generator())
NAMED: list[Any] = ["abc", [0.1, 0.2, 0.5, 1.0], "de", [0.0, 0.0, 0.25, 0.75], [0.5, 0.5, 0.5, 0.5]]


def decode(ids: list[int]) -> str:
    return "".join(chr(one + ord("a")) for one in ids)


@pytest.mark.parametrize("steps", [256, 1000])
def test_the_vocabulary_says_how_many_steps_a_side_has(steps: int) -> None:
    vocabulary = Vocabulary.of(20, 16).grown("location", steps)
    boxes = BoxModality(vocabulary)
    value = [[0.0, 0.5, 0.9999, 1.0]]
    ids = boxes.ids(value)
    assert [one - vocabulary["location"].start for one in ids] == [0, steps // 2, int(0.9999 * steps), steps - 1]
    (found,) = boxes.value(torch.tensor(ids))
    assert found == pytest.approx(value[0], abs=1 / steps)
    assert boxes.ids([found]) == ids and boxes.ids(found) == ids, "one box is as a list of one"


@pytest.mark.parametrize(
    "value", [[0, 0, 1], [0, 0, 2, 1], [0.5, 0, 0.4, 1], [0, 0.5, 1, 0.4], [0, 0, float("nan"), 1], "abcd", [True] * 4]
)
def test_what_is_no_box_is_refused(value: Any) -> None:
    assert not is_box(value)
    with pytest.raises(UserError, match=r"is no box: give \[left, top, right, bottom\] from 0 to 1"):
        BOXES.ids([value])
    if not isinstance(value, str):
        with pytest.raises(UserError, match=r"is no text and no box: give"):
            TEXTS.ids(["a", value])


def test_a_window_crops_boxes_and_back() -> None:
    window = (0.25, 0.0, 0.75, 1.0)
    assert cropped([0.25, 0.1, 0.5, 0.2], window) == pytest.approx([0.0, 0.1, 0.5, 0.2])
    assert uncropped([0.0, 0.1, 0.5, 0.2], window) == pytest.approx([0.25, 0.1, 0.5, 0.2])
    assert cropped([0.0, 0.0, 1.0, 1.0], window) == [0, 0, 1, 1]
    for gone in ([0.0, 0.0, 0.2, 1.0], [0.0, 0.0, 0.25, 1.0], [0.8, 0.0, 0.8, 1.0]):
        assert cropped(gone, window) is None


def test_given_boxes_are_moved_as_people_draw_them() -> None:
    draw = Draw(torch.Generator().manual_seed(0))
    moved = [rough(NAMED, 0.2, draw) for _ in range(200)]
    assert all([one[0], one[2]] == ["abc", "de"] and all(map(is_box, (one[1], *one[3:]))) for one in moved)
    sides = torch.tensor([one[1] for one in moved]) - torch.tensor(NAMED[1])
    most = 0.2 * torch.tensor([0.4, 0.8, 0.4, 0.8])
    assert bool((sides.abs() <= most + 1e-6).all()) and bool((sides.abs().amax(0) > 0.9 * most).all())
    assert all(one[4] == NAMED[4] for one in moved), "a point stays a point"
    assert all(one[3][0] == 0.0 or 0 < one[3][0] <= 0.05 for one in moved), "the picture ends there"


def test_only_boxes_that_are_given_are_moved_and_half_of_them() -> None:
    record = {"named": NAMED, "caption": "abcde", "box": [0.1, 0.2, 0.5, 0.6]}
    draw = Draw(torch.Generator().manual_seed(0))
    for task, field, other in (("layout_to_image", "named", "box"), ("describe", "box", "named")):
        found = [roughly(task, record, draw, 0.1) for _ in range(400)]
        assert 160 < sum(one[field] != record[field] for one in found) < 240
        assert all(one[other] == record[other] for one in found)
        assert roughly(task, record, draw, 0.0) is record
    for task in ("ground_caption", "pointed_text_to_image", "pointed_inpaint", "text_to_image", "interleaved"):
        assert all(roughly(task, record, draw, 0.1) is record for _ in range(9)), "what is learned stays as it is"


def test_a_text_with_boxes_becomes_ids_and_returns() -> None:
    ids = TEXTS.ids(NAMED)
    assert ids[:4] == [0, 1, 2, BOX] and ids.count(BOX) == 3 and len(ids) == 3 + 2 + 3 * 5
    parts = TEXTS.parts(ids, decode)
    assert [part for part in parts if isinstance(part, str)] == ["abc", "de"]
    assert parts[1] == pytest.approx(NAMED[1], abs=1 / 50) and isinstance(parts[4], list)
    assert TEXTS.ids(parts) == ids == TEXTS.ids(ids), "ids are a value too"
    assert TEXTS.ids([]) == [] and TEXTS.parts([], decode) == []


def test_after_the_begin_of_a_box_only_locations_can_stand() -> None:
    ((segment,),) = TEXTS.learned([["ab", [0, 0, 1, 1], "c"]], [DRAW], [True])
    assert segment.target is not None
    assert segment.target.tolist() == [*segment.ids.tolist()[1:], VOCABULARY.eos]
    outside = (VOCABULARY.text_range, VOCABULARY["box"])
    assert segment.runs == ((outside, 3), (LOCATION, 4), (outside, 2))
    ((empty,),) = TEXTS.learned([[]], [DRAW], [False])
    assert empty.runs == ((outside, 1),) and empty.target is not None and empty.target.tolist() == [VOCABULARY.eos]


def grown(model: UniTok, *spans: tuple[str, int]) -> UniTok:
    """A model with further spans."""
    config = model.config
    config.vocabulary = (*config.vocabulary, *spans)
    torch.manual_seed(0)
    return stir(UniTok(config, model.image_tokenizer, model.text_tokenizer).eval())


def test_losses_are_over_what_can_stand_at_a_position(make_model: Callable[..., UniTok]) -> None:
    model = grown(make_model(), ("location", 30), ("box", 1))
    vocabulary = model.vocabulary
    ((segment,),) = model.modalities()["grounded"].learned([["a red", [0.1, 0.2, 0.5, 0.6]]], [DRAW], [False])
    batch = lay_out([[document([segment], 8)]], pad=vocabulary.pad)
    outside, inside = (vocabulary.text_range, vocabulary["box"]), vocabulary["location"]
    assert [ids for ids, _ in batch.spans] == [outside, inside]
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility())[0]
    logits = model.ids.scores(hidden, slice(0, vocabulary.size))
    total, target = 0.0, segment.target
    assert target is not None
    for place, wanted in enumerate(target.tolist()):
        in_box = inside.start <= wanted < inside.stop
        allowed = torch.zeros(vocabulary.size, dtype=torch.bool)
        for span in (inside,) if in_box else outside:
            allowed[span] = True
        row = logits[place].masked_fill(~allowed, -torch.inf)
        total += F.cross_entropy(row[None], target[place : place + 1]).item()
    assert model(batch)[8].item() == pytest.approx(total, rel=1e-4)


def random_walk(writer: Writer, seeds: range, settings: SampleSettings, lift: dict[int, float]) -> list[list[int]]:
    """What a writer makes of random logits, those of some ids lifted."""
    generator = torch.Generator().manual_seed(0)
    running = list(seeds)
    for row in running:
        writer.admit(row, row, settings)
    while running:
        index = torch.tensor(running)
        asked = writer.ask(running, index)
        scores = []
        for ids, here in asked.spans:
            logits = 3 * torch.randn(
                len(running), len(range(asked.ids.shape[1])[here]), ids.stop - ids.start, generator=generator
            )
            for one, more in lift.items():
                if ids.start <= one < ids.stop:
                    logits[..., one - ids.start] += more
            scores.append(logits)
        writer.take(running, index, scores)
        running = [row for row in running if row not in writer.finished(running)]
    return [writer.written(row).tolist() for row in seeds]


@pytest.mark.parametrize("lift", [{}, {BOX: 6.0}, {VOCABULARY.eos: -50.0, BOX: 3.0}])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.3}])
def test_no_box_in_a_text_is_broken(settings: dict[str, Any], lift: dict[int, float]) -> None:
    writer = TEXTS.writer(40, torch.device("cpu"))
    found = random_walk(writer, range(40), SampleSettings(guidance=1.0, **settings), lift)
    met = 0
    for ids in found:
        assert len(ids) <= TEXTS.longest
        place = 0
        while place < len(ids):
            if ids[place] == BOX:
                left, top, right, bottom = ids[place + 1 : place + 5]
                assert all(LOCATION.start <= one < LOCATION.stop for one in (left, top, right, bottom))
                assert left <= right and top <= bottom
                met, place = met + 1, place + 5
            else:
                assert ids[place] < VOCABULARY.eos
                place += 1
        assert all(is_box(part) for part in TEXTS.parts(ids, decode) if not isinstance(part, str))
    assert met > 3
    if lift.get(VOCABULARY.eos):
        assert all(len(ids) == TEXTS.longest for ids in found), "to the last place, and the last box fits"


def test_boxes_alone_end_behind_a_box() -> None:
    for lift in ({}, {VOCABULARY.eos: 4.0}, {VOCABULARY.eos: -50.0}):
        found = random_walk(BOXES.writer(30, torch.device("cpu")), range(30), SampleSettings(guidance=1.0), lift)
        for ids in found:
            assert len(ids) % 4 == 0 and len(ids) <= 4 * MOST_BOXES
            assert all(is_box(box) for box in BOXES.value(torch.tensor(ids)))
        assert len({len(ids) for ids in found}) > 1 or lift.get(VOCABULARY.eos) == -50


def test_rows_that_are_used_again_begin_outside_of_boxes() -> None:
    writer, settings = TEXTS.writer(2, torch.device("cpu")), SampleSettings(guidance=1.0)
    fresh = random_walk(TEXTS.writer(2, torch.device("cpu")), range(2), settings, {})
    writer.admit(0, 5, settings)
    index = torch.tensor([0])
    spans = writer.ask([0], index).spans
    lifted = [torch.full((1, 1, ids.stop - ids.start), 9.0 * (ids.start == BOX)) for ids, _ in spans]
    writer.take([0], index, lifted)
    assert random_walk(writer, range(2), settings, {}) == fresh


def test_steps_of_a_side_share_what_their_neighbours_learn() -> None:
    """One step of training on a box moves the scores of near boxes towards it, more than those of far ones."""
    torch.manual_seed(0)
    port = IdPort(VOCABULARY.size, 32, False, waves_of={"location": (LOCATION, 16)}).double()
    hidden = torch.randn(1, 32, dtype=torch.double)
    before = port.scores(hidden, LOCATION)[0]
    port.losses(hidden, torch.tensor([LOCATION.start + 20]), LOCATION).sum().backward()
    with torch.no_grad():
        for weight in port.waves.parameters():
            weight -= 0.01 * weight.grad if weight.grad is not None else 0
    gain = port.scores(hidden, LOCATION)[0] - before
    assert gain[20] > gain[21] > gain[23] > gain[[0, 10, 35, 49]].max()
    vectors = port(torch.arange(LOCATION.start, LOCATION.stop)) - port.embedding.weight[LOCATION]
    near, far = F.cosine_similarity(vectors[20], vectors[21], 0), F.cosine_similarity(vectors[20], vectors[40], 0)
    assert near > 0.8 > far
    port.zero_grad()
    port(torch.arange(3)).sum().backward()
    assert all(weight.grad is not None for weight in port.waves.parameters()), "also of a batch without boxes"
    others = torch.arange(LOCATION.start)
    assert torch.equal(port(others), port.embedding(others)), "other ids are as they were"


def test_waves_are_of_a_span_and_stand_in_the_folder(make_model: Callable[..., UniTok], tmp_path: Any) -> None:
    plain = grown(make_model(), ("location", 50)).config
    config = replace(plain, ports={**plain.ports, "location": PortConfig("waves", 8)})
    old = make_model()
    model = UniTok(config, old.image_tokenizer, old.text_tokenizer)
    learned = sum(weight.numel() for part in (model.ids, model.ports, model.trunk) for weight in part.parameters())
    features = sum(port.vectors for port in config.ports.values())
    assert config.trunk.parameters(model.vocabulary.size, features)["total"] == learned
    model.save_pretrained(tmp_path / "model")
    again = UniTok.from_pretrained(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint() and torch.equal(
        again.ids.waves["location"].vectors[-1], torch.zeros(8)
    )
    with pytest.raises(UserError, match="the model has waves of 'place', its vocabulary no such span"):
        UniTok(
            replace(plain, ports={**plain.ports, "place": PortConfig("waves", 8)}),
            old.image_tokenizer,
            old.text_tokenizer,
        )


def test_old_models_keep_their_steps_and_learn_no_texts_with_boxes(
    make_model: Callable[..., UniTok], tmp_path: Any
) -> None:
    """A folder with 256 locations opens as it is."""
    grown(make_model(), ("location", 256)).save_pretrained(tmp_path / "model")
    model = UniTok.from_pretrained(tmp_path / "model")
    assert model.modalities().keys() == {"text", "answer", "passage", "image", "box"}
    boxes = model.modalities()["box"]
    assert isinstance(boxes, BoxModality)
    assert boxes.ids([0, 0, 1, 1])[-1] == model.vocabulary.size - 1 == model.vocabulary["location"].start + 255
