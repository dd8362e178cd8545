"""Infinity gives the bits, logits and losses of its authors' arithmetic: plain functional code, written from
descriptions of theirs, on random weights by the published names."""

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

from tokenizers_vq.base import ImageTokenizer, load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from tokenizers_vq.quantizers.bitwise import BitScales, to_bits, to_codes
from unitok import prepare as prepare_module
from unitok.cli.main import main
from unitok.conditions import TextStates
from unitok.config import ObjectiveSettings
from unitok.data.open import open_data
from unitok.importing import import_generator, unused_settings
from unitok.model import UniTok
from unitok.objectives import chosen_objective
from unitok.objectives.base import Draw
from unitok.sample.jobs import job_for
from unitok.sample.pipeline import draw, draw_codes, run, score_codes
from unitok.sampling import SampleSettings
from unitok.sequence import pack
from unitok.tasks import documents
from unitok.train.tuning.start import settled
from unitok.trunk.published import published_family

from .infinity_arithmetic import (
    GREEDY,
    SQUARE,
    TEXT,
    WIDE,
    WIDTH,
    Grids,
    images_of,
    infinity,
    infinity_greedy,
    infinity_weights,
    what_is_seen,
)
from .tiny import random_weights, tokenizer

# --- the same from ours ----------------------------------------------------------------------------------------------


def imported(tmp_path: Path, content: Any, images: ImageTokenizer, **settings: Any) -> UniTok:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return import_generator("infinity", path, images, settings)


def captions_of(lengths: tuple[int, ...] = (1, 7, 19)) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(length, TEXT, generator=random) for length in lengths]


def some_bits(length: int, number: int, count: int = 3) -> Tensor:
    return torch.randint(2, (count, length, number), generator=torch.Generator().manual_seed(3))


def length_of(grids: Grids) -> int:
    return sum(height * width for height, width in grids)


def split(bits: Tensor, grids: Grids) -> list[Tensor]:
    return list(bits.split([height * width for height, width in grids], 1))


CASES = [(SQUARE, 6, 1), (WIDE, 6, 1), (SQUARE, 3, 2)]


@pytest.mark.parametrize(("grids", "channels", "fold"), CASES)
@torch.inference_mode()
def test_logits_and_bits(grids: Grids, channels: int, fold: int, tmp_path: Path) -> None:
    number = channels * fold**2
    w, images = infinity_weights(number), images_of(grids, channels, fold)
    extra = {"block_chunks.0.module.0.sa.zero_k_bias": torch.zeros(WIDTH)}
    model = imported(tmp_path, {"trainer": {"gpt_fsdp": {**w, **extra}}}, images)
    states, bits = captions_of(), some_bits(length_of(grids), number)
    captions = [TextStates.of(one) for one in states]
    seen = what_is_seen(split(bits, grids), grids, fold)
    wanted = infinity(w, states, seen, grids)
    scores = score_codes(model, captions, to_codes(bits))
    assert scores.shape == (3, length_of(grids), number, 2) and wanted.std() > 0.3
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=0)
    wanted = infinity(w, [w["cfg_uncond"][: len(one)] for one in states], seen, grids)
    scores = score_codes(model, [one.left_out() for one in captions], to_codes(bits))
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=0)
    drawn = []
    for scale in (1.0, 2.0, 4.0):
        drawn.append(draw_codes(model, captions, SampleSettings(guidance=scale, **GREEDY), [0, 1, 2]))
        assert torch.equal(to_bits(drawn[-1], number), infinity_greedy(w, states, grids, scale, fold)), scale
    assert len({tuple(codes.flatten().tolist()) for codes in drawn}) == 3, "each scale draws something else"


def some_loss(
    model: UniTok, captions: list[TextStates], codes: Tensor, left_out: bool = False, noise: float = 0.0
) -> Any:
    """The mean loss of a training step, through the batches of training."""
    records = [{"caption": one, "image": some} for one, some in zip(captions, codes, strict=True)]
    draws = [Draw(torch.Generator().manual_seed(row)) for row in range(len(codes))]
    modalities = model.modalities(settings=ObjectiveSettings(code_noise=noise))
    dropout = {"text": 1.0 if left_out else 0.0}
    made = documents(["text_to_image"] * len(codes), records, draws, modalities, dropout, {"text_to_image": 0})
    return model.train()(pack(made, pad=model.vocabulary.pad))[0] / codes.numel()


