"""Passes of a fixed form, captured and replayed: the same values as pass by pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from captures import Captures
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenizers_vq.errors import UserError
from unitok.config import TrunkConfig
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES
from unitok.ports import IdPort, LinearPort, add_features
from unitok.prepare import prepare_trunk
from unitok.sample import engine as engine_module
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, job_for
from unitok.sample.pipeline import caption_codes, draw_codes, run
from unitok.sampling import SampleSettings
from unitok.trunk import cache as cache_module
from unitok.trunk import steps as module
from unitok.trunk.cache import KVCache
from unitok.trunk.native import Transformer
from unitok.trunk.rule import Visibility, attend, once
from unitok.trunk.steps import Given, Steps, capturing

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", ""]
SETTINGS = SampleSettings(guidance=2.0, steps=4)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """Engines capture on the CPU, and see few slots at first."""
    found = Captures()
    monkeypatch.setattr(engine_module, "capturing", lambda device: found)
    monkeypatch.setattr(cache_module, "FEWEST", 16)
    return found


def jobs(model: UniTok, seeds: range, settings: SampleSettings = SETTINGS, **more: object) -> list[Job]:
    found = []
    for seed in seeds:
        record = {"caption": model.text_ids(CAPTIONS[seed % 3])}
        found.append(job_for("text_to_image", record, seed, settings, **more))  # type: ignore[arg-type]
    return found


def drawn(model: UniTok, todo: list[Job], capture: Captures | None, **how: object) -> list[torch.Tensor]:
    """Through one engine of six lanes."""
    engine = Engine(model, lanes=6, room=300, **how)  # type: ignore[arg-type]
    assert engine.steps.capture is capture
    numbers, found = [engine.add(job) for job in todo], {}
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
    return [found[number] for number in numbers]


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_captured_passes_draw_the_same_pictures(
    make_model: Callable[..., UniTok], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches through one engine, so that passes that come once a picture are replayed too."""
    monkeypatch.setattr(module, "REPEATED", 1)
    monkeypatch.setattr(cache_module, "FEWEST", 16)
    model = make_model(objective)
    todo = jobs(model, range(6))  # two batches
    right = drawn(model, todo, None)
    captures = Captures()
    monkeypatch.setattr(engine_module, "capturing", lambda device: captures)
    for one, other in zip(drawn(model, todo, captures), right, strict=True):
        assert torch.equal(one, other)
    assert captures.replayed >= SETTINGS.steps and captures.captured


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_rows_that_come_and_go_are_captured_where_they_stay(
    make_model: Callable[..., UniTok], objective: str, captures: Captures
) -> None:
    """Lanes out of step, prompts of three lengths, one and two lanes a job, guidance that ends."""
    model = make_model(objective)
    kinds = [SETTINGS, SampleSettings(steps=6), SampleSettings(guidance=1.5, guided_codes=20, steps=4)]
    todo = [jobs(model, range(3 * seed, 3 * seed + 3), kinds[seed % 3])[seed % 3] for seed in range(8)]
    found = drawn(model, todo, captures, align=False)
    for job, codes in zip(todo, found, strict=True):
        captures_before = captures.captured
        (alone,) = drawn(model, [job], captures)
        assert torch.equal(codes, alone)
        assert captures.captured >= captures_before
    assert captures.replayed > 0


def test_texts_are_written_by_captured_passes(make_model: Callable[..., UniTok], captures: Captures) -> None:
    model = make_model("next_token")
    codes = draw_codes(model, CAPTIONS, SETTINGS, [0, 1, 2])
    before = captures.replayed
    found = caption_codes(model, codes)
    assert captures.replayed > before
    engine_capturing = engine_module.capturing
    engine_module.capturing = lambda device: None
    try:
        assert caption_codes(model, codes) == found
    finally:
        engine_module.capturing = engine_capturing


