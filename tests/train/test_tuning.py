"""Training on from a model that has learned: parts of it by name, and low-rank adapters beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tokenizers_vq.base import ImageTokenizer, build_tokenizer, load_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.parts import train_only, trainable_names
from unitok.cli.main import main
from unitok.config import TrunkConfig
from unitok.model import UniTok
from unitok.sample.pipeline import score_codes
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.trunk.native import Transformer
from unitok.tuning.adapter import open_adapter
from unitok.tuning.lora import add_lora, linear_maps, merge_lora

RUN = ["--run.batch_size", "4", "--run.workers", "0", "--run.device", "cpu", "--run.precision", "fp32", "--data"]
RUN += ["shapes", "--optim.warmup_steps", "1", "--optim.lr", "0.01", "--run.log_every", "1", "--run.save_every", "2"]

CAPTIONS = ["--tasks.text_to_image.share", "0", "--tasks.text_only.share", "0"]  # grids of drawings take time


def train(kind: str, out: Path, *words: str, steps: int = 2) -> int:
    tasks = CAPTIONS if kind == "generator" else []
    return main(["train", kind, "--out", str(out), "--run.steps", str(steps), *RUN, *tasks, *words])


def told(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The error of a command that must fail, without `error: `."""
    text = capsys.readouterr().err
    assert code == 2 and text.count("error: ") == 1, text
    return text.partition("error: ")[2].rstrip("\n")


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def cut_back(out: Path, again: Path) -> None:
    """Copies a run as it was at its checkpoint before the last one."""
    shutil.copytree(out, again)
    for checkpoint in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS["debug"]())
    tokenizer.train()(torch.rand(4, 3, 32, 32) * 2 - 1)  # the codebook has started
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model_folder(make_model: Callable[..., UniTok], tmp_path: Path) -> Path:
    make_model(dropout=0.1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_tokenizers_decoder_learns_and_its_codes_stay(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--init", str(tokenizer_folder), "--trainable", "decoder.*,post_quant_conv.*"]
    assert train("tokenizer", tmp_path / "out", *words, steps=4) == 0
    before, after = load_tokenizer(tokenizer_folder), load_tokenizer(tmp_path / "out")
    moved = changed(before, after)
    assert moved and all(name.startswith(("decoder.", "post_quant_conv.")) for name in moved)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(before.encode(images), after.encode(images))

    parts = ("decoder.", "post_quant_conv.")
    count = sum(weight.numel() for name, weight in before.named_parameters() if name.startswith(parts))
    total = sum(weight.numel() for weight in before.parameters())
    assert f"{count:,} of {total:,} parameters are trained" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/run.json").read_text())["parameters"] == count
    newest = tmp_path / "out/checkpoints/step-00000004"
    for file in ("model", "average", "optimizer"):  # what is frozen has no gradient, no moments and no average
        assert all(name.startswith(parts) for name in load_file(newest / f"{file}.safetensors"))

    cut_back(tmp_path / "out", tmp_path / "again")
    assert train("tokenizer", tmp_path / "again", *words, "--resume", steps=4) == 0
    assert load_tokenizer(tmp_path / "again").fingerprint() == after.fingerprint()
    capsys.readouterr()
    other = [*words[:3], "decoder.*", "--resume"]
    assert "trainable is ['decoder.*'], but the run" in told(capsys, train("tokenizer", tmp_path / "again", *other))


def test_a_tokenizer_is_trained_on_whole(tokenizer_folder: Path, tmp_path: Path) -> None:
    assert train("tokenizer", tmp_path / "out", "--init", str(tokenizer_folder)) == 0
    moved = changed(load_tokenizer(tokenizer_folder), load_tokenizer(tmp_path / "out"))
    assert {"encoder.conv_in.weight", "quantizer.library._codebook.embed", "decoder.conv_out.weight"} <= moved


def test_a_generators_parts_learn(model_folder: Path, tmp_path: Path) -> None:
    """Dots are any text: all of one block's mlp, and norms anywhere. A YAML file takes a list."""
    config = tmp_path / "tune.yaml"
    config.write_text("trainable: ['trunk.blocks.1.mlp.*', '*norm.weight']\n", encoding="utf-8")
    words = ["--init", str(model_folder), "--config", str(config)]
    assert train("generator", tmp_path / "out", *words, steps=4) == 0
    moved = changed(UniTok.from_pretrained(model_folder), UniTok.from_pretrained(tmp_path / "out"))
    assert {"trunk.blocks.1.mlp.down.weight", "trunk.blocks.0.attention_norm.weight", "trunk.norm.weight"} <= moved
    assert all(".mlp." in name or name.endswith("norm.weight") for name in moved)
    cut_back(tmp_path / "out", tmp_path / "again")
    assert train("generator", tmp_path / "again", *words, "--resume", steps=4) == 0
    assert not changed(UniTok.from_pretrained(tmp_path / "out"), UniTok.from_pretrained(tmp_path / "again"))


def test_what_is_frozen_stands_still(tokenizer_folder: Path) -> None:
    """No gradient, no average, no dropout, no codebook that follows; what was frozen before stays so."""
    tokenizer: ImageTokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.decoder.conv_in.requires_grad_(False)
    train_only(tokenizer, ["decoder.*"])
    tokenizer.train()
    assert tokenizer.decoder.training and not tokenizer.encoder.training and not tokenizer.quantizer.training
    names = set(trainable_names(tokenizer))
    assert names == {name for name in tokenizer.state_dict() if name.startswith("decoder.")} - {
        "decoder.conv_in.weight",
        "decoder.conv_in.bias",
    }
    assert AveragedWeights(tokenizer, 0.9).tensors.keys() == names
    train_only(load_tokenizer(tokenizer_folder), ["decoder.*", "quantizer.*"])


def test_a_codebook_inside_a_quantizer_stands_still() -> None:
    import dataclasses

    torch.manual_seed(0)
    tokenizer = build_tokenizer(dataclasses.replace(TOKENIZER_PRESETS["debug"](), scales=(1, 2, 4, 8)))
    train_only(tokenizer, ["quantizer.convs.*"])
    before = tokenizer.quantizer.book.codebook.clone()
    tokenizer.train()(torch.rand(2, 3, 32, 32))
    assert tokenizer.quantizer.training and torch.equal(before, tokenizer.quantizer.book.codebook)


def test_muon_may_have_all_that_is_trained() -> None:
    trunk = Transformer(TrunkConfig(width=32, depth=2, heads=2))
    train_only(trunk, ["blocks.1.mlp.*"])
    (optimizer,) = build_optimizers(trunk, OptimConfig(muon=True))
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_a_tied_weight_is_found_by_each_of_its_names() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(4, 4), "head": nn.Linear(4, 4, bias=False), "other": nn.Linear(4, 4)})
    model["head"].weight = model["table"].weight
    train_only(model, ["head.*"])
    assert model["table"].weight.requires_grad and not model["other"].weight.requires_grad
    assert trainable_names(model) == ["table.weight", "head.weight"]


