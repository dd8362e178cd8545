"""Adapters over a base that is held in few bits."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from language_models import documents_of, save
from processes import pair
from safetensors.torch import load_file
from torch import Tensor
from tuning_runs import refused, resumes_to_the_bit, train

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.device import autocast
from unitok.model import UniTok
from unitok.sample.pipeline import score_codes
from unitok.sequence import lay_out
from unitok.train.config import OptimConfig
from unitok.train.log import read_log
from unitok.train.loop import recompute_activations
from unitok.train.parallel import shards  # noqa: F401 (before the processes are forked)
from unitok.tuning import quantized
from unitok.tuning.adapter import tune
from unitok.tuning.config import LoraConfig
from unitok.tuning.lora import merge_lora
from unitok.tuning.quantized import FORMATS, Quantized, frozen_maps, held_in_few_bits, rounded

HERE = find_spec("bitsandbytes") is not None
nf4 = pytest.param(
    "nf4",
    marks=pytest.mark.skipif(not HERE, reason="the extra `bitsandbytes` is not installed"),
)
kinds = pytest.mark.parametrize("kind", [nf4, "int8"])
LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture
def base(make_model: Callable[..., UniTok], tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def scores(model: UniTok) -> Tensor:
    codes = torch.arange(64).remainder(model.vocabulary.codebook_size)[None]
    return score_codes(model, ["a small red circle"], codes)


def tuned(model: UniTok, **lora: Any) -> UniTok:
    """A copy with adapters that add something."""
    found = copy.deepcopy(model)
    torch.manual_seed(0)
    tune(found, model, [], replace(LORA, **lora))
    for name, weight in found.named_parameters():
        if name.endswith("lora.up"):
            torch.nn.init.normal_(weight, std=0.1)
    return found.train()


# --- numbers ----------------------------------------------------------------------------------------------------------


def nearest(weight: Tensor, steps: Tensor, block: int) -> Tensor:
    """Each number of blocks that have one scale, their largest, to the nearest step: slowly, by all distances."""
    found = []
    for part in weight.flatten().split(block):
        scale = part.abs().max()
        found.append(steps[(part[:, None] / scale - steps).abs().argmin(1)] * scale)
    return torch.cat(found).view_as(weight)


@pytest.mark.parametrize("shape", [(96, 64), (33, 18), (5, 6)])
@kinds
def test_weights_are_those_of_the_slow_way(kind: str, shape: tuple[int, int]) -> None:
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    how = FORMATS[kind]
    held = how.pack(weight)
    found = how.unpack(held, shape, torch.float32)
    if kind == "int8":
        slow, scales = nearest(weight, torch.arange(-127, 128) / 127, shape[1]), 0.0
    else:
        functional = pytest.importorskip("bitsandbytes.functional")
        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
        assert torch.equal(found, functional.dequantize_4bit(packed, state)), "as with its own nested scales"
        slow, scales = nearest(weight, functional.get_4bit_type("nf4", device="cpu"), 64), 0.02  # held in 8 bits
    torch.testing.assert_close(found, slow, rtol=scales, atol=1e-7)
    assert torch.equal(how.unpack(held, shape, torch.bfloat16), found.bfloat16())
    assert not how.unpack(how.pack(0 * weight), shape, torch.float32).any()
    empty = how.pack(weight.to("meta"))
    assert [(one.shape, one.dtype) for one in empty] == [(one.shape, one.dtype) for one in held]


def test_every_kind_of_numbers_is_an_option() -> None:
    literal, _ = get_args(get_type_hints(LoraConfig)["quantize"])
    assert get_args(literal) == tuple(FORMATS)


# --- a pass -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@kinds
def test_a_pass_is_that_of_a_float_model_with_these_weights(
    kind: str, precision: Any, make_model: Callable[..., UniTok]
) -> None:
    """States, losses, and the gradients of adapters: of nothing else."""
    model = make_model()
    held, plain = tuned(model, quantize=kind), copy.deepcopy(model)
    maps = frozen_maps(model.trunk, set())
    assert len(maps) == 8 == sum(isinstance(module, Quantized) for module in held.trunk.modules())
    rounded(plain.trunk, kind, set())
    plain = tuned(plain)
    if precision == "bf16":
        recompute_activations(held)  # and be none the worse for it
    found = []
    for one in (held, plain, tuned(model)):
        batch = lay_out([[item] for item in documents_of(one)], pad=one.vocabulary.pad)
        with autocast(one.device, precision):
            states, losses = one.states(batch), one(batch)
        losses.sum().backward()
        gradients = {name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None}
        assert gradients and all(".lora." in name for name in gradients)
        found.append((states.detach().float(), losses.detach(), gradients))
    close = {"atol": 1e-4, "rtol": 1e-5} if precision == "fp32" else {"atol": 5e-2, "rtol": 5e-2}
    torch.testing.assert_close(*found[:2], **close)
    assert not torch.allclose(found[0][0], found[2][0], **close), "the base is another one"


@kinds
def test_what_is_held(kind: str, make_model: Callable[..., UniTok]) -> None:
    """Matrices of blocks alone, and no part of the state; a map that learns in full stays float."""
    model = make_model(width=64, depth=2)
    before = held_in_few_bits(model)
    tune(model, model, ["ids.*", "trunk.blocks.1.*"], replace(LORA, quantize=kind))
    kept = {name for name, module in model.named_modules() if isinstance(module, Quantized)}
    assert kept == {f"trunk.blocks.0.{part}" for part in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")}
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert not any(name.startswith(tuple(f"{one}.held" for one in kept)) for name in model.state_dict())
    numbers, size = held_in_few_bits(model)
    assert before == (0, 0) and numbers == sum(dict(model.named_modules())[one].shape.numel() for one in kept)
    assert size / numbers < {"nf4": 0.65, "int8": 1.1}[kind]  # small maps: 1 kB each tells what scales stand for


# --- runs -------------------------------------------------------------------------------------------------------------


@kinds
def test_an_adapter_is_learned_opened_and_merged(
    kind: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start: dict[str, Any] = {"init": base, "lora": replace(LORA, quantize=kind), "trainable": "ids.*"}
    start["val_data"] = "shapes@val?limit=4"
    train("generator", tmp_path / "out", steps=4, **start)
    numbers, size = held_in_few_bits(tuned(UniTok.from_pretrained(base), quantize=kind))
    assert f"{numbers:,} of them are held in {size / 1e6:,.1f} MB" in capsys.readouterr().err
    names = set(load_file(tmp_path / "out/adapter.safetensors"))
    assert all(".lora." in name or name.startswith("ids.") for name in names)
    assert set(load_file(tmp_path / "out/checkpoints/step-00000004/model.safetensors")) == names
    assert json.loads((tmp_path / "out/config.json").read_text())["quantize"] == kind

    resumes_to_the_bit(tmp_path / "out", tmp_path / "again", capsys, **start)
    other = {**start, "lora": LORA}
    assert f"lora.quantize is None, but the run in {tmp_path / 'again'} was started with '{kind}'" in refused(
        "generator", tmp_path / "again", resume=True, **other
    )

    # The model that is opened is the one that was trained, to the last bits, and so is the one that is merged.
    model = UniTok.from_pretrained(tmp_path / "out")
    mine = UniTok.from_pretrained(base)
    rounded(mine.trunk, kind, set())
    tune(mine, mine, ["ids.*"], LORA)
    mine.load_state_dict(load_file(tmp_path / "out/adapter.safetensors"), strict=False)
    merge_lora(mine.trunk)
    assert torch.equal(scores(model), scores(mine.eval()))
    val = [entry["loss"] for entry in read_log(tmp_path / "out/log.jsonl") if entry["kind"] == "val"][-1]
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0
    assert UniTok.from_pretrained(tmp_path / "merged").fingerprint() == model.fingerprint()
    more = {**start, "init": tmp_path / "merged", "lora": LORA, "optim": OptimConfig(lr=1e-12)}
    train("generator", tmp_path / "more", steps=1, **more)
    assert [entry["loss"] for entry in read_log(tmp_path / "more/log.jsonl") if entry["kind"] == "val"][
        -1
    ] == pytest.approx(val, rel=1e-5)
    assert main(["sample", "a circle", "--model", str(tmp_path / "out"), "--out", str(tmp_path / "drawn")]) == 0


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_language_models(family: str, tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    """In two stages, as a language model is adapted. Its ids learn in the first one, and both losses fall alike."""
    save(family, tmp_path / "language", max_position_embeddings=2048)
    start = {"trunk": f"hf:{tmp_path / 'language'}", "image_tokenizer": tiny_tokenizer_folder, "trainable": "ids.*"}
    train("generator", tmp_path / "ids", steps=2, **start)
    losses = {}
    for kind in (None, "int8", *(["nf4"] if HERE else [])):
        out = tmp_path / str(kind)
        lora = replace(LORA, quantize=kind)
        train("generator", out, steps=6, init=tmp_path / "ids", lora=lora)
        losses[kind] = [entry["loss"] for entry in read_log(out / "log.jsonl") if entry["kind"] == "train"]
        assert losses[kind][-1] < losses[kind][0]
    for kind, close in (("int8", 0.01), ("nf4", 0.1)):
        if kind in losses:
            assert losses[kind] == pytest.approx(losses[None], rel=close) and losses[kind] != losses[None]


def test_two_processes_learn_what_one_does(base: Path, tmp_path: Path) -> None:
    """In copies, and in shards of what learns: what is held in few bits is whole in both processes."""
    words = ["train", "generator", "--data", "shapes", "--init", str(base), "--lora.rank", "2", "--run.steps", "2"]
    words += ["--lora.quantize", "int8", "--trainable", "ids.*", "--run.batch_size", "8", "--run.device", "cpu"]
    words += ["--run.precision", "fp32", "--run.log_every", "1", "--run.threads", "1", "--optim.lr", "0.002"]
    ways = {"ddp": [*words, "--run.parallel", "ddp"], "fsdp": [*words, "--run.parallel", "fsdp"]}
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    works = [lambda rank, way=way: main([*ways[way], "--out", str(tmp_path / way)]) for way in ways]  # type: ignore[misc]
    assert pair(*works) == [0, 0]
    one = load_file(tmp_path / "one/adapter.safetensors")
    for way in ways:
        other = load_file(tmp_path / way / "adapter.safetensors")
        assert one.keys() == other.keys()
        assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_what_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "generator", "--data", "shapes", "--init", str(base), "--out", str(tmp_path / "no")]
    for more, message in (
        (["--lora.quantize", "nf4"], "lora.quantize is nf4, but without adapters all weights learn: give --lora.rank"),
        (["--lora.quantize", "nf3", "--lora.rank", "2"], "lora.quantize"),
    ):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1] and not (tmp_path / "no").exists()
    whole = {"init": base, "lora": replace(LORA, quantize="int8"), "trainable": "trunk.*"}
    assert "no linear map of the trunk's blocks is frozen" in refused("generator", tmp_path / "no", **whole)


def test_without_the_package(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bits need it, to train and to open; 8 bits do not."""
    start: dict[str, Any] = {"init": base, "lora": replace(LORA, quantize="int8")}
    quantized.bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    try:
        train("generator", tmp_path / "out", steps=1, **start)
        message = "nf4 is computed by the package bitsandbytes: pip install unitok-vq[bitsandbytes], or choose int8"
        start["lora"] = replace(LORA, quantize="nf4")
        assert refused("generator", tmp_path / "no", **start) == message
        assert not (tmp_path / "no" / "run.json").exists()
        config = json.loads((tmp_path / "out/config.json").read_text())
        del config["files"]
        (tmp_path / "out/config.json").write_text(json.dumps({**config, "quantize": "nf4"}))
        with pytest.raises(UserError) as caught:
            UniTok.from_pretrained(tmp_path / "out")
        assert str(caught.value) == message
    finally:
        quantized.bitsandbytes.cache_clear()


def test_other_packages_do_not_make_it_fetch() -> None:
    """At its import it would fetch a kernel for CPUs, where the package `kernels` is installed."""
    if not HERE:
        pytest.skip("the extra `bitsandbytes` is not installed")
    quantized.bitsandbytes()
    assert sys.modules.get("kernels", "not imported") is not None