@pytest.mark.parametrize(
    ("name", "ours", "left_out"),
    [
        ("block_chunks.1.module.0.ca.mat_kv.weight", "trunk.blocks.1.cross.keys_values.weight", False),
        ("text_proj_for_sos.ca.mat_q", "ports.caption.query", False),
        ("word_embed.weight", "ports.image.projection.weight", False),
        ("pos_start", "trunk.begin", False),
        ("cfg_uncond", "ports.caption.left_out", True),
    ],
)
def test_a_training_step_has_the_authors_loss(name: str, ours: str, left_out: bool, tmp_path: Path) -> None:
    w, bits = infinity_weights(), some_bits(length_of(SQUARE), 6)
    model = imported(tmp_path, w, images_of(SQUARE))
    states = captions_of()
    seen = what_is_seen(split(bits, SQUARE), SQUARE)
    w[name].requires_grad_()
    given = [w["cfg_uncond"][: len(one)] for one in states] if left_out else states
    logits = infinity(w, given, seen, SQUARE)
    wanted = F.cross_entropy(logits.flatten(0, 2), bits.flatten(), reduction="none").view(bits.shape).mean(-1)
    weight = torch.tensor([math.sqrt(6 * 6) / math.sqrt(h * v) for h, v in SQUARE for _ in range(h * v)])
    wanted = (wanted * weight / weight.sum()).sum(-1).mean()  # the coarser, the more
    loss = some_loss(model, [TextStates.of(one) for one in states], to_codes(bits), left_out)
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=0)
    loss.backward()
    wanted.backward()
    found, theirs = model.get_parameter(ours).grad, w[name].grad
    assert found is not None and theirs is not None and theirs.abs().max() > 1e-4
    torch.testing.assert_close(found.flatten(), theirs.flatten(), atol=1e-6, rtol=1e-4)
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)


def test_the_maps_behind_wrong_bits_learn_to_correct_them(tmp_path: Path) -> None:
    """Bitwise self-correction: what is seen holds the mistakes, and the targets make up for them."""
    quantizer = images_of(WIDE).quantizer
    assert isinstance(quantizer, BitScales)
    layout = images_of(WIDE).layout
    z = torch.randn(4, 6, *WIDE[-1], generator=torch.Generator().manual_seed(1))
    z = F.interpolate(F.avg_pool2d(z, 2), WIDE[-1], mode="bilinear")  # coarse maps have something to say
    codes = quantizer.nearest(z)
    same, seen = quantizer.rewrite(codes, layout, torch.zeros(4, codes.shape[1], 6, dtype=torch.bool))
    assert torch.equal(same, codes)
    torch.testing.assert_close(seen, quantizer.seen_before(codes, layout))
    flips = torch.rand(4, codes.shape[1], 6, generator=torch.Generator().manual_seed(2)) < 0.2
    flips[:, -layout.lengths[-1] :] = False
    right, seen = quantizer.rewrite(codes, layout, flips)
    wrong = to_codes(to_bits(right, 6) ^ flips.long())
    torch.testing.assert_close(seen, quantizer.seen_before(wrong, layout))
    first = layout.lengths[0]
    assert torch.equal(right[:, :first], codes[:, :first]) and not torch.equal(right, codes)
    uncorrected = to_codes(to_bits(codes, 6) ^ flips.long())
    goal = quantizer.total(codes, layout)
    errors = [(quantizer.total(one, layout) - goal).square().mean() for one in (wrong, uncorrected)]
    assert errors[0] < 0.8 * errors[1]

    w, states = infinity_weights(), captions_of()
    model = imported(tmp_path, w, images_of(SQUARE))
    codes = to_codes(some_bits(length_of(SQUARE), 6))
    captions = [TextStates.of(one) for one in states]
    losses = [some_loss(model, captions, codes, noise=noise) for noise in (0.0, 0.3, 0.3)]
    assert losses[0] != losses[1] and losses[1] == losses[2], "noise comes from the record's own draw"
    kind = type(model.objective)
    assert settled(ObjectiveSettings(), kind, model.config.trunk).code_noise == 0.3
    assert settled(ObjectiveSettings(code_noise=0.0), kind, model.config.trunk).code_noise == 0.0
    said = refused(lambda: settled(ObjectiveSettings(code_noise=2.0), kind, model.config.trunk))
    assert said.endswith("a share of wrong bits for objective infinity: choose a value from 0 to 1")
    said = refused(lambda: chosen_objective("infinity"))
    assert said.startswith("objective is 'infinity': choose one of next_token, masked_token"), "it is imported alone"


