"""Two processes on gloo against one: the same global batches, so the same training to rounding.

torchrun starts one kind of them. The others are forked: torch is imported once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import pair, torchrun
from safetensors.torch import load_file

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.processes.world import World, join
from unitok.train.log import read_log

STEPS = 4
RUN = f"--run.steps {STEPS} --run.batch_size 8 --run.log_every 2 --run.eval_pictures 8 --run.precision fp32"


def started(words: list[str]) -> None:
    assert torchrun("-m", "unitok", *words) == 0


def forked(words: list[str]) -> None:
    assert pair(lambda rank: main(words)) == [0, 0]


KINDS = ["tokenizer", "adversarial tokenizer", "multi-scale tokenizer", "generator", "next_scale generator"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(
    tmp_path: Path, kind: str, words_of: Any, run_command: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(kind, "shapes?limit=64"), *RUN.split()]
    if kind.endswith("tokenizer"):
        # k-means and revival draw pictures of one process; the rest of the moving codebook must agree.
        words += ["--tokenizer.quantizer.kmeans_init", "false", "--tokenizer.quantizer.revive_below", "0"]
    micro = {"two": "2", "one": "2"}
    if kind == "multi-scale tokenizer":
        words += ["--tokenizer.scales", "[1, 2, 4, 8]"]
        micro = {"two": "4", "one": "8"}  # the mean of the latents starts from the first micro-batch of all processes
    if kind == "next_scale generator":  # with micro-batches in which one process has texts alone
        words += ["--tasks.text_only.share", "2"]
    run_command([*words, "--run.micro_batch", micro["one"], "--out", str(tmp_path / "one")])
    capfd.readouterr()
    start = started if kind == "tokenizer" else forked
    start([*words, "--run.micro_batch", micro["two"], "--out", str(tmp_path / "two")])
    out, err = capfd.readouterr()
    assert out.count("steps: 4") == 1 and err.count("training on 2 x cpu") == 1, err

    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [entry["step"] for entry in logs[1]] == [2, 4, 4]  # written once, by the first process
    for one, both in zip(*logs, strict=True):
        for name in one.keys() - {"time", "images/s", "tokens/s", "padding", "kind"}:
            assert both[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], weight, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: name + text
        )
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_one_process_needs_no_group() -> None:
    with join("cpu") as world:
        assert world.is_main and world.size == 1 and world.gather(3) == [3] and world.from_main(lambda: 4) == 4
        assert world.sum(torch.ones(2)).tolist() == [1, 1]


def test_sums_of_many_shapes_travel_together() -> None:
    world = World(torch.device("cpu"))
    sums = {"a": torch.tensor(1.0), "b": torch.ones(2, 3)}
    together = world.sum_all(sums)
    assert together["a"].item() == 1 and together["b"].shape == (2, 3) and together["b"].dtype == torch.double


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(UserError, match="torch sees no GPU"), join("cuda"):
        pass
