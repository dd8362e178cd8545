"""Generators of SEED-Voken: Open-MAGVIT2, whose codes are drawn in two sub-tokens, and IBQ.

Compared with plain functional code, written from descriptions of the authors' code, on tiny random weights by the
published names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok import prepare as prepare_module
from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.objectives.sub_tokens import join, split
from unitok.sample.inpainting import inpainting_job
from unitok.sample.pipeline import draw_codes, run, score_codes, settings_for
from unitok.sample.serving.orders import Inspecting
from unitok.sampling import SampleSettings
from unitok.trunk.published import published_family
from unitok.tuning.lora import linear_maps

from .test_generators import GREEDY, LABELS, losses_agree, some_loss
from .test_start import DRAW_ALONE, state, train
from .tiny import CLASSES, CODES, Weights, tokenizer
from .voken_arithmetic import (
    HEADS,
    LENGTH,
    POST,
    PRE,
    ibq,
    ibq_weights,
    lfq_tokenizer,
    magvit_greedy,
    magvit_heads,
    magvit_states,
    magvit_weights,
)


def imported(folder: Path, family: str, weights: Weights, **settings: Any) -> UniTok:
    """Of a file as training with Lightning leaves it: the generator beside its tokenizer."""
    images = lfq_tokenizer() if family == "open_magvit2_ar" else tokenizer()
    held = {f"transformer.{name}": one for name, one in weights.items()}
    held["first_stage_model.encoder.conv_in.weight"] = torch.zeros(1)
    torch.save({"state_dict": held, "epoch": 3}, folder / "x.ckpt")
    return import_generator(family, folder / "x.ckpt", images, {"n_head": HEADS, **settings})


def some_codes(number: int) -> Tensor:
    return torch.randint(number, (3, LENGTH), generator=torch.Generator().manual_seed(3))


# --- sub-tokens ------------------------------------------------------------------------------------------------------


def test_sub_tokens_are_the_digits_of_a_code() -> None:
    codes, sizes = torch.arange(4 * 16 * 3), (4, 16, 3)
    parts = split(codes, sizes)
    assert torch.equal(parts[:, 0] + 4 * parts[:, 1] + 64 * parts[:, 2], codes)
    assert all(bool((parts[:, place] < size).all()) for place, size in enumerate(sizes))
    assert torch.equal(join(parts.unbind(-1), sizes), codes)
    assert torch.equal(join([codes], ()), codes)


@torch.inference_mode()
def test_open_magvit2(tmp_path: Path) -> None:
    w = magvit_weights()
    model = imported(tmp_path, "open_magvit2_ar", w)
    codes = some_codes(PRE * POST)
    pre, post = codes % PRE, codes // PRE
    for conditions, labels in ((LABELS, LABELS), ([""] * 3, [CLASSES] * 3)):
        wanted = magvit_heads(w, magvit_states(w, labels, pre[:, :-1], post[:, :-1]), pre)
        found = score_codes(model, conditions, codes)
        assert found.shape == (3, LENGTH, 2, POST)
        torch.testing.assert_close(found[:, :, 0, :PRE], wanted[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(found[:, :, 1], wanted[1], atol=1e-4, rtol=0)
        assert bool((found[:, :, 0, PRE:] == -math.inf).all())

    drawn = []
    for scales in ([1.0, 1.0], [2.0, 2.0], [1.0, 3.0], [3.0, 1.0]):
        settings = SampleSettings(guidance=scales, guidance_by_sub_token=True, **GREEDY)
        drawn.append(draw_codes(model, LABELS, settings, [0, 1, 2]))
        assert torch.equal(drawn[-1], magvit_greedy(w, scales)), scales
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 4, "each setting draws something else"
    one_scale = SampleSettings(guidance=2.0, **GREEDY)
    assert torch.equal(draw_codes(model, LABELS, one_scale, [0, 1, 2]), drawn[1])


def test_a_training_step_of_open_magvit2_has_the_authors_loss(tmp_path: Path) -> None:
    """The sum of both sub-tokens' losses, and the gradients of a block over the picture and of one inside."""
    w, codes = magvit_weights(), some_codes(PRE * POST)
    model = imported(tmp_path, "open_magvit2_ar", w)
    pre, post = codes % PRE, codes // PRE
    names = {
        "spatial_blocks.0.attention.wqkv.weight": "trunk.blocks.0.attention.qkv.weight",
        "factorized_blocks.1.attention.wo.weight": "trunk.inner.1.attention.out.weight",
        "pre_emb.weight": "ids.tables.0.weight",
    }
    for name in names:
        w[name].requires_grad_()
    heads = magvit_heads(w, magvit_states(w, LABELS, pre[:, :-1], post[:, :-1]), pre)
    wanted = sum(F.cross_entropy(one.flatten(0, 1), two.flatten()) for one, two in zip(heads, (pre, post), strict=True))
    assert isinstance(wanted, Tensor)
    wanted.backward()
    loss = some_loss(model, codes, LABELS)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)
    loss.backward()
    for theirs, ours in names.items():
        gradient, other = model.get_parameter(ours).grad, w[theirs].grad
        assert gradient is not None and other is not None and other.abs().max() > 1e-4
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)
    assert all(one.grad is not None for one in [*model.trunk.parameters(), *model.ids.parameters()])


