"""`unitok train generator --init`: a run starts from a model folder whole, our own or a published one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unitok.cli.main import main
from unitok.importing import import_generator
from unitok.model import UniTok
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.tuning.lora import add_lora, linear_maps, merge_lora

from .tiny import SIDES, Weights, llamagen_weights, tokenizer, var_weights

RUN = ["--run.batch_size", "4", "--run.workers", "0", "--run.precision", "fp32", "--optim.warmup_steps", "1"]
DRAW_ALONE = ["--tasks.image_to_text.share", "0", "--tasks.text_only.share", "0"]


def train(out: Path, *words: str, steps: int = 1, lr: str = "1e-30") -> int:
    argv = ["train", "generator", "--out", str(out), "--run.steps", str(steps), "--optim.lr", lr, "--optim.min_lr", "0"]
    return main([*argv, *RUN, *words])


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(UniTok.from_pretrained(folder).state_dict())


def trains_on(model: Path, data: Path, out: Path, *words: str) -> None:
    """The command trains a model on, all of its trunk and nothing of its image tokenizer."""
    assert train(out, "--init", str(model), "--data", str(data), *words, steps=2, lr="1e-3") == 0
    before, after = state(model), state(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name for name in before if name.startswith("trunk.")} <= changed
    assert not any(name.startswith("image_tokenizer.") for name in changed)


def test_a_published_model_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(var_weights(False), tmp_path / "x.pt")
    import_generator("var", tmp_path / "x.pt", tokenizer(SIDES)).save_pretrained(tmp_path / "start")
    assert (
        main(["sample", "--model", str(tmp_path / "start"), "3", "7", "--n", "4", "--out", str(tmp_path / "drawn")])
        == 0
    )
    words = ["--init", str(tmp_path / "start"), "--data", str(tmp_path / "drawn" / "pictures")]

    capsys.readouterr()
    assert train(tmp_path / "none", *words) == 2
    said = capsys.readouterr().err
    assert (
        "a model whose captions are no texts learns text_to_image alone: set the shares of image_to_text, text_only"
        in said
    )

    assert train(tmp_path / "still", *words, *DRAW_ALONE) == 0
    before, after = state(tmp_path / "start"), state(tmp_path / "still")
    assert before.keys() == after.keys() and all(torch.allclose(before[name], after[name], 0, 1e-20) for name in before)
    model = UniTok.from_pretrained(tmp_path / "still")
    assert model.config.trunk.kind == "var" and model.config.sampling["top_k"] > 0

    assert train(tmp_path / "moved", *words, *DRAW_ALONE, steps=3, lr="1e-3") == 0
    after = state(tmp_path / "moved")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("trunk.blocks.1.") for name in changed)
    assert not any(name.startswith("image_tokenizer.") for name in changed)
    draw_codes(UniTok.from_pretrained(tmp_path / "moved"), [3], SampleSettings(guidance=2.0), [0])


def test_a_task_may_be_new_to_a_model(
    make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task with ids of its own: those that were there keep their vectors."""
    start = make_model()
    start.save_pretrained(tmp_path / "start")
    words = ["--init", str(tmp_path / "start"), "--data", "shapes?task=ground&limit=16", "--tasks.ground.share", "1"]
    assert train(tmp_path / "more", *words) == 0
    model = UniTok.from_pretrained(tmp_path / "more")
    assert model.vocabulary.spans[:-1] == start.vocabulary.spans and "location" in model.vocabulary
    assert "location" in model.ids.waves
    rows = start.vocabulary.size
    assert torch.allclose(model.ids.embedding.weight[:rows], start.ids.embedding.weight, 0, 1e-20)
    assert torch.allclose(model.ids.head.weight[:rows], start.ids.head.weight, 0, 1e-20)
    assert all(
        torch.allclose(*pair, 0, 1e-20) for pair in zip(model.trunk.parameters(), start.trunk.parameters(), strict=True)
    )

    capsys.readouterr()
    assert train(tmp_path / "odd", *words, "--objective", "maskgit", "--text_length", "7") == 2
    said = capsys.readouterr().err
    assert "--objective is that of the model in --init: leave it out" in said
    assert "--text_length is that of the model in --init: leave it out" in said
    assert main(["train", "generator", "--data", "shapes", "--out", str(tmp_path / "bare")]) == 2
    assert "give its folder with --image_tokenizer" in capsys.readouterr().err


