"""Guidance that ends when so many codes are drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.objectives.base import Asked
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, Turn, job_for
from unitok.sample.pipeline import draw_codes, run, settings_for
from unitok.sampling import SampleSettings
from unitok.tasks import Piece


def job(guided_codes: int, guidance: float = 2.0, follows: bool = False) -> Job:
    settings = SampleSettings(guidance=guidance, guided_codes=guided_codes, steps=6)
    found = job_for("text_to_image", {"caption": "a red circle"}, 7, settings)
    found.then = [Turn([Piece("text", [5, 6], False)], "image")] if follows else []
    return found


def same(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_prompts_that_are_not_compared_any_more_are_not_run(
    make_model: Callable[..., UniTok], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side and alone, and where a picture follows, the codes are those of all prompts run to the end."""
    model = make_model(objective)
    length = model.layout.length
    jobs = [job(0), job(1), job(20), job(20, guidance=0.0), job(20, follows=True), job(length)]
    positions: list[int] = []
    forward = Engine._forward

    def counted(self: Engine, asked: Asked, lanes: list[int], of: list[int]) -> torch.Tensor:
        positions.append(len(lanes) * asked.ids.shape[1])
        return forward(self, asked, lanes, of)

    monkeypatch.setattr(Engine, "_forward", counted)
    found = run(model, jobs)
    few = sum(positions)
    assert same(found[4:5], [run(model, [jobs[4]])[0]])
    monkeypatch.setattr("unitok.sample.engine._Row.running", property(lambda row: row.lanes))
    positions.clear()
    assert same(found, run(model, jobs))
    assert few < 0.9 * sum(positions)
    assert torch.equal(found[0][0], found[5][0]), "all codes are among the first"
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_step_is_guided_that_begins_among_the_first_codes(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)
    writer = model.modalities()["image"].writer(1, model.device)
    rows, index = [0], torch.tensor([0])
    writer.admit(0, 0, SampleSettings(guidance=2.0, guided_codes=20, steps=16))
    before: list[int] = []
    while not writer.finished(rows):
        before.append(writer.before(0))
        assert writer.guided(0) == (writer.settings(0).guidance == 2.0) == (before[-1] < 20)
        asked = writer.ask(rows, index)
        sizes = [(here.stop - here.start, ids.stop - ids.start) for ids, here in asked.spans]
        writer.take(rows, index, [torch.zeros(1, n, size) for n, size in sizes])
        missing = int((writer.progress(0).so_far < 0).sum())
        assert writer.finished(rows) or model.layout.length - missing <= writer.before(0), "whole maps, or all codes"
    assert before == sorted(before) and before[0] == 0 and 20 < before[-1] < model.layout.length


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_guidance_leads_away_from_a_negative_caption(make_model: Callable[..., UniTok], objective: str) -> None:
    model = make_model(objective)

    def drawn(guidance: float, negative: str = "") -> torch.Tensor:
        settings = SampleSettings(guidance=guidance, negative=negative, temperature=0.0, steps=6)
        return draw_codes(model, ["a red circle"], settings, [0])

    plain, away = drawn(3.0), drawn(3.0, "a blue square")
    assert not torch.equal(plain, away)
    assert torch.equal(drawn(3.0, "a red circle"), drawn(1.0)), "it leads nowhere from the caption itself"
    assert torch.equal(drawn(1.0, "a blue square"), drawn(1.0))


def test_a_negative_caption_that_cannot_be_read_is_told(make_model: Callable[..., UniTok]) -> None:
    with pytest.raises(UserError, match=r"^the caption 'a red a red .* tokens, this model takes 48: shorten it$"):
        settings_for(make_model(), {"negative": "a red " * 200})
    with pytest.raises(UserError, match="--negative has 40000 characters: up to 32000 are read"):
        SampleSettings(negative="a" * 40_000)