@torch.inference_mode()
def test_folders_are_inverse_and_draws_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    model = imported(tmp_path, infinity_weights(chunks=1), images_of(WIDE))
    model.save_pretrained(tmp_path / "model")
    loaded = UniTok.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    captions = [TextStates.of(one) for one in captions_of((3, 40, 1, 512))]
    settings = SampleSettings(guidance=2.0, temperature=[1.0, 0.9, 0.8, 0.7], top_p=0.97)
    together = draw_codes(loaded, captions, settings, [0, 1, 2, 3])
    alone = [draw_codes(model, [one], settings, [seed]) for seed, one in enumerate(captions)]
    assert torch.equal(together, torch.cat(alone))
    few = draw_codes(model, captions, settings, [0, 1, 2, 3], batch_size=3)
    assert torch.equal(together, few), "rows come while others run"
    padded = F.pad(captions[0].states, (0, 0, 2, 5))
    masked = TextStates.of(padded, (torch.arange(10) >= 2) & (torch.arange(10) < 5))
    assert torch.equal(draw_codes(model, [masked], settings, [0]), together[:1])
    coarse = draw_codes(model, captions[:1], replace(settings, scales=2), [0])
    assert torch.equal(coarse, together[:1, :5])
    pictures = draw(model, captions[:2], settings, [0, 1])
    assert pictures.shape == (2, 3, *model.image_tokenizer.image_size) and len(pictures.unique()) > 5


def test_known_codes_stay(tmp_path: Path) -> None:
    model = imported(tmp_path, infinity_weights(), images_of(SQUARE))
    caption, settings = TextStates.of(captions_of()[1]), SampleSettings(guidance=2.0)
    free = draw_codes(model, [caption], settings, [0])[0]
    known = torch.where(torch.arange(len(free)) % 3 == 0, (free + 1) % 64, -1)
    found = run(model, [job_for("text_to_image", {"caption": caption}, 0, settings, known=known)])[0][0]
    assert torch.equal(found[known >= 0], known[known >= 0]) and not torch.equal(found[known < 0], free[known < 0])


def test_a_prepared_model_scores_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prepare_module, "LARGE", 1)
    model = imported(tmp_path, infinity_weights(), images_of(SQUARE))
    captions, codes = [TextStates.of(one) for one in captions_of()], to_codes(some_bits(length_of(SQUARE), 6))
    plain = score_codes(model, captions, codes)
    assert prepare_module.prepare(model, "fp32") == "fp32" and model.ids.pack is not None
    torch.testing.assert_close(score_codes(model, captions, codes), plain, atol=1e-4, rtol=0)


def test_codes_of_56_bits_are_written_and_read(tmp_path: Path) -> None:
    images = images_of(SQUARE, 14, 2)
    images.save_pretrained(tmp_path / "images")
    words = ["--data", "shapes?limit=3&size=24", "--image_tokenizer", str(tmp_path / "images")]
    assert main(["encode", *words, "--out", str(tmp_path / "codes")]) == 0
    codes = [record.codes for record in open_data(str(tmp_path / "codes"), images.image_size)]
    pictures = [record.image for record in open_data("shapes?limit=3&size=24", images.image_size)]
    for found, picture in zip(codes, pictures, strict=True):
        assert found is not None and picture is not None and found.max() > 2**50
        assert torch.equal(found, images.encode(to_float(picture[None]))[0])