def test_a_foreign_vocabulary_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(var_weights(False), tmp_path / "x.pt")
    images, other = tokenizer(SIDES), tmp_path / "other"
    import_generator("var", tmp_path / "x.pt", images).save_pretrained(tmp_path / "start")
    with torch.no_grad():
        images.decoder.conv_out.bias.add_(1)
    images.save_pretrained(other)
    codes, drawn, start = (str(tmp_path / name) for name in ("codes", "drawn", "start"))
    assert main(["sample", "--model", start, "3", "--n", "2", "--out", drawn]) == 0
    words = ["--data", f"{drawn}/pictures", "--image_tokenizer", str(other), "--out", codes]
    assert main(["encode", *words]) == 0
    for words, message in (
        (["--init", start, "--data", codes], "the model in --init has"),
        (
            ["--init", start, "--data", "shapes", "--text_tokenizer", str(other)],
            "--text_tokenizer is that of the model",
        ),
        (
            ["--init", start, "--data", "shapes", "--text_vocabulary", "300"],
            "--text_vocabulary is that of the model in",
        ),
        (
            ["--init", str(other), "--data", "shapes"],
            f"model folder {other} has no image_tokenizer and no text_tokenizer: is it a finished generator?",
        ),
    ):
        capsys.readouterr()
        assert train(tmp_path / "no", *words, *DRAW_ALONE) == 2, words
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ") and message in said
        assert not (tmp_path / "no").exists(), words
        if codes in words:
            assert "holds codes of another image tokenizer" in said and "--image_tokenizer has" not in said
            assert "encode the pictures with the image_tokenizer/ in its folder" in said


@pytest.mark.parametrize(
    ("family", "weights", "scales"),
    [("llamagen", llamagen_weights(), ()), ("var", var_weights(False), SIDES), ("var", var_weights(True), SIDES)],
)
def test_every_linear_map_of_a_trunk_can_have_an_adapter(
    family: str, weights: Weights, scales: tuple[int, ...], tmp_path: Path
) -> None:
    """An adapter hangs on the call of its map. Beside one whose weights are used otherwise it would do nothing."""
    torch.save(weights, tmp_path / "x.pt")
    settings = {"n_head": 4} if family == "llamagen" else {}
    model = import_generator(family, tmp_path / "x.pt", tokenizer(scales), settings)
    codes = torch.arange(model.layout.length).remainder(model.vocabulary.codebook_size)[None]
    generator = torch.Generator().manual_seed(0)
    for name in linear_maps(model.trunk):
        plain = score_codes(model, ["3"], codes)
        add_lora(model.trunk, [name], rank=2, alpha=2.0)
        low = model.trunk.get_submodule(f"{name}.lora")
        with torch.no_grad():
            low.up.copy_(0.1 * torch.randn(low.up.shape, generator=generator))
        beside = score_codes(model, ["3"], codes)
        assert not torch.allclose(beside, plain, atol=1e-4), name
        merge_lora(model.trunk)
        torch.testing.assert_close(score_codes(model, ["3"], codes), beside, atol=1e-4, rtol=1e-4)


def test_a_published_model_gets_adapters(tmp_path: Path) -> None:
    torch.save(var_weights(False), tmp_path / "x.pt")
    start = import_generator("var", tmp_path / "x.pt", tokenizer(SIDES))
    start.save_pretrained(tmp_path / "start")
    assert main(["sample", "--model", str(tmp_path / "start"), "3", "--n", "4", "--out", str(tmp_path / "drawn")]) == 0
    words = ["--init", str(tmp_path / "start"), "--data", str(tmp_path / "drawn" / "pictures"), *DRAW_ALONE]
    assert train(tmp_path / "tuned", *words, "--lora.rank", "2", steps=2, lr="1e-2") == 0
    before, after = state(tmp_path / "start"), state(tmp_path / "tuned")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"trunk.{name}.weight" for name in linear_maps(start.trunk)}