def test_patterns_that_say_nothing(
    tokenizer_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tokenizer(*words: str) -> str:
        return told(capsys, train("tokenizer", tmp_path / "no", "--init", str(tokenizer_folder), *words))

    assert tokenizer("--trainable", "decodr.*") == (
        "--trainable 'decodr.*' matches nothing that can be trained: did you mean 'decoder.*', 'encoder.*', "
        "'decoder.up.*'?"
    )
    assert "there are 'encoder.*', 'quantizer.*', 'quant_conv.*'" in tokenizer("--trainable", "xyz")
    assert "matches no weight that is trained by its gradient" in tokenizer("--trainable", "quantizer.*")
    assert tokenizer("--trainable", ",").startswith("--trainable names nothing")
    assert "adversarial.adaptive balances" in tokenizer(
        "--trainable", "encoder.*", "--adversarial.weight", "0.5", "--adversarial.start", "0"
    )
    assert "--tokenizer and --preset are those" in tokenizer("--preset", "debug")
    assert "give its folder with --init" in told(
        capsys, train("tokenizer", tmp_path / "no", "--trainable", "decoder.*")
    )
    words = ["--init", str(model_folder), "--trainable", "image_tokenizer.*"]
    assert "matches nothing that can be trained" in told(capsys, train("generator", tmp_path / "no", *words))
    words[-1] = "trunk.*"
    task = ["--tasks.ground.share", "1", "--data", "shapes?task=ground&limit=16"]
    assert "name 'ids.*' in --trainable too" in told(capsys, train("generator", tmp_path / "no", *words, *task))
    assert not (tmp_path / "no" / "run.json").exists()


# --- adapters ---------------------------------------------------------------------------------------------------------

LORA = ["--lora.rank", "4", "--lora.alpha", "8"]


def scores(model: UniTok) -> torch.Tensor:
    codes = torch.arange(64).remainder(model.vocabulary.codebook_size)[None]
    return score_codes(model, ["a small red circle"], codes)


def test_an_adapter_is_learned_opened_and_merged(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--init", str(model_folder), *LORA, "--trainable", "ids.*"]
    assert train("generator", tmp_path / "out", *words, steps=4) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "adapter.safetensors"}
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["base"] == "../model"
    names = set(load_file(tmp_path / "out" / "adapter.safetensors"))
    assert {name for name in names if "lora" not in name} == {"ids.embedding.weight", "ids.head.weight"}
    assert len(names) == 2 + 2 * 8  # four linear maps in each of two blocks
    assert set(load_file(tmp_path / "out/checkpoints/step-00000004/model.safetensors")) == names

    base, tuned = UniTok.from_pretrained(model_folder), UniTok.from_pretrained(tmp_path / "out")
    moved = changed(base, tuned)
    assert {name.removeprefix("trunk.").removesuffix(".weight") for name in moved if "trunk" in name} == {
        *linear_maps(base.trunk)
    }
    cut_back(tmp_path / "out", tmp_path / "again")
    assert train("generator", tmp_path / "again", *words, "--resume", steps=4) == 0
    assert (tmp_path / "again/adapter.safetensors").read_bytes() == (tmp_path / "out/adapter.safetensors").read_bytes()
    capsys.readouterr()
    assert train("generator", tmp_path / "again", *words, "--resume", steps=4) == 0
    assert "nothing to do" in capsys.readouterr().err

    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0
    assert UniTok.from_pretrained(tmp_path / "merged").fingerprint() == tuned.fingerprint()
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0, "killed after its work"
    shutil.move(tmp_path / "out", tmp_path / "inner" / "out")
    assert "which is not there: bring it back, or join" in told(
        capsys, main(["sample", "a circle", "--model", str(tmp_path / "inner/out"), "--out", str(tmp_path / "drawn")])
    )
    assert open_adapter(tmp_path / "inner/out", model_folder).fingerprint() == tuned.fingerprint()
    # An adapter may be trained on: its base is then an adapter itself.
    assert train("generator", tmp_path / "further", "--init", str(tmp_path / "again"), *LORA, steps=1) == 0
    assert changed(tuned, UniTok.from_pretrained(tmp_path / "further"))
    assert main(["sample", "a circle", "--model", str(tmp_path / "again"), "--out", str(tmp_path / "drawn")]) == 0


def test_a_merged_model_computes_what_the_adapters_do(make_model: Callable[..., UniTok]) -> None:
    model, plain = make_model(), make_model()
    names = linear_maps(model.trunk)
    add_lora(model.trunk, names, rank=4, alpha=8.0)
    assert torch.equal(scores(model), scores(plain)), "a fresh adapter adds nothing"
    generator = torch.Generator().manual_seed(0)
    for name in names:
        low = model.trunk.get_submodule(f"{name}.lora")
        with torch.no_grad():
            low.up.copy_(0.2 * torch.randn(low.up.shape, generator=generator))
            weight = plain.trunk.get_submodule(name).weight
            weight += 8.0 / 4 * low.up @ low.down  # the paper's formula
    with_adapters = scores(model)
    assert not torch.allclose(with_adapters, scores(make_model()), atol=1e-2)
    torch.testing.assert_close(with_adapters, scores(plain), atol=1e-5, rtol=1e-5)
    merge_lora(model.trunk)
    assert not changed(model, plain) and torch.equal(scores(model), scores(plain))


def test_adapters_that_cannot_be(
    model_folder: Path, make_model: Callable[..., UniTok], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told_by(*words: str, init: bool = True) -> str:
        start = ["--init", str(model_folder)] if init else ["--image_tokenizer", str(model_folder / "image_tokenizer")]
        return told(capsys, train("generator", tmp_path / "no", *start, *words))

    assert told_by("--lora.rank", "0") == "lora.rank is 0: choose 1 or more"
    assert told_by("--lora.rank", "64").startswith("lora.rank is 64, but trunk.blocks.0.attention.qkv has only 32")
    assert "did you mean 'trunk.blocks." in told_by(*LORA, "--lora.targets", "trunk.blocks.*.atention.qkv")
    assert "lora.rank tunes a model that has learned" in told_by(*LORA, init=False)

    assert train("generator", tmp_path / "out", "--init", str(model_folder), *LORA, steps=1) == 0
    drawn = ["sample", "a circle", "--model", str(tmp_path / "out"), "--out", str(tmp_path / "drawn")]
    make_model(seed=1).save_pretrained(model_folder)
    assert "was learned on another model than" in told(capsys, main(drawn))
    make_model(depth=1).save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "out/config.json").read_text())
    other = UniTok.from_pretrained(tmp_path / "other")
    del config["files"]
    config |= {"base": "../other", "fingerprint": other.fingerprint()}
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "is of another trunk than" in told(capsys, main(drawn))
    config["base"] = "../out"
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "stands on more than 8 others" in told(capsys, main(drawn))
    config |= {"base": "../other", "model": other.config.to_json(), "trained": ["trunk.norm.weight"]}
    config["targets"] = ["blocks.0.mlp.down"]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "adapter.safetensors lacks trunk.norm.weight" in told(capsys, main(drawn))
    save_file({"trunk.norm.weight": torch.ones(32)}, tmp_path / "out/adapter.safetensors")
    assert "lacks trunk.blocks.0.mlp.down.lora.down" in told(capsys, main(drawn))
    assert "holds no adapter" in told(capsys, main(["merge", str(tmp_path / "other"), "--out", str(tmp_path / "no")]))


