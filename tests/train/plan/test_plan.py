"""`unitok plan`: what it says against what torch's allocator hands out, against the files of authors, and what it
refuses."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import language_models
import pytest
import torch
from planning import most_of, near, tiny_published, wanted

from unitok.cli.main import main
from unitok.config import TRUNK_PRESETS
from unitok.model import UniTok
from unitok.reader.config import ReaderSettings
from unitok.reader.encoders import read_encoder
from unitok.train.config import OptimConfig
from unitok.train.loop import recompute_activations
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.plan import sums
from unitok.train.plan.model import Wanted, batch_of, build
from unitok.train.plan.passes import Pass, measure, products
from unitok.train.plan.sums import Links, Training, Way
from unitok.train.tuning.start import thaw
from unitok.trunk.published import PUBLISHED, published_family
from unitok.tuning.adapter import tune
from unitok.tuning.config import NO_LORA, LoraConfig
from unitok.tuning.quantized import held_in_few_bits

ROWS, TOKENS = 8, 12
ALONE = Way("one", 1, 1)


def planned(asked: Wanted, task: str = "text_to_image", checkpointing: bool = False, bf16: bool = False) -> float:
    """Bytes of a training on one CPU."""
    model = build(asked)
    once, twice = (batch_of(model, task, rows, TOKENS) for rows in (ROWS, 2 * ROWS))
    held = measure(model, once, twice, bf16, False, checkpointing)
    return sums.total(sums.training(sums.count(model), held, ALONE, Training(2 if bf16 else 4)))


def handed_out(model: UniTok, task: str = "text_to_image", bf16: bool = False) -> int:
    """The most bytes that torch's allocator has handed out at once in two steps of two micro-batches each."""
    batch = batch_of(model, task, ROWS, TOKENS)

    def train() -> None:
        trained = copy.deepcopy(model).train()
        optimizers, average = build_optimizers(trained, OptimConfig()), AveragedWeights(trained, 0.999)
        for step in range(2):
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    trained(batch).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            average.update(step)

    return most_of(train)


@pytest.fixture
def native(make_model: Any, tmp_path: Path) -> Path:
    make_model("next_token", width=128, depth=3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_takes_what_was_planned(native: Path, bf16: bool) -> None:
    assert near(planned(wanted(native), bf16=bf16), handed_out(UniTok.from_pretrained(native), bf16=bf16))


@pytest.mark.parametrize("objective", ["masked_token", "next_scale"])
def test_other_objectives(objective: str, make_model: Any, tmp_path: Path) -> None:
    model = make_model(objective, width=96)
    model.save_pretrained(tmp_path / "model")
    assert near(planned(wanted(tmp_path / "model")), handed_out(model))


def test_checkpointing(native: Path) -> None:
    model = UniTok.from_pretrained(native)
    recompute_activations(model)
    found = planned(wanted(native), checkpointing=True)
    assert near(found, handed_out(model)) and found < 0.9 * planned(wanted(native))


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        (["trunk.blocks.1.*"], NO_LORA),
        (["ids.*"], LoraConfig(rank=4)),
        (["ids.*"], LoraConfig(rank=4, quantize="int8")),
    ],
)
def test_parts_and_adapters(native: Path, trainable: list[str], lora: LoraConfig) -> None:
    model = UniTok.from_pretrained(native)
    tune(model, model, trainable, lora)
    asked = wanted(native, trainable=trainable, lora=lora)
    counts = sums.count(build(asked))
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    assert counts.learned == sum(weight.numel() for weight in learned) < 0.6 * counts.all
    assert (counts.packed, counts.packed_bytes) == held_in_few_bits(model)
    assert near(planned(asked), handed_out(model))


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_language_models(family: str, tmp_path: Path) -> None:
    language_models.save(family, tmp_path, vocab_size=64, hidden_size=64)
    asked = wanted(f"hf:{tmp_path}", tokenizer="debug", text_vocabulary=14)
    model = build(asked)
    config = model.config
    real = UniTok(config, model.image_tokenizer, model.text_tokenizer)
    assert sums.count(model).all == sum(weight.numel() for weight in real.parameters())
    assert near(planned(asked), handed_out(real))


