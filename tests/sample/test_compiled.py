"""Compiled passes: which are, and that they compute what the others do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from unitok.cli.main import main
from unitok.model import UniTok
from unitok.prepare import prepare
from unitok.sample.engine import Engine
from unitok.sample.jobs import job_for
from unitok.sample.pipeline import caption_codes, draw_codes
from unitok.sampling import SampleSettings
from unitok.trunk import cache as cache_module
from unitok.trunk import compiled as module

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", ""]
SETTINGS = SampleSettings(guidance=2.0, steps=4)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that leaves everything as it is, and takes a form when it comes first."""
    monkeypatch.setattr(torch, "compile", lambda work, **how: work)
    monkeypatch.setattr(module, "_check", lambda device: None)
    monkeypatch.setattr(module, "OFTEN", 0)
    monkeypatch.setattr(cache_module, "FEWEST", 16)


def forms(model: UniTok) -> set[Any]:
    assert model.trunk.compiled is not None and not model.trunk.compiled.given_up
    return model.trunk.compiled.ready


def compiling(model: UniTok, precision: str = "fp32") -> UniTok:
    prepare(model, precision, compiled=True)  # type: ignore[arg-type]
    return model


def drawn(model: UniTok, count: int, lanes: int, **how: object) -> list[torch.Tensor]:
    """Pictures with three prompts, guided throughout, for a while and not at all, through one engine."""
    kinds = [SETTINGS, SampleSettings(guidance=1.5, guided_codes=20, steps=4), SampleSettings(guidance=1.0, steps=6)]
    engine = Engine(model, lanes=lanes, room=300, **how)  # type: ignore[arg-type]
    for seed in range(count):
        record = {"caption": model.text_ids(CAPTIONS[seed % 3])}
        engine.add(job_for("text_to_image", record, seed, kinds[seed // 2 % 3]))
    found = {}
    while engine.busy:
        found |= {number: written[0] for number, written in engine.step()}
    return [found[number] for number in range(count)]


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("objective", ["next_token", "masked_token", "next_scale"])
def test_rows_that_come_and_go_are_the_same(
    make_model: Callable[..., UniTok], uncompiled: None, objective: str, align: bool
) -> None:
    model = make_model(objective)
    right = drawn(model, 7, 6, align=align)
    for one, other in zip(drawn(compiling(model), 7, 6, align=align), right, strict=True):
        assert torch.equal(one, other)
    assert bool(forms(model)) == (objective != "masked_token"), "its passes are over many positions"


def test_texts_are_the_same(make_model: Callable[..., UniTok], uncompiled: None) -> None:
    model = make_model("next_token")
    codes = draw_codes(model, CAPTIONS, SETTINGS, [0, 1, 2])
    right = caption_codes(model, codes)
    assert caption_codes(compiling(model), codes) == right and forms(model)


def test_a_form_is_compiled_when_it_has_come_often(
    make_model: Callable[..., UniTok], uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever lanes it comes in, whichever engine, and whatever room that has."""
    monkeypatch.setattr(module, "OFTEN", 100)
    monkeypatch.setattr(cache_module, "FEWEST", 128)
    model = compiling(make_model("next_token"))
    draw_codes(model, CAPTIONS[:1], SETTINGS, [0])
    assert not forms(model)
    draw_codes(model, CAPTIONS[:1], SETTINGS, [0])
    assert len(forms(model)) == 1
    assert draw_codes(model, CAPTIONS[1:2], SETTINGS, [0]).shape == (1, 64)
    assert len(forms(model)) == 1
    assert sum(model.trunk.compiled.seen.values()) == 3 * 64  # type: ignore[union-attr]


def test_what_cannot_be_compiled_is_drawn_and_said(
    make_model: Callable[..., UniTok], uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("next_token")
    right = draw_codes(model, CAPTIONS, SETTINGS, range(3))
    asked = 0

    def refuse(work: module.Work, *given: Any) -> torch.Tensor:
        nonlocal asked
        asked += 1
        raise RuntimeError("Python.h is not there\nmore lines")

    monkeypatch.setattr(torch, "compile", lambda work, **how: refuse)
    compiling(model)
    with pytest.warns(UserWarning, match="cannot be compiled, it runs as it is: Python.h is not there$"):
        found = draw_codes(model, CAPTIONS, SETTINGS, range(3))
    assert torch.equal(found, right) and asked == 1
    assert torch.equal(draw_codes(model, CAPTIONS, SETTINGS, range(3)), right) and asked == 1


def test_two_models_do_not_share_what_is_compiled(
    make_model: Callable[..., UniTok], uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are constants of a compiled pass. The operations are noted as for a compiler, and run as they are."""
    monkeypatch.undo()
    noted: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Any:
        noted.append(len(list(graph.parameters())))
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **how: whole(work, **how, backend=backend))
    monkeypatch.setattr(module, "_check", lambda device: None)
    monkeypatch.setattr(module, "OFTEN", 0)
    first, second = make_model("next_token"), make_model("next_token", seed=1)
    right = [torch.stack(drawn(model, 4, 4)) for model in (first, second)]
    assert not torch.equal(*right)
    for model, codes in zip((first, second), right, strict=True):
        assert torch.equal(torch.stack(drawn(compiling(model), 4, 4)), codes)
    assert torch.equal(torch.stack(drawn(first, 4, 4)), right[0])
    assert len(noted) == len(forms(first)) + len(forms(second)) and min(noted) > 8, "each form once, with its weights"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++, which is not here")
def test_compiled_passes_draw_the_same_pictures(
    make_model: Callable[..., UniTok], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By torch's own compiler, in bf16; for a processor without vectors, as looking for them takes a dozen programs."""
    import torch._inductor.cpu_vec_isa

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.cpu_vec_isa, "valid_vec_isa_list", list)
    monkeypatch.setattr(module, "_settings", lambda on_cpu: {"freezing": True, "cpp.simdlen": 1})
    monkeypatch.setattr(module, "OFTEN", 0)
    plain = make_model("next_token", depth=1)
    model = compiling(deepcopy(plain), "bf16")
    assert model.fingerprint() == plain.fingerprint() and model.state_dict().keys() == plain.state_dict().keys()

    def logits(model: UniTok) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        watch = lambda _, one: seen.append(one[:, 0].clone())  # noqa: E731
        draw_codes(model, CAPTIONS[:2], SETTINGS, [0, 1], watch=watch)
        return seen[1]  # of the first pass that sees a code

    prepare(half := deepcopy(plain), "bf16")
    right = logits(plain)
    mistake, usual = ((one - right).abs().mean() for one in (logits(model), logits(half)))
    assert len(forms(model)) == 1 and 0 < mistake < 1.5 * usual
    assert any(tmp_path.rglob("*.so")), "it stays on disk"


def test_without_a_compiler_nothing_is_drawn(
    make_model: Callable[..., UniTok],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch._inductor.config

    make_model("next_token").save_pretrained(tmp_path / "model")
    words = ["sample", "a", "--model", str(tmp_path / "model"), "--n", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    assert main([*words, "--compile"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("no C++ compiler: install g++, name another in the environment (CXX), or leave it out")
    assert not (tmp_path / "out").exists()


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(module.UserError, match="--compile finds no triton for this GPU"):
        module.Compiled(torch.device("cuda"))


def test_the_record_says_so(
    make_model: Callable[..., UniTok], uncompiled: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("next_token").save_pretrained(tmp_path / "model")
    words = ["sample", "a", "--model", str(tmp_path / "model"), "--n", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--compile"]) == 0
    assert json.loads((tmp_path / "out/pictures/metadata.jsonl").read_text())["compiled"] is True
    assert main([*words, "--compile"]) == 0
    assert main(words) == 2
    assert "already holds pictures of another model or other settings" in capsys.readouterr().err