# --- stages -----------------------------------------------------------------------------------------------------------

STAGES = """
image_tokenizer: {tokenizer}
objective: next_token
text_vocabulary: 300
trunk: {{width: 32, depth: 2, heads: 2}}
stages:
  - run: {{steps: 3}}
  - trainable: [trunk.*]
    optim: {{lr: 1e-3}}
    run: {{steps: 4}}
    data:
      - data: shapes?seed=1
        tasks: {{image_to_text: 1}}
  - lora: {{rank: 2}}
    run: {{steps: 2}}
"""


def staged(out: Path, recipe: Path, *words: str) -> int:
    return train("generator", out, "--config", str(recipe), *words)


@pytest.fixture
def recipe(tokenizer_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stages.yaml"
    path.write_text(STAGES.format(tokenizer=tokenizer_folder), encoding="utf-8")
    return path


def test_stages_follow_one_another_and_are_resumed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert staged(whole, recipe) == 0
    said = capsys.readouterr().err
    assert "stage 1 of 3: " in said and "stage 2 of 3 ends after 4 steps" in said
    first, second, third = (UniTok.from_pretrained(whole / f"stage{number}") for number in (1, 2, 3))
    assert {name.split(".")[0] for name in changed(first, second)} == {"trunk"}
    assert (whole / "stage3/adapter.safetensors").exists() and changed(second, third)
    settings = json.loads((whole / "stage2/run.json").read_text())["settings"]
    assert settings["optim"]["lr"] == 1e-3 and settings["optim"]["warmup_steps"] == 1, "the rest is the recipe's"
    assert settings["data"][0]["data"] == "shapes?seed=1" and settings["run"]["batch_size"] == 4

    # Killed inside the first stage, between two stages, and inside the second.
    def same() -> bool:
        pairs = [(whole / f"stage{number}", killed / f"stage{number}") for number in (1, 2, 3)]
        return all(UniTok.from_pretrained(a).fingerprint() == UniTok.from_pretrained(b).fingerprint() for a, b in pairs)

    cut_back(whole / "stage1", killed / "stage1")
    assert staged(killed, recipe, "--resume") == 0 and same()
    shutil.rmtree(killed / "stage3")
    shutil.rmtree(killed / "stage2")
    cut_back(whole / "stage2", killed / "stage2")
    capsys.readouterr()
    assert staged(killed, recipe, "--resume") == 0 and same()
    said = capsys.readouterr().err
    assert "stage1 is finished after 3 steps: nothing to do" in said and "going on from" in said
    assert "already holds stages: add --resume" in told(capsys, staged(killed, recipe))


def test_stages_that_cannot_be(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that can be known is said before the first stage begins."""

    def told_of(stages: str, *words: str) -> str:
        text = recipe.read_text(encoding="utf-8")
        path = tmp_path / "other.yaml"
        path.write_text(text[: text.index("stages:")] + stages, encoding="utf-8")
        said = told(capsys, staged(tmp_path / "no", path, *words))
        assert not (tmp_path / "no/stage1").exists()
        return said

    assert told_of("stages: [{}, {lr: 3}]").startswith("stage 2 has an unknown key 'lr': a stage may have data,")
    assert "stage 2: optim has an unknown key 'lrr': known are" in told_of("stages: [{}, {optim: {lrr: 3}}]")
    assert told_of("stages: [{run: {steps: x}}]") == "stage 1: run: steps is 'x': expected a whole number"
    assert told_of("stages: [{run: {steps: 0}}]") == "stage 1: run: run.steps is 0: choose 1 or more"
    assert "stage 2: --trainable 'trnk.*' matches nothing" in told_of("stages: [{}, {trainable: trnk.*}]")
    assert "stage 2: --trainable names nothing" in told_of("stages: [{}, {trainable: []}]")
    assert "stage 1: --trainable trains a part of a model" in told_of("stages: [{trainable: trunk.*}]")
    assert "stage 2: lora.rank is 64, but" in told_of("stages: [{}, {lora: {rank: 64}}]")
    assert "nowhere" in told_of("stages: [{}, {data: nowhere/}]")
    assert "which objective next_token does not take" in told_of("stages: [{}, {objective_settings: {code_noise: 1}}]")
    assert told_of("stages: []").startswith("stages is an empty list")
    (tmp_path / "no").mkdir()
    (tmp_path / "no/mine.txt").write_text("")
    assert "holds no stages to resume" in told_of("stages: [{}]", "--resume")
    assert "is not empty: choose another folder" in told_of("stages: [{}]")