def test_released_models_want_the_published_tensors() -> None:
    table = published_family("infinity")
    for file, count, some in (
        ("infinity_2b_reg.pth", 629, {"head.weight": (64, 2048), "text_proj_for_sos.ca.mat_q": (1, 16, 128)}),
        ("infinity_8b_weights", 781, {"head.weight": (112, 3584), "blocks.39.ffn.fc1.weight": (14336, 3584)}),
    ):
        shapes: dict[str, Any] = table.shapes(*table.released()[file])
        assert len(shapes) == count and shapes.items() >= some.items()


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    w, images = infinity_weights(), images_of(SQUARE)
    lacking = {name: one for name, one in w.items() if name != "block_chunks.1.module.0.ca_norm.bias"}
    said = refused(lambda: imported(tmp_path, {**lacking, "more": torch.zeros(1)}, images))
    assert "it lacks blocks.1.ca_norm.bias; it has unexpected more (the nearest released model is infinity_" in said
    said = refused(lambda: imported(tmp_path, w, images_of(SQUARE, 5)))
    assert (
        "draws 12 values of bits, the image tokenizer has 10: give the folder that unitok import infinity_vae" in said
    )
    said = refused(lambda: imported(tmp_path, w, tokenizer((1, 2, 4))))
    assert "Infinity draws codes of bits over several scales, this image tokenizer makes others" in said
    said = refused(lambda: imported(tmp_path, w, images_of(((2, 2), (4, 4)))))
    assert "makes 2x2 + 4x4 codes, Infinity begins with a map of one" in said
    said = refused(lambda: imported(tmp_path, w, images, rope2d_normalized_by_hw=1))
    assert said == "setting rope2d_normalized_by_hw is 1: only 2 is built"
    assert unused_settings("infinity", {"rope2d_normalized_by_hw": 2, "depth": 32, "drop_path_rate": 0.1}) == [
        "depth",
        "drop_path_rate",
    ]
    cut = {**w, "cfg_uncond": torch.cat([w["cfg_uncond"], w["cfg_uncond"]])}
    model = imported(tmp_path, cut, images)
    states = TextStates.of(torch.zeros(513, TEXT))
    said = refused(lambda: score_codes(model, [states], torch.zeros(1, length_of(SQUARE), dtype=torch.int64)))
    assert said == "a caption has 513 states of 256 numbers, this model takes up to 512 of 256"
    said = refused(
        lambda: score_codes(
            model, [TextStates.of(torch.zeros(2, 9))], torch.zeros(1, length_of(SQUARE), dtype=torch.int64)
        )
    )
    assert said == "a caption has 2 states of 9 numbers, this model takes up to 512 of 256"
    said = refused(
        lambda: score_codes(model, [TextStates.of(torch.zeros(2, TEXT))], torch.full((1, length_of(SQUARE)), 64))
    )
    assert said.startswith("code 64 is outside the codebook of 64")
    said = refused(lambda: draw_codes(model, ["a red circle"], SampleSettings(), [0]))
    assert said.endswith("give unitok.conditions.TextStates from Python")


def test_commands_import_the_tokenizer_and_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers_vq.published.load import PUBLISHED, _configure, _sources

    table = PUBLISHED["infinity_vae"]
    small = {
        "vae_type": 6,
        "base_ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "pn": "0.06M",
        "h_div_w_template": 0.8,
    }
    shapes = {
        one.name: one.shape or () for one in _sources(table, _configure(table, table.released[0], small)).values()
    }
    torch.save({"vae": random_weights(shapes)}, tmp_path / "vae.pth")
    torch.save(infinity_weights(), tmp_path / "model.pth")
    images, out = tmp_path / "images", tmp_path / "model"
    argv = ["import", "infinity_vae", str(tmp_path / "vae.pth"), "--out", str(images), "--settings", json.dumps(small)]
    assert main(argv) == 0
    assert "32x40 pixels -> 1x1 + 2x2 + 3x3 + 4x5 + 8x10 + 12x15 + 16x20 codes out of 64" in capsys.readouterr().err
    assert load_tokenizer(images).layout.grid == (16, 20)
    argv = ["import", "infinity", str(tmp_path / "model.pth"), "--image_tokenizer", str(images), "--out", str(out)]
    assert main([*argv, "--settings", '{"depth": 2}']) == 0
    assert "settings that the import does not need: depth\n" in capsys.readouterr().err
    trunk = json.loads((out / "config.json").read_text())["trunk"]
    assert trunk["whole"] == [56, 70], "rows and columns count in those of the largest size"
    assert main(["sample", "--model", str(out), "a dog", "--out", str(tmp_path / "drawn")]) == 2
    assert "or give unitok.conditions.TextStates from Python\n" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
    assert main(["import", "infinity", str(tmp_path / "model.pth"), "--out", str(tmp_path / "none")]) == 2
    assert "infinity draws codes of an image tokenizer: give its folder with" in capsys.readouterr().err