def test_logits_of_a_fixed_form_are_those_of_the_exact_one(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("next_token")
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for fixed in (False, True):
        monkeypatch.setattr(engine_module, "capturing", lambda device, fixed=fixed: Captures() if fixed else None)
        draw_codes(model, CAPTIONS, SETTINGS, range(3), watch=lambda _, one, to=seen[fixed]: to.append(one.clone()))
    torch.testing.assert_close(torch.stack(seen[True]), torch.stack(seen[False]), rtol=1e-4, atol=1e-5)


def test_a_pass_is_captured_when_it_has_come_often(make_model: Callable[..., UniTok], captures: Captures) -> None:
    """64 passes see at most 16, 32, 64 and then all slots: a capture for each, and the first three passes of each."""
    model = make_model("next_token")
    engine = Engine(model, lanes=2, room=100)
    engine.add(jobs(model, range(1))[0])
    begun = max(len(model.text_ids(CAPTIONS[0])), 1)
    while engine.busy:
        engine.step()
    widths = {width for _, width, *_ in engine.steps.seen}
    assert widths == {16, 32, 64, 100} - ({16} if begun >= 16 else set())
    assert captures.captured == len(widths) and captures.replayed == 64 - module.REPEATED * len(widths)


def test_only_the_latest_passes_are_remembered(
    make_model: Callable[..., UniTok], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    monkeypatch.setattr(module, "REPEATED", 1)
    model = make_model("masked_token")
    todo = jobs(model, range(6))
    engine = Engine(model, lanes=6, room=300)
    for job in todo:
        engine.add(job)
    found = {}
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
        assert len(engine.steps.seen) <= 2
    assert captures.captured == 8 and not captures.replayed, (
        "each of the four passes is forgotten before it comes again"
    )
    alone = run(model, todo[:1])[0][0]
    assert torch.equal(found[0], alone)


def test_what_cannot_be_captured_is_drawn_and_said(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("next_token")
    right = draw_codes(model, CAPTIONS, SETTINGS, range(3))
    asked = 0

    def refuse(work: module.Work) -> tuple[Callable[[], object], torch.Tensor]:
        nonlocal asked
        asked += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(engine_module, "capturing", lambda device: refuse)
    with pytest.warns(UserWarning, match="kernel by kernel: operation not permitted when stream is capturing$"):
        found = draw_codes(model, CAPTIONS, SETTINGS, range(3))
    assert torch.equal(found, right) and asked == 1


@pytest.mark.parametrize("how", ["ahead", "autocast"])
def test_other_forms_run_as_they_come(make_model: Callable[..., UniTok], captures: Captures, how: str) -> None:
    """Codes that are guessed see one another by groups; autocast keeps the weights that it has converted."""
    model = make_model("next_token")
    settings = SampleSettings(guidance=2.0, ahead=3) if how == "ahead" else SETTINGS
    precision = "bf16" if how == "autocast" else "fp32"
    found = draw_codes(model, CAPTIONS, settings, range(3), precision=precision)  # type: ignore[arg-type]
    assert found.shape == (3, model.layout.length)
    if how == "autocast":
        assert not captures.captured
    else:
        assert torch.equal(found, draw_codes(model, CAPTIONS, SETTINGS, range(3)))


def test_a_job_that_failed_leaves_no_mark_in_its_lanes(
    make_model: Callable[..., UniTok], captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of a fixed form reads slots that are not in use: what is no number there would spread."""
    model = make_model("next_token")
    first, second = jobs(model, range(2))
    (alone,) = run(model, [second])[0]
    failed: dict[int, UserError] = {}
    engine = Engine(model, lanes=2, room=100, failed=failed.__setitem__)
    engine.add(first)
    while engine.busy:
        engine.step()
        if len(engine.running) and engine.progress(0) is not None and engine.progress(0).step == 40:  # type: ignore[union-attr]
            engine.cache.keys[:, :, :, 30:40] = engine.cache.values[:, :, :, 30:40] = float("nan")
    assert list(failed) == [0] and "not finite" in str(failed[0])
    engine.add(second)
    found = {}
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
    assert torch.equal(found[1], alone)


def test_an_engine_is_gone_with_its_last_name(make_model: Callable[..., UniTok], captures: Captures) -> None:
    """Its cache may be most of the memory of a GPU, so nothing in it may hold it in a circle."""
    model = make_model("next_token")
    engine = Engine(model, lanes=2, room=100)
    engine.add(jobs(model, range(1))[0])
    for _ in range(8):
        engine.step()
    assert captures.replayed
    gone = weakref.ref(engine), weakref.ref(engine.cache)
    gc.disable()
    try:
        del engine
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_a_few_widths_serve_all_lengths() -> None:
    class Sizes:
        width, depth, heads, key_heads, head_size = 16, 1, 2, 2, 8

    cache = KVCache(Sizes(), 2, 600, torch.device("cpu"), torch.float32)
    reach = []
    for _ in range(600):
        cache.advance([0, 1], 1)
        reach.append(cache.reach([0, 1]))
        assert cache.lengths[0] <= reach[-1] <= max(128, 2 * cache.lengths[0])
    assert sorted(set(reach)) == [128, 256, 512, 600]


def test_a_cpu_captures_nothing() -> None:
    assert capturing(torch.device("cpu")) is None
    assert Steps(lambda *given: given[0], None).capture is None  # type: ignore[arg-type,call-arg]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_pass_of_a_fixed_form_asks_the_host_for_nothing(dtype: torch.dtype | None) -> None:
    """On tensors that claim to be on a GPU: none of the CPU's beside them, no value read, all slots in whole rows."""
    gpu = torch.device("cuda")
    with FakeTensorMode(), torch.inference_mode():
        with gpu:
            trunk, port = Transformer(TrunkConfig(width=64, depth=2, heads=2)).eval(), IdPort(100, 64, False)
            ports = torch.nn.ModuleDict({"seen": LinearPort(9, 64)})
        if dtype is not None:
            prepare_trunk(trunk, dtype, on_cpu=False)
        cache = trunk.cache(4, 100)
        assert cache.capacity == 112 and cache.keys.dtype == (dtype or torch.float32)

        def hidden(
            given: torch.Tensor, places: Any, seen: Visibility, cache: KVCache, features: Any, *more: Any
        ) -> Any:
            assert seen.mask.shape in ((len(given), 1, 1, 112), (len(given), 1, given.shape[1], 112))
            return trunk(add_features(port(given), ports, features), places, seen, cache, *more)

        steps = Steps(hidden, cache, lambda work: (lambda: None, work()))
        for lanes, n in (([0, 1, 2, 3], 1), ([0, 3], 3), ([0, 1, 3], 2)):
            for turn in range(2 * module.REPEATED + 2):
                shape = len(lanes), n
                ids, where = torch.zeros(shape, dtype=torch.int64, device=gpu), torch.zeros(*shape, 3, device=gpu)
                values = {"seen": torch.zeros(len(lanes) * n, 9, device=gpu)}
                found = steps(lanes, Given(ids, where, where, values, numbers=ids if turn % 2 else None))
                assert found.shape == (*shape, 64) and found.is_cuda and found.dtype == torch.float32
        assert [one.captured is not None for one in steps.seen.values()] == [True] * 6


def test_a_mask_made_once_hides_the_same() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 1, 7) < 0.6
    mask[..., 0] = True
    seen = Visibility("sdpa", mask=mask)
    right = attend(q, k, v, seen)
    bias = once(seen, q.dtype)
    assert once(seen, q.dtype) is bias and bias.shape == mask.shape and bias.dtype == q.dtype
    torch.testing.assert_close(attend(q, k, v, Visibility("sdpa", mask=bias)), right)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_trunk_prepared_for_a_gpu_computes_the_same(make_model: Callable[..., UniTok], objective: str) -> None:
    """What stands between its layers is in bf16, and so is the cache; what is drawn is near to float32."""
    plain = make_model(objective)
    half, single = deepcopy(plain), deepcopy(plain)
    prepare_trunk(half.trunk, torch.bfloat16, on_cpu=False)
    prepare_trunk(single.trunk, torch.float32, on_cpu=False)

    def logits(model: UniTok, precision: str = "fp32") -> torch.Tensor:
        seen: list[torch.Tensor] = []
        draw_codes(
            model,
            CAPTIONS,
            SETTINGS,
            range(3),
            precision=precision,  # type: ignore[arg-type]
            watch=lambda _, one: seen.append(one.flatten(0, 1).clone()),
        )
        return seen[0]

    assert half.trunk.cache(1, 4).keys.dtype == torch.bfloat16
    assert single.trunk.cache(1, 4).keys.dtype == torch.float32
    right = logits(plain)
    torch.testing.assert_close(logits(single), right, rtol=1e-4, atol=1e-5)
    mistake, usual = ((one - right).abs().mean() for one in (logits(half), logits(plain, "bf16")))
    assert 0 < mistake < 1.5 * usual