@pytest.mark.parametrize("train", [[], ["ports.reader.*"]])
def test_readers(train: list[str], native: Path, tmp_path: Path, save_vision: Callable[[str, Path], str]) -> None:
    """Pictures that are read by an encoder, which learns or not."""
    reader = ReaderSettings(encoder=f"hf:{save_vision('siglip', tmp_path / 'vision')}")
    asked = wanted(native, reader=reader, trainable=train)
    model = UniTok.from_pretrained(native)
    config, encoder = read_encoder(reader, model.image_tokenizer)
    real = UniTok(replace(model.config, reader=config), model.image_tokenizer, model.text_tokenizer)
    assert real.reader is not None
    real.reader.encoder.load_state_dict(encoder.state_dict())
    thaw(real, train and ["ports.reader.encoder.*", *train])
    tune(real, real, train, NO_LORA)
    asked = replace(asked, trainable=train and ["ports.reader.encoder.*", *train])
    assert near(planned(asked, "image_to_text"), handed_out(real, "image_to_text"))


@pytest.mark.parametrize("name", ["llamagen", "var", "infinity", "janus"])
def test_published_models(name: str, tmp_path: Path) -> None:
    """Classes, code by code and map by map; states of captions, bit by bit; texts, with a table of codes beside."""
    model = tiny_published(name)
    model.save_pretrained(tmp_path / "model")
    assert near(planned(wanted(tmp_path / "model")), handed_out(model))


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_models_have_the_parameters_of_their_files(name: str) -> None:
    family = published_family(name)
    released = next(iter(family.released()))
    trunk, texts, codes = family.released()[released]
    theirs = sum(math.prod(shape) for shape in family.shapes(trunk, texts, codes).values())
    model = build(wanted(released))
    ours = sum(weight.numel() for part, weight in model.named_parameters() if not part.startswith("image_tokenizer."))
    assert abs(ours - theirs) < 0.04 * theirs, "codes have rows of their own, beside those that they have among texts"


def test_operations_are_those_of_the_matrices() -> None:
    asked = wanted("debug", tokenizer="debug")
    model = build(asked)
    batch = batch_of(model, "text_to_image", 1, TOKENS)
    length, trunk = batch.inputs.shape[1], model.config.trunk
    matrices = sum(w.numel() for w in model.trunk.blocks.parameters() if w.ndim == 2)
    head = 3 * 2 * model.layout.length * model.vocabulary.codebook_size * trunk.width
    attention = 3 * 4 * trunk.depth * length * length * trunk.width  # of a kernel that computes scores twice: 3.5
    found = products(model, batch, False)
    assert 6 * matrices * length + head + attention <= found <= 6 * matrices * length + head + 1.3 * attention
    assert found < products(model, batch, True) < 1.4 * found
    part = build(replace(asked, lora=LoraConfig(rank=1)))
    assert products(part, batch, False) < 0.8 * found, "weights that stand still have no gradients"


def test_a_gpu_keeps_no_scores_of_attention_and_all_of_the_head(native: Path) -> None:
    model = build(wanted(native))
    once, twice = (batch_of(model, "text_to_image", rows, TOKENS) for rows in (ROWS, 2 * ROWS))
    cpu, gpu = (measure(model, once, twice, True, gpu, False) for gpu in (False, True))
    assert gpu.kept < cpu.kept, "a CPU keeps the scores in bf16"
    logits = 4 * ROWS * model.layout.length * model.vocabulary.codebook_size
    assert gpu.passing >= 2 * logits
    matrices = sum(w.numel() for w in model.trunk.parameters() if w.ndim == 2)
    assert 2 * matrices <= gpu.copies <= 2 * sum(w.numel() for w in model.parameters())


