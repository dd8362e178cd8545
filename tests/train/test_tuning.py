"""Training on from a model that has learned: parts of it by name, and low-rank adapters beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tuning_runs import RUN, changed, cut_back, refused, resumes_to_the_bit, train

from tokenizers_vq.base import ImageTokenizer, build_tokenizer, load_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.parts import train_only, trainable_names
from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main
from unitok.config import TaskConfig, TasksConfig, TrunkConfig
from unitok.model import UniTok
from unitok.sample.pipeline import score_codes
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.trunk.native import Transformer
from unitok.tuning.adapter import open_adapter
from unitok.tuning.config import LoraConfig
from unitok.tuning.lora import add_lora, linear_maps, merge_lora

LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture
def model_folder(make_model: Callable[..., UniTok], tmp_path: Path) -> Path:
    make_model(dropout=0.1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_tokenizers_decoder_learns_and_its_codes_stay(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start: dict[str, Any] = {"init": tokenizer_folder, "trainable": "decoder.*, post_quant_conv.*"}
    train("tokenizer", tmp_path / "out", steps=4, **start)
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
    train("tokenizer", tmp_path / "again", steps=4, resume=True, **start)
    assert load_tokenizer(tmp_path / "again").fingerprint() == after.fingerprint()
    start["trainable"] = "decoder.*"
    assert "trainable is ['decoder.*'], but the run" in refused("tokenizer", tmp_path / "again", resume=True, **start)


def test_a_tokenizer_is_trained_on_whole(tokenizer_folder: Path, tmp_path: Path) -> None:
    train("tokenizer", tmp_path / "out", init=tokenizer_folder)
    moved = changed(load_tokenizer(tokenizer_folder), load_tokenizer(tmp_path / "out"))
    assert {"encoder.conv_in.weight", "quantizer.library._codebook.embed", "decoder.conv_out.weight"} <= moved


def test_a_generators_parts_learn(model_folder: Path, tmp_path: Path) -> None:
    """All of one block's mlp, and norms anywhere."""
    start = {"init": model_folder, "trainable": ["trunk.blocks.1.mlp.*", "*norm.weight"]}
    train("generator", tmp_path / "out", steps=4, **start)
    moved = changed(UniTok.from_pretrained(model_folder), UniTok.from_pretrained(tmp_path / "out"))
    assert {"trunk.blocks.1.mlp.down.weight", "trunk.blocks.0.attention_norm.weight", "trunk.norm.weight"} <= moved
    assert all(".mlp." in name or name.endswith("norm.weight") for name in moved)
    cut_back(tmp_path / "out", tmp_path / "again")
    train("generator", tmp_path / "again", steps=4, resume=True, **start)
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
    torch.manual_seed(0)
    tokenizer = build_tokenizer(replace(TOKENIZER_PRESETS["debug"](), scales=(1, 2, 4, 8)))
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


