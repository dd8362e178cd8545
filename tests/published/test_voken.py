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

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import OpenMagvit2Config
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import LFQ
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

from .test_generators import GREEDY, LABELS, losses_agree, root_mean_square, rope, some_loss, turn
from .test_start import DRAW_ALONE, state, train
from .tiny import CLASSES, CODES, Weights, random_weights, tokenizer

PRE, POST, SIDE, HEADS, WIDTH, INNER = 4, 16, 4, 4, 32, 48
LENGTH = SIDE * SIDE


def lfq_tokenizer() -> ImageTokenizer:
    """64 codes, of which each is 6 bits."""
    torch.manual_seed(0)
    quantizer = LFQ(codebook_size=PRE * POST)
    config = OpenMagvit2Config(image_size=16, channels=32, channel_multipliers=(1, 1, 2), blocks=1, quantizer=quantizer)
    return build_tokenizer(config).eval()


def block_shapes(start: str, depth: int, moved: bool = False) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(depth):
        found |= {
            f"{start}.{layer}.attention.wqkv.weight": (3 * WIDTH, WIDTH),
            f"{start}.{layer}.attention.wo.weight": (WIDTH, WIDTH),
            f"{start}.{layer}.feed_forward.w1.weight": (INNER, WIDTH),
            f"{start}.{layer}.feed_forward.w3.weight": (INNER, WIDTH),
            f"{start}.{layer}.feed_forward.w2.weight": (WIDTH, INNER),
            f"{start}.{layer}.attention_norm.weight": (WIDTH,),
            f"{start}.{layer}.ffn_norm.weight": (WIDTH,),
        }
        if moved:
            found[f"{start}.{layer}.ada_lin.1.weight"] = (6 * WIDTH, WIDTH)
            found[f"{start}.{layer}.ada_lin.1.bias"] = (6 * WIDTH,)
    return found


def magvit_weights() -> Weights:
    return random_weights(
        {
            "pre_emb.weight": (PRE, WIDTH),
            "post_emb.weight": (POST, WIDTH),
            "class_emb.embedding_table.weight": (CLASSES + 1, WIDTH),
            "norm.weight": (WIDTH,),
            "head.0.weight": (PRE, WIDTH),
            "head.1.weight": (POST, WIDTH),
            **block_shapes("spatial_blocks", 2),
            **block_shapes("factorized_blocks", 2),
        }
    )


def ibq_weights() -> Weights:
    return random_weights(
        {
            "tok_emb.weight": (CODES, WIDTH),
            "class_emb.embedding_table.weight": (CLASSES + 1, WIDTH),
            "head_nm.rmsnorm.weight": (WIDTH,),
            "head_nm.ada_lin.1.weight": (2 * WIDTH, WIDTH),
            "head_nm.ada_lin.1.bias": (2 * WIDTH,),
            "head.weight": (CODES, WIDTH),
            **block_shapes("blocks", 2, moved=True),
        }
    )


# --- the authors' arithmetic -----------------------------------------------------------------------------------------


def block(w: Weights, start: str, x: Tensor, table: Tensor, six: list[Tensor] | None = None) -> Tensor:
    """x (B, T, C) through a causal block; `six` (B, 1, C) each: gammas, scales, shifts."""
    batch, length, width = x.shape
    gamma1, gamma2, scale1, scale2, shift1, shift2 = six or [torch.ones(1)] * 2 + [torch.zeros(1)] * 4
    h = root_mean_square(w, f"{start}attention_norm", x) * (1 + scale1) + shift1
    q, k, v = (
        one.reshape(batch, length, HEADS, -1) for one in (h @ w[f"{start}attention.wqkv.weight"].T).split(width, -1)
    )
    q, k = turn(q, table), turn(k, table)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width // HEADS)
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -math.inf).softmax(-1)
    out = torch.einsum("bhqk,bkhd->bqhd", scores, v).reshape(batch, length, width)
    x = x + gamma1 * (out @ w[f"{start}attention.wo.weight"].T)
    h = root_mean_square(w, f"{start}ffn_norm", x) * (1 + scale2) + shift2
    gate, up = h @ w[f"{start}feed_forward.w1.weight"].T, h @ w[f"{start}feed_forward.w3.weight"].T
    return x + gamma2 * ((F.silu(gate) * up) @ w[f"{start}feed_forward.w2.weight"].T)