def test_shards_divide_what_is_kept_and_cost_traffic() -> None:
    counts = sums.count(build(wanted("debug", tokenizer="debug")))
    held, how = Pass(1000, 10, 100), Training(2)
    whole, shards, both = (sums.training(counts, held, way, how) for way in sums.ways(64, 8))
    for name in ("gradients", "moments", "average"):
        assert shards[name] == whole[name] / 64 and both[name] == whole[name] / 8
    assert whole["moments"] == 8 * counts.learned and whole["copies of weights"] == 100 not in shards.values()
    assert sums.copied(counts, sums.ways(64, 8)[0], whole) == 16 * counts.learned, "weights, moments, averages"
    assert sums.copied(counts, sums.ways(64, 8)[1], shards) == counts.learned / 4 + 4 * (counts.learned + counts.still)
    assert sums.training(counts, held, ALONE, Training(2, ema=False))["average"] == 0
    assert sums.training(counts, held, ALONE, Training(2, muon=True))["moments"] < whole["moments"]
    assert sums.traffic(counts, ALONE, 2, 1) == (0, 0)
    ddp, fsdp = sums.ways(2, 8)
    assert sums.traffic(counts, ddp, 2, 4) == (0, 4 * counts.learned)  # half of a sum of float32, twice
    assert sums.traffic(counts, fsdp, 2, 2)[0] == 2 * sums.traffic(counts, fsdp, 2, 1)[0]
    once, twice = (sums.traffic(counts, sums.ways(64, 8)[2], 2, micro_batches) for micro_batches in (1, 2))
    assert twice == (2 * once[0], once[1]), "between groups gradients travel once a step"


def test_time_follows_the_slower_link() -> None:
    counts = sums.count(build(wanted("debug", tokenizer="debug")))
    links = Links(100.0, 10.0, 8)
    inside, across = sums.ways(8, 8)[0], sums.ways(64, 8)[0]
    assert sums.sending(counts, inside, 2, 1, links)[1] == pytest.approx(7 / 4 * 4 * counts.learned / 1e11)
    assert sums.sending(counts, across, 2, 1, links)[1] == pytest.approx(63 / 32 * 4 * counts.learned / 1e10)
    both = sums.ways(64, 8)[2]
    within, between = sums.traffic(counts, both, 2, 1)
    assert between == 7 / 4 * 4 * counts.learned / 8, "of its shard alone"
    assert sums.sending(counts, both, 2, 1, links)[1] == pytest.approx(within / 1e11 + between / 1e10)


def test_the_command(capsys: pytest.CaptureFixture[str], native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["plan", str(native), "--batch_size", "8"]
    assert main([*words, "--gpus", "2", "--micro_batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "step: 8 pictures, 2 micro-batches of 2 on each of 2 GPUs" in said and "assumed:" in said
    assert re.search(r"memory of the host for the copy .*: ddp 0\.\d\d, fsdp 0\.\d\d\n", said)
    assert re.search(r"fits 24 GB +yes +yes\n", said) and "row: 100 positions" in said
    assert re.search(r"drawing 16 pictures .*\n  fits 24 GB: yes, 40 GB: yes, 80 GB: yes\n", said)
    monkeypatch.setattr("unitok.train.plan.commands.FITS", (0, 24))
    assert main([*words, "--gpus", "4", "--measured", "50", "--link_gb", "1e6", "--lora.rank", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"tokens/s, all GPUs +200 +200\n", said) and "a GPU takes 50 tokens/s alone" in said
    assert "M of them learn" in said and "  fits 0 GB: no, 24 GB: yes\n" in said
    assert main([*words, "--gpus", "4", "--per_machine", "2", "--network_gb", "1e-9"]) == 0
    said = capsys.readouterr().out
    assert "fsdp in 2" in said and re.search(r"time spent computing +0% +0% +0%\n", said)


def test_what_it_refuses_of_folders(capsys: pytest.CaptureFixture[str], native: Path) -> None:
    assert main(["plan", str(native), "--trainable", "trunk.bloks.*"]) == 2
    assert "--trainable 'trunk.bloks.*' matches nothing that can be trained" in capsys.readouterr().err
    (native / "config.json").write_text("[1]")
    assert main(["plan", str(native)]) == 2
    assert "config.json holds a list, not a configuration: restore the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["huge"], f"'huge' is neither a preset ({', '.join(TRUNK_PRESETS)}), nor the folder of a model, nor hf:"),
        (["base", "--tokenizer", "x"], "tokenizer is 'x': choose one of"),
        (["debug", "--tokenizer", "debug", "--task", "edit"], "task is 'edit': choose one of text_to_image"),
        (["base", "--gpus", "3"], "error: batch_size is 256: choose a multiple of the number of processes (3)"),
        (["base", "--tflops", "0"], "tflops is 0.0: choose a value above 0"),
        (["base", "--network_gb", "-1"], "network_gb is -1.0: choose a value above 0"),
    ],
)
def test_what_it_refuses(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
