"""A caption that leads to a picture is written once more with boxes, and where the data say its words again, so does
the model: it chooses where boxes stand, not the words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import stir

from unitok.boxes import GroundedTextModality, is_box, words_of
from unitok.cli.main import main
from unitok.config import ModelConfig, TasksConfig
from unitok.model import UniTok
from unitok.sample.inpainting import inpainting_job
from unitok.sample.jobs import GREEDY, job_for, rooms_of
from unitok.sample.pipeline import before_pictures, run
from unitok.sampling import SampleSettings
from unitok.text import CaptionEncoder
from unitok.train.config import SourceConfig
from unitok.train.data import open_sources, restated
from unitok.vocabulary import Vocabulary

CAPTIONS = ["a cat", "a red circle left of a blue one", "cats", ""]
TASKS = ("pointed_text_to_image", "pointed_inpaint", "ground_caption")


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok]) -> UniTok:
    made = make_model()
    vocabulary = Vocabulary(made.config.vocabulary).grown("location", 100).grown("box", 1)
    config = replace(made.config, vocabulary=vocabulary.spans, tasks=TASKS, text_length=24, restates=True)
    torch.manual_seed(0)
    return stir(UniTok(config, made.image_tokenizer, made.text_tokenizer).eval())


def said(model: UniTok, named: torch.Tensor) -> tuple[list[int], list[object]]:
    """The ids of the words, and the boxes."""
    grounded = model.modalities()["grounded"]
    assert isinstance(grounded, GroundedTextModality)
    texts = model.vocabulary.text_range
    boxes = [one for one in grounded.parts(named.tolist(), model.text_tokenizer.decode) if not isinstance(one, str)]
    return [one for one in named.tolist() if texts.start <= one < texts.stop], boxes


def test_words_are_those_of_the_caption(model: UniTok) -> None:
    pairs = [(caption, seed) for caption in CAPTIONS for seed in range(5)]
    jobs = [
        job_for("pointed_text_to_image", {"caption": model.text_ids(caption)}, seed, SampleSettings(guidance=2.0))
        for caption, seed in pairs
    ]
    written = run(model, jobs, batch_size=6)
    seen = set()
    for (caption, _), job, (named, codes) in zip(pairs, jobs, written, strict=True):
        words, boxes = said(model, named)
        if caption:
            assert words == model.text_ids(caption), "no other, all of them, in order"
        assert all(map(is_box, boxes))
        seen.add((caption, str(boxes)))
        [alone] = run(model, [job])
        assert torch.equal(alone[0], named) and torch.equal(alone[1], codes), "no row depends on the others"
    assert len(seen) > len(CAPTIONS), "boxes are drawn"
    assert len({str(said(model, named)[0]) for named, _ in written[-5:]}) > 1, "nothing is said again of an empty one"


def test_holes_are_filled_behind_the_same_words(model: UniTok) -> None:
    known = torch.full((model.layout.length,), -1)
    caption = model.text_ids("a red circle")
    job = inpainting_job(model, known, torch.ones(32, 32, dtype=torch.bool), caption, 3, SampleSettings())
    assert said(model, run(model, [job])[0][0])[0] == caption


def test_pictures_are_scored_behind_the_same_words(model: UniTok) -> None:
    for caption, segments in zip(CAPTIONS[:3], before_pictures(model, CAPTIONS[:3]), strict=True):
        assert said(model, segments[-1].ids)[0] == model.text_ids(caption)


def test_a_model_of_other_words_writes_its_own(model: UniTok) -> None:
    free = UniTok(replace(model.config, restates=False), model.image_tokenizer, model.text_tokenizer).eval()
    free.load_state_dict(model.state_dict())
    ids = model.text_ids(CAPTIONS[1])
    job = job_for("pointed_text_to_image", {"caption": ids}, 0, SampleSettings(guidance=2.0))
    assert said(free, run(free, [job])[0][0])[0] != ids
    # A picture's own caption is no caption that leads to it.
    picture = torch.zeros(model.layout.length, dtype=torch.int64)
    read = [run(one, [job_for("ground_caption", {"image": picture}, 0, GREEDY)])[0][0] for one in (model, free)]
    assert torch.equal(*read)
    assert rooms_of(model, job) == rooms_of(free, job), "known words are no known codes"


def test_the_configuration_says_it_where_it_is_so(model: UniTok) -> None:
    data = model.config.to_json()
    assert data["restates"] is True and ModelConfig.from_json(json.loads(json.dumps(data)), "here") == model.config
    assert "restates" not in replace(model.config, restates=False).to_json()


# --- found in the data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "tasks", "found"),
    [
        ("shapes?task=groundings", {"pointed_text_to_image": 1.0}, True),
        ("shapes?task=wording", {"pointed_text_to_image": 1.0}, False),
        ("shapes?task=groundings", {"ground_caption": 1.0, "image_to_text": 1.0}, None),
    ],
)
def test_data_say_captions_again_or_do_not(
    model: UniTok, data: str, tasks: dict[str, float], found: bool | None
) -> None:
    source = SourceConfig(data=data, tasks=tasks)
    encode = CaptionEncoder(model.text_tokenizer, 200)
    assert restated(open_sources([source], TasksConfig(), (32, 32)), encode) is found
    both = [source, SourceConfig(data="shapes?task=wording", tasks={"pointed_text_to_image": 1.0})]
    assert restated(open_sources(both, TasksConfig(), (32, 32)), encode) is False, "one that does not is enough"


def test_a_training_finds_it_and_a_further_one_keeps_it(model: UniTok, tmp_path: Path) -> None:
    model.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = ["--trunk.width", "32", "--trunk.depth", "1", "--trunk.heads", "2", "--text_vocabulary", "300"]
    common = ["--run.steps", "1", "--run.batch_size", "4", "--run.eval_every", "0", "--run.sample_every", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    pointed = '[{"data": "shapes?task=groundings&limit=16", "tasks": {"pointed_text_to_image": 1}}]'
    words = ["train", "generator", "--data", pointed, "--image_tokenizer", str(tmp_path / "tokenizer"), *small, *common]
    assert main([*words, "--out", str(first)]) == 0
    made = UniTok.from_pretrained(first)
    assert made.config.restates
    captions = ["a small red circle", "a large blue square left of a small cross"]
    jobs = [job_for("pointed_text_to_image", {"caption": made.text_ids(one)}, 0, SampleSettings()) for one in captions]
    for caption, (named, _) in zip(captions, run(made, jobs), strict=True):
        grounded = made.modalities()["grounded"]
        assert isinstance(grounded, GroundedTextModality)
        assert words_of(grounded.parts(named.tolist(), made.text_tokenizer.decode)) == caption
    plain = '[{"data": "shapes?limit=16", "tasks": {"image_to_text": 1}}]'
    assert main(["train", "generator", "--init", str(first), "--data", plain, *common, "--out", str(second)]) == 0
    assert UniTok.from_pretrained(second).config.restates, "as what it learned before has it"