@torch.inference_mode()
def test_known_codes_stay_and_others_follow_from_them(tmp_path: Path) -> None:
    w = magvit_weights()
    model = imported(tmp_path, "open_magvit2_ar", w)
    settings = SampleSettings(guidance=[2.0, 3.0], guidance_by_sub_token=True, **GREEDY)
    whole = magvit_greedy(w, [2.0, 3.0])
    known = whole[0].clone()
    known[6:] = -1
    [[drawn]] = run(model, [inpainting_job(model, known, torch.ones(2, 2).bool(), [LABELS[0]], 0, settings)])
    assert torch.equal(drawn, whole[0])
    known[2] = (known[2] + 1) % (PRE * POST)
    [[drawn]] = run(model, [inpainting_job(model, known, torch.ones(2, 2).bool(), [LABELS[0]], 0, settings)])
    assert torch.equal(drawn[:6], known[:6]) and not torch.equal(drawn[6:], whole[0][6:])


@torch.inference_mode()
def test_each_sub_token_has_its_temperature_and_its_number(tmp_path: Path) -> None:
    """Drawn at random: the same in any batch and with guesses ahead; first sub-tokens at temperature 0 follow from the
    codes before them."""
    model = imported(tmp_path, "open_magvit2_ar", magvit_weights())
    settings = SampleSettings(guidance=2.0, temperature=[1.1, 1.0], top_k=[3, 12])
    together = draw_codes(model, ["3", 0, "9", 3], settings, [0, 1, 2, 3])
    alone = [draw_codes(model, [label], settings, [n]) for n, label in enumerate((3, 0, 9, 3))]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, draw_codes(model, ["3", 0, "9", 3], replace(settings, ahead=3), [0, 1, 2, 3]))
    rows = replace(settings, row_window=1)
    at_once = draw_codes(model, ["3", 0, "9", 3], rows, [0, 1, 2, 3])
    assert torch.equal(at_once, torch.cat([draw_codes(model, [n], rows, [k]) for k, n in enumerate((3, 0, 9, 3))]))
    assert not torch.equal(at_once, together)
    assert torch.equal(together, draw_codes(model, ["3", 0, "9", 3], replace(settings, row_window=99), [0, 1, 2, 3]))
    hot = draw_codes(model, LABELS, SampleSettings(guidance=1.0, temperature=1000.0), [0, 1, 2])
    assert not torch.equal(hot % PRE, hot // PRE // (POST // PRE)), "one number would draw both alike"
    cold = SampleSettings(guidance=1.0, temperature=[0.0, 1.0])
    codes = draw_codes(model, LABELS, cold, [0, 1, 2])
    scores = score_codes(model, LABELS, codes)
    assert torch.equal(codes % PRE, scores[:, :, 0, :PRE].argmax(-1))
    assert not torch.equal(codes // PRE, scores[:, :, 1].argmax(-1))
    with pytest.raises(UserError, match=r"--temperature is \[1.0\]: give one value, or 2, one for each scale or sub-"):
        settings_for(model, {"temperature": [1.0]})
    with pytest.raises(UserError, match=r"--guidance is \[1.0, 2.0, 3.0\]: give one value, or 2"):
        settings_for(model, {"guidance": [1.0, 2.0, 3.0], "guidance_by_sub_token": True})
    assert settings_for(model).guidance == [1.9, 2.0]


# --- IBQ -------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_ibq(tmp_path: Path) -> None:
    w = ibq_weights()
    model = imported(tmp_path, "ibq_ar", w)
    codes = some_codes(CODES)
    for conditions, labels in ((LABELS, LABELS), ([""] * 3, [CLASSES] * 3)):
        wanted = ibq(w, labels, codes[:, :-1])
        torch.testing.assert_close(score_codes(model, conditions, codes), wanted, atol=1e-4, rtol=0)
    drawn = []
    for scale in (1.0, 2.0, 3.0):
        greedy = torch.zeros(3, 0, dtype=torch.int64)
        for _ in range(LENGTH):
            given, bare = (ibq(w, labels, greedy)[:, -1:] for labels in (LABELS, [CLASSES] * 3))
            greedy = torch.cat([greedy, (bare + (given - bare) * scale).argmax(-1)], 1)
        drawn.append(draw_codes(model, LABELS, SampleSettings(guidance=scale, **GREEDY), [0, 1, 2]))
        assert torch.equal(drawn[-1], greedy), scale
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == 3


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("blocks.0.ada_lin.1.weight", "trunk.blocks.0.condition.weight"),
        ("head_nm.ada_lin.1.bias", "trunk.last.bias"),
    ],
)
def test_a_training_step_of_ibq_has_the_authors_loss(name: str, ours: str, tmp_path: Path) -> None:
    w, codes = ibq_weights(), some_codes(CODES)
    model = imported(tmp_path, "ibq_ar", w)
    losses_agree(model, w, codes, name, model.get_parameter(ours), lambda: ibq(w, LABELS, codes[:, :-1]))