def test_patterns_that_say_nothing(tokenizer_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    def tokenizer(trainable: Any, **settings: Any) -> str:
        return refused("tokenizer", tmp_path / "no", trainable=trainable, **{"init": tokenizer_folder, **settings})

    assert tokenizer("decodr.*") == (
        "--trainable 'decodr.*' matches nothing that can be trained: did you mean 'decoder.*', 'encoder.*', "
        "'decoder.up.*'?"
    )
    assert "there are 'encoder.*', 'quantizer.*', 'quant_conv.*'" in tokenizer("xyz")
    assert "matches no weight that is trained by its gradient" in tokenizer("quantizer.*")
    assert tokenizer(",").startswith("--trainable names nothing")
    against = AdversarialConfig(weight=0.5, start=0)
    assert "adversarial.adaptive balances" in tokenizer("encoder.*", adversarial=against)
    assert "--tokenizer and --preset are those" in tokenizer(None, tokenizer=TOKENIZER_PRESETS["debug"]())
    assert "give its folder with --init" in tokenizer("decoder.*", init=None)
    start: dict[str, Any] = {"init": model_folder, "trainable": "image_tokenizer.*"}
    assert "matches nothing that can be trained" in refused("generator", tmp_path / "no", **start)
    start |= {"trainable": "trunk.*", "data": "shapes?task=ground&limit=16"}
    start["tasks"] = TasksConfig(ground=TaskConfig(share=1.0))
    assert "name 'ids.*' in --trainable too" in refused("generator", tmp_path / "no", **start)


def test_patterns_on_the_command_line_may_begin_with_a_star() -> None:
    """Which YAML has another meaning for."""
    words = [*RUN, "--out", "x", "--trainable", "*norm,*bias", "--lora.rank", "8", "--lora.targets", "[*mlp.down]"]
    values = parse("train generator", COMMANDS["train generator"], words)[1]
    assert values["trainable"] == "*norm,*bias" and values["lora"] == LoraConfig(rank=8, targets="[*mlp.down]")


# --- adapters ---------------------------------------------------------------------------------------------------------


def scores(model: UniTok) -> torch.Tensor:
    codes = torch.arange(64).remainder(model.vocabulary.codebook_size)[None]
    return score_codes(model, ["a small red circle"], codes)


def test_an_adapter_is_learned_opened_and_merged(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start: dict[str, Any] = {"init": model_folder, "lora": LORA, "trainable": "ids.*"}
    train("generator", tmp_path / "out", steps=4, **start)
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
    resumes_to_the_bit(tmp_path / "out", tmp_path / "again", capsys, **start)

    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0
    assert UniTok.from_pretrained(tmp_path / "merged").fingerprint() == tuned.fingerprint()
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0, "killed after its work"
    shutil.move(tmp_path / "out", tmp_path / "inner" / "out")
    with pytest.raises(UserError, match="which is not there: bring it back, or join both with unitok merge"):
        UniTok.from_pretrained(tmp_path / "inner/out")
    assert open_adapter(tmp_path / "inner/out", model_folder).fingerprint() == tuned.fingerprint()
    # An adapter may be trained on: its base is then an adapter itself.
    train("generator", tmp_path / "further", steps=1, init=tmp_path / "again", lora=LORA)
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
    def told_by(lora: LoraConfig, **settings: Any) -> str:
        return refused("generator", tmp_path / "no", lora=lora, **{"init": model_folder, **settings})

    with pytest.raises(UserError, match=r"^lora.rank is 0: choose 1 or more$"):
        LoraConfig(rank=0)
    assert told_by(LoraConfig(rank=64)).startswith("lora.rank is 64, but trunk.blocks.0.attention.qkv has only 32")
    assert "did you mean 'trunk.blocks." in told_by(replace(LORA, targets="trunk.blocks.*.atention.qkv"))
    images = model_folder / "image_tokenizer"
    assert "lora.rank tunes a model that has learned" in told_by(LORA, init=None, image_tokenizer=images)

    train("generator", tmp_path / "out", steps=1, init=model_folder, lora=LORA)

    def told() -> str:
        with pytest.raises(UserError) as caught:
            UniTok.from_pretrained(tmp_path / "out")
        return str(caught.value)

    make_model(seed=1).save_pretrained(model_folder)
    assert "was learned on another model than" in told()
    make_model(depth=1).save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "out/config.json").read_text())
    other = UniTok.from_pretrained(tmp_path / "other")
    del config["files"]
    config |= {"base": "../other", "fingerprint": other.fingerprint()}
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "is of another trunk than" in told()
    config["base"] = "../out"
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "stands on more than 8 others" in told()
    config |= {"base": "../other", "model": other.config.to_json(), "trained": ["trunk.norm.weight"]}
    config["targets"] = ["blocks.0.mlp.down"]
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "adapter.safetensors lacks trunk.norm.weight" in told()
    save_file({"trunk.norm.weight": torch.ones(32)}, tmp_path / "out/adapter.safetensors")
    assert "lacks trunk.blocks.0.mlp.down.lora.down" in told()
    assert main(["merge", str(tmp_path / "other"), "--out", str(tmp_path / "no")]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_a_tuned_decoder_is_put_into_a_model(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model reads and draws the same codes. A tokenizer with other codes is refused."""
    model = UniTok.from_pretrained(model_folder)
    torch.manual_seed(1)
    with torch.no_grad():
        model.image_tokenizer.decoder.conv_out.weight.normal_()
    model.image_tokenizer.save_pretrained(tmp_path / "decoder")
    words = ["merge", str(model_folder), "--image_tokenizer", str(tmp_path / "decoder"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    before, after = UniTok.from_pretrained(model_folder), UniTok.from_pretrained(tmp_path / "out")
    assert changed(before, after) == {"image_tokenizer.decoder.conv_out.weight"}
    assert torch.equal(scores(before), scores(after))

    with torch.no_grad():
        model.image_tokenizer.quant_conv.bias += 1
    model.image_tokenizer.save_pretrained(tmp_path / "decoder")
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "no")]) == 2
    assert "makes other codes than that of the model" in capsys.readouterr().err
