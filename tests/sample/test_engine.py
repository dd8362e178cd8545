"""What a server needs of the engine: jobs that are taken out, that are looked at, and that fail alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, job_for
from unitok.sample.pipeline import run
from unitok.sampling import SampleSettings

SETTINGS = SampleSettings(guidance=2.0, steps=4)


def job(model: UniTok, seed: int, caption: str = "a red circle", settings: SampleSettings = SETTINGS) -> Job:
    return job_for("text_to_image", {"caption": model.text_ids(caption)}, seed, settings)


def drained(engine: Engine) -> dict[int, torch.Tensor]:
    found = {}
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
    return found


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_a_job_that_is_taken_out_frees_its_lanes_and_changes_no_other(
    make_model: Callable[..., UniTok], objective: str
) -> None:
    model = make_model(objective)
    jobs = [job(model, seed, "a red circle"[: 4 + seed]) for seed in range(4)]
    alone = [codes[0] for codes in run(model, jobs)]
    engine = Engine(model, lanes=4, room=300, align=False)
    numbers = [engine.add(one) for one in jobs]
    engine.step()
    engine.step()
    assert len(engine.running) == 2 and len(engine.waiting) == 2 and not engine.free
    engine.cancel(numbers[0])  # runs
    engine.cancel(numbers[2])  # waits
    engine.cancel(99)  # is not here
    assert len(engine.free) == 2 and engine.progress(numbers[0]) is None
    engine.step()
    assert len(engine.running) == 2 and not engine.waiting, "its lanes are taken at the next step"
    found = drained(engine)
    assert sorted(found) == [numbers[1], numbers[3]] and len(engine.free) == 4
    for number in found:
        assert torch.equal(found[number], alone[number])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("given", [False, True])
def test_a_job_says_how_far_it_is(make_model: Callable[..., UniTok], objective: str, given: bool) -> None:
    model = make_model(objective)
    known = None
    if given:
        known = torch.full((model.layout.length,), -1)
        known[-20:] = torch.arange(20)
    engine = Engine(model, lanes=2, room=300)
    asked = job(model, 3)
    asked.known = known
    number = engine.add(asked)
    assert engine.progress(number) is None, "it waits"
    seen: list[tuple[int, int, torch.Tensor]] = []
    found = engine.step()
    while not found:
        progress = engine.progress(number)
        assert progress is not None
        seen.append(tuple(progress))
        found = engine.step()
    codes = found[0][1][0]
    steps = [step for step, _, _ in seen]
    assert steps == list(range(steps[0], steps[0] + len(seen))) and {total for _, total, _ in seen} == {steps[-1] + 1}
    counts = []
    for _, _, so_far in seen:
        there = so_far >= 0
        counts.append(int(there.sum()))
        if objective != "maskgit":  # which hides some again
            assert torch.equal(so_far[there], codes[there])
    assert counts == sorted(counts) and counts[-1] > counts[0] and counts[0] < len(codes)


def test_a_job_that_fails_leaves_the_others(make_model: Callable[..., UniTok]) -> None:
    model = make_model("masked_token")
    (alone,) = run(model, [job(model, 1, "a blue square")])[0]
    failed: dict[int, UserError] = {}
    engine = Engine(model, lanes=6, room=300, failed=failed.__setitem__)
    scores = model.ids.scores

    def broken(*given: Any) -> torch.Tensor:
        found = scores(*given)
        if len(found) == 6:
            found[2:4] = float("nan")  # the lanes of the second row
        return found

    model.ids.scores = broken  # type: ignore[method-assign]
    for caption in ("zebra", "a red circle", "a blue square"):
        engine.add(job(model, 1, caption))
    found = drained(engine)
    assert sorted(found) == [0, 2] and torch.equal(found[2], alone)
    assert list(failed) == [1] and "logits are not finite" in str(failed[1])
    assert len(engine.free) == 6
    with pytest.raises(UserError, match="logits are not finite"):
        engine.failed = None
        for caption in ("zebra", "a red circle", "a blue square"):
            engine.add(job(model, 1, caption))
        drained(engine)