@torch.inference_mode()
def test_a_prepared_model_scores_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The blocks inside a position too in another form of their weights."""
    monkeypatch.setattr(prepare_module, "LARGE", 1)
    model, codes = imported(tmp_path, "open_magvit2_ar", magvit_weights()), some_codes(PRE * POST)
    plain = score_codes(model, LABELS, codes)
    assert prepare_module.prepare(model, "fp32") == "fp32"
    assert isinstance(model.trunk.get_submodule("inner.0.attention.qkv"), prepare_module.Prepared)
    torch.testing.assert_close(score_codes(model, LABELS, codes), plain, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_look_at_codes_says_how_likely_both_sub_tokens_were(tmp_path: Path) -> None:
    model = imported(tmp_path, "open_magvit2_ar", magvit_weights())
    picture = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    [(_, found)] = Inspecting(caption="3", picture=picture).finished(model, 0, [])
    codes = torch.tensor([found["codes"]])
    first, second = score_codes(model, ["3"], codes)[0].log_softmax(-1).unbind(1)
    chance = (first[torch.arange(LENGTH), codes[0] % PRE] + second[torch.arange(LENGTH), codes[0] // PRE]).exp()
    torch.testing.assert_close(torch.tensor(found["probabilities"]), chance, rtol=1e-2, atol=0)
    assert all(0 < bits <= math.log2(PRE * POST) for bits in found["entropies"])


# --- folders, commands, files ----------------------------------------------------------------------------------------


FAMILIES = [("open_magvit2_ar", magvit_weights), ("ibq_ar", ibq_weights)]


@pytest.mark.parametrize(("family", "weights"), FAMILIES)
def test_commands_import_draw_and_train(
    family: str, weights: Callable[[], Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = lfq_tokenizer() if family == "open_magvit2_ar" else tokenizer()
    images.save_pretrained(tmp_path / "images")
    torch.save({"state_dict": {f"transformer.{name}": one for name, one in weights().items()}}, tmp_path / "x.ckpt")
    out, drawn = tmp_path / "model", tmp_path / "drawn"
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        "settings: {model: {init_args: {learning_rate: 3e-4, transformer_config: {params: "
        f"{{n_head: {HEADS}, block_size: {LENGTH}, token_drop: 0.1}}}}}}}}}}\n"
    )
    argv = ["import", family, str(tmp_path / "x.ckpt"), "--image_tokenizer", str(tmp_path / "images")]
    assert main([*argv, "--out", str(out), "--config", str(settings)]) == 0
    said, noted = capsys.readouterr()
    assert said == f"model: {out}\n"
    assert "settings that the import does not need: learning_rate, token_drop\n" in noted
    model = UniTok.from_pretrained(out)
    torch.save(weights(), tmp_path / "x.ckpt")
    again = import_generator(family, tmp_path / "x.ckpt", images, {"n_head": HEADS})
    assert again.config == model.config and again.fingerprint() == model.fingerprint()

    assert main(["sample", "--model", str(out), "3", "7", "--n", "2", "--out", str(drawn)]) == 0
    records = [json.loads(line) for line in (drawn / "pictures" / "metadata.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert {name: records[0]["settings"][name] for name in model.config.sampling} == model.config.sampling

    words = ["--init", str(out), "--data", str(drawn / "pictures"), *DRAW_ALONE]
    assert train(tmp_path / "tuned", *words, "--lora.rank", "2", steps=2, lr="1e-2") == 0
    before, after = state(out), state(tmp_path / "tuned")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"trunk.{name}.weight" for name in linear_maps(model.trunk)}


@pytest.mark.parametrize(
    ("family", "file", "count", "some"),
    [
        (
            "open_magvit2_ar",
            "AR_256_B.ckpt",
            188,
            {
                "post_emb.weight": (4096, 1024),
                "factorized_blocks.1.feed_forward.w2.weight": (1024, 2816),
                "head.0.weight": (64, 1024),
            },
        ),
        ("ibq_ar", "AR_256_B.ckpt", 150, {"blocks.15.ada_lin.1.weight": (6144, 1024), "head.weight": (16384, 1024)}),
    ],
)
def test_released_models_want_the_published_tensors(family: str, file: str, count: int, some: dict[str, Any]) -> None:
    table = published_family(family)
    shapes = table.shapes(*table.released()[file])
    assert len(shapes) == count and shapes.items() >= some.items()


def refused(folder: Path, family: str, weights: Weights, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        imported(folder, family, weights, **settings)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}/")


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    weights = magvit_weights()
    said = refused(tmp_path, "ibq_ar", weights)
    assert said == "x.ckpt is no ibq_ar: it looks like open_magvit2_ar; give that family, or another file"
    lacking = {name: one for name, one in weights.items() if name != "head.1.weight"}
    said = refused(tmp_path, "open_magvit2_ar", {**lacking, "more": torch.zeros(1)})
    assert said.startswith("x.ckpt is no open_magvit2_ar: it lacks head.1.weight; it has unexpected more (")
    said = refused(tmp_path, "open_magvit2_ar", weights, block_size=256)
    assert said == (
        "the model draws 16x16 codes, the image tokenizer makes 4x4: import the tokenizer for the model's picture size"
    )
    fewer = {**weights, "pre_emb.weight": weights["pre_emb.weight"][:2], "head.0.weight": weights["head.0.weight"][:2]}
    said = refused(tmp_path, "open_magvit2_ar", fewer)
    assert said == (
        "x.ckpt draws 32 codes, the image tokenizer has 64: give the folder that unitok import open_magvit2 made"
    )
    torch.save(weights, tmp_path / "y.pt")
    with pytest.raises(UserError, match="no tensor says how many heads this one has: give --settings"):
        import_generator("open_magvit2_ar", tmp_path / "y.pt", lfq_tokenizer())


def test_a_folder_with_other_sub_tokens_is_told(tmp_path: Path) -> None:
    imported(tmp_path, "open_magvit2_ar", magvit_weights()).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["files"]
    for sizes, message in (
        ([4, 8], r"trunk.sub_tokens is \(4, 8\), the model has 64 image codes: give sizes whose product that is$"),
        ([64], r"trunk.sub_tokens is \(64,\): give 2 to 4 sizes from 1 to"),
    ):
        config["trunk"]["sub_tokens"] = sizes
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            UniTok.from_pretrained(tmp_path / "m")
