"""The best of several drawings is the one that the model reads best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unitok.cli.main import main
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.best_of import candidate_seeds, reading_scores
from unitok.sample.inpainting import inpaint, inpainting_job, known_codes
from unitok.sample.pipeline import draw, draw_codes, draw_jobs
from unitok.sampling import SampleSettings
from unitok.sequence import document, lay_out
from unitok.tasks import Piece

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle"]


@torch.inference_mode()
def slow_score(model: UniTok, codes: torch.Tensor, caption: list[int]) -> float:
    """Log-probability of a caption behind a picture: the scores of all ids, one after another."""
    pieces = [Piece("image", codes, False), Piece("text", caption, False)]
    segments = [segment for one in pieces for segment in model.modalities()[one.modality].given([one.value])]
    batch = lay_out([[document(segments)]], pad=model.vocabulary.pad)
    hidden = model.hidden(batch.inputs, batch.places, batch.visibility(), None, batch.features, batch.stands)[0]
    scores = model.ids.scores(hidden[-1 - len(caption) :], model.vocabulary.text_range).double().log_softmax(-1)
    return sum(float(scores[place, one]) for place, one in enumerate([*caption, model.vocabulary.eos]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_scores_are_those_of_the_caption_read_id_by_id(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    codes = draw_codes(model, ["a red circle"] * 3, SampleSettings(guidance=1), [0, 1, 2])
    caption = model.text_ids(CAPTIONS[1])
    found = reading_scores(model, codes, caption)
    assert found.tolist() == pytest.approx([slow_score(model, one, caption) for one in codes], abs=1e-3)


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_the_best_of_four_is_the_one_that_is_read_best(make_model: Callable[..., UniTok], objective: str) -> None:
    model, settings = make_model(objective), SampleSettings(guidance=1.5, steps=4)
    best = draw_codes(model, CAPTIONS, replace(settings, best_of=4), [5, 6], batch_size=3)
    for row, (caption, seed) in enumerate(zip(CAPTIONS, [5, 6], strict=True)):
        drawn = draw_codes(model, [caption] * 4, settings, candidate_seeds(seed, 4))
        scores = [slow_score(model, one, model.text_ids(caption)) for one in drawn]
        assert len(set(scores)) == 4, "the test needs drawings that differ"
        assert torch.equal(best[row], drawn[scores.index(max(scores))])


def test_one_drawing_is_what_it_is_without_a_choice(make_model: Callable[..., UniTok]) -> None:
    model, settings = make_model(), SampleSettings(guidance=1)
    assert candidate_seeds(7, 1) == [7] and candidate_seeds(7, 3)[:2] == candidate_seeds(7, 2)
    assert torch.equal(
        draw(model, CAPTIONS, settings, [7, 8]), draw(model, CAPTIONS, replace(settings, best_of=1), [7, 8])
    )


def test_bad_input(make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model("next_scale")
    model.config = replace(model.config, tasks=("text_to_image",))
    model.save_pretrained(tmp_path / "model")
    words = ["sample", "a red circle", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    for options, message in {
        ("--best_of", "4"): "--best_of 4 takes a model that reads captions, this one learned text_to_image",
        ("--best_of", "0"): "--best-of is 0",
    }.items():
        assert main([*words, *options]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))
    whole = make_model("next_scale")
    whole.save_pretrained(tmp_path / "whole")
    words[3] = str(tmp_path / "whole")
    assert main([*words, "--best_of", "2", "--scales", "2"]) == 2
    assert "leave --best_of or --scales out" in capsys.readouterr().err


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_the_best_part_of_a_picture_goes_best_with_what_is_known(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model, settings = make_model(objective), SampleSettings(guidance=1.5, steps=4)
    given = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 3:21, 5:19] = masks[1, 9:, :13] = True
    best = inpaint(model, given, masks, CAPTIONS, replace(settings, best_of=4), [5, 6], batch_size=3)
    known = known_codes(model, given, masks)
    for row, (caption, seed) in enumerate(zip(CAPTIONS, [5, 6], strict=True)):
        ids = model.text_ids(caption)
        jobs = [inpainting_job(model, known[row], masks[row], ids, one, settings) for one in candidate_seeds(seed, 4)]
        drawn = [one.picture for one in sorted(draw_jobs(model, jobs, settings), key=lambda one: one.place)]
        off = [(one.double() - given[row].double()).abs()[:, ~masks[row]].sum().item() for one in drawn]
        assert len(set(off)) == 4, "the test needs drawings that differ"
        assert torch.equal(best[row], torch.where(masks[row], drawn[off.index(min(off))], given[row]))
