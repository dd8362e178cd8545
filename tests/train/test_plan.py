"""`unitok plan`: its sums against built models, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unitok.cli.main import main
from unitok.config import TRUNK_PRESETS
from unitok.train.plan import memory
from unitok.train.plan.memory import Sizes


def sizes(**more: Any) -> Sizes:
    trunk = replace(TRUNK_PRESETS["debug"](), width=32, depth=3)
    return replace(Sizes(trunk, 400, 64, 64, 10, rows=4, bf16=False, gpu=False), **more)


def test_parameters_are_those_of_the_built_model(make_model: Any) -> None:
    model = make_model("next_token")
    counts = memory.count(replace(sizes(), trunk=model.config.trunk, vocabulary=model.vocabulary.size))
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    assert counts.all == sum(weight.numel() for weight in learned)
    assert counts.blocks == sum(weight.numel() for weight in model.trunk.blocks.parameters())


def test_activations_are_those_that_autograd_keeps(make_model: Any) -> None:
    """Of a real forward pass, whose tensors hold memory, in float32 on a CPU."""
    from unitok.trunk.native import Transformer
    from unitok.trunk.rule import Visibility

    given = sizes()
    trunk, found = Transformer(given.trunk), {}
    own = {weight.data_ptr() for weight in trunk.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    x = torch.zeros(given.rows, given.positions, given.trunk.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trunk(x, torch.zeros(given.rows, given.positions, 3), Visibility("sdpa", causal=True))
    kept, _ = memory.activations(given)
    assert kept == pytest.approx(sum(size for size, _ in found.values()), rel=0.02)
    assert memory.activations(replace(given, rows=8))[0] == 2 * kept
    assert memory.activations(replace(given, checkpointing=True))[0] < 0.3 * kept


def test_shards_divide_what_is_kept_and_cost_traffic() -> None:
    given = sizes(bf16=True, gpu=True)
    counts = memory.count(given)
    whole, shards = (memory.training(given, counts, way, 8) for way in ("ddp", "fsdp"))
    for name in ("weights", "gradients", "moments", "average"):
        assert shards[name] == whole[name] / 8
    assert whole["moments"] == 8 * counts.all and memory.training(given, counts, "ddp", 1, ema=False)["average"] == 0
    assert memory.training(replace(given, muon=True), counts, "ddp", 1)["moments"] < whole["moments"]
    assert memory.traffic(given, counts, "ddp", 1, 1) == 0
    assert memory.traffic(given, counts, "ddp", 2, 4) == 4 * counts.all  # half of a sum of float32, twice
    assert memory.traffic(given, counts, "fsdp", 8, 2) == 2 * memory.traffic(given, counts, "fsdp", 8, 1)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, make_model: Any) -> None:
    make_model("next_token").save_pretrained(tmp_path / "model")
    assert main(["plan", str(tmp_path / "model"), "--gpus", "2", "--batch_size", "8", "--micro_batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "step: 8 pictures, 2 micro-batches of 2 on each of 2 GPUs" in said and "assumed:" in said
    assert re.search(r"fits 24 GB +yes +yes\n", said) and "row: 98 positions" in said
    words = [
        "plan",
        str(tmp_path / "model"),
        "--gpus",
        "4",
        "--batch_size",
        "8",
        "--measured",
        "50",
        "--link_gb",
        "1e6",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"tokens/s, all GPUs +200 +200\n", said) and "a GPU takes 50 tokens/s alone" in said


def test_what_it_refuses_of_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path, make_model: Any) -> None:
    make_model("next_token").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[1]")
    assert main(["plan", str(tmp_path / "model")]) == 2
    assert "config.json holds a list, not a configuration: restore the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["huge"], "'huge' is neither a preset (debug, shapes, emoji, small, base, large) nor the folder of a model"),
        (["base", "--tokenizer", "x"], "tokenizer is 'x': choose one of"),
        (["base", "--gpus", "3"], "error: batch_size is 256: choose a multiple of the number of processes (3)"),
        (["base", "--tflops", "0"], "tflops is 0.0: choose a value above 0"),
    ],
)
def test_what_it_refuses(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