def magvit_states(w: Weights, labels: list[int], pre: Tensor, post: Tensor) -> Tensor:
    """States (B, n + 1, C) of the class and of n codes given as (B, n) sub-tokens."""
    classes = w["class_emb.embedding_table.weight"][torch.tensor(labels)][:, None]
    x = torch.cat([classes, w["pre_emb.weight"][pre] + w["post_emb.weight"][post]], 1)
    table = rope(HEADS, WIDTH, SIDE, 1)[: x.shape[1]]
    for layer in range(2):
        x = block(w, f"spatial_blocks.{layer}.", x, table)
    return x


def magvit_heads(w: Weights, states: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, n, PRE), and (B, n, POST) behind the first sub-tokens (B, n)."""
    inside = torch.stack([states, w["pre_emb.weight"][pre]], 2).flatten(0, 1)
    table = rope(HEADS, WIDTH, SIDE, 1)[:2]
    for layer in range(2):
        inside = block(w, f"factorized_blocks.{layer}.", inside, table)
    inside = root_mean_square(w, "norm", inside).view(*pre.shape, 2, -1)
    return inside[:, :, 0] @ w["head.0.weight"].T, inside[:, :, 1] @ w["head.1.weight"].T


def magvit_greedy(w: Weights, scales: list[float]) -> Tensor:
    """Codes (3, LENGTH), each sub-token guided by its own scale."""
    nothing = [CLASSES] * 3
    pre = post = torch.zeros(3, 0, dtype=torch.int64)
    for _ in range(LENGTH):
        states = [magvit_states(w, labels, pre, post)[:, -1:] for labels in (LABELS, nothing)]
        guess = torch.zeros(3, 1, dtype=torch.int64)
        first, first_bare = (magvit_heads(w, one, guess)[0] for one in states)
        guess = (first_bare + (first - first_bare) * scales[0]).argmax(-1)
        second, second_bare = (magvit_heads(w, one, guess)[1] for one in states)
        pre = torch.cat([pre, guess], 1)
        post = torch.cat([post, (second_bare + (second - second_bare) * scales[1]).argmax(-1)], 1)
    return pre + PRE * post


def ibq(w: Weights, labels: list[int], codes: Tensor) -> Tensor:
    """Logits (B, n + 1, V) of the class and n codes."""
    classes = w["class_emb.embedding_table.weight"][torch.tensor(labels)][:, None]
    x, act = torch.cat([classes, w["tok_emb.weight"][codes]], 1), F.silu(classes)
    table = rope(HEADS, WIDTH, SIDE, 1)[: x.shape[1]]
    for layer in range(2):
        start = f"blocks.{layer}."
        moving = F.linear(act, w[f"{start}ada_lin.1.weight"], w[f"{start}ada_lin.1.bias"])
        x = block(w, start, x, table, list(moving.chunk(6, -1)))
    scale, shift = F.linear(act, w["head_nm.ada_lin.1.weight"], w["head_nm.ada_lin.1.bias"]).chunk(2, -1)
    return (root_mean_square(w, "head_nm.rmsnorm", x) * (1 + scale) + shift) @ w["head.weight"].T


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
    [[drawn]] = run(model, [inpainting_job(model, known, [LABELS[0]], 0, settings)])
    assert torch.equal(drawn, whole[0])
    known[2] = (known[2] + 1) % (PRE * POST)
    [[drawn]] = run(model, [inpainting_job(model, known, [LABELS[0]], 0, settings)])
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
    assert said.startswith("x.ckpt is no ibq_ar: it lacks blocks.0.") and "the nearest released model is AR_256" in said
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
