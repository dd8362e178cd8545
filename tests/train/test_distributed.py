"""Two processes on gloo against one: the same global batches, so the same training to rounding.

torchrun starts one kind of them. The others are forked: torch is imported once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import pair, torchrun
from safetensors.torch import load_file
from tuning_runs import cut_back

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.processes import world
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
    start([*words, "--run.micro_batch", micro["two"], "--run.save_every", "2", "--out", str(tmp_path / "two")])
    out, err = capfd.readouterr()
    assert out.count("steps: 4") == 1 and err.count("training on 2 x cpu") == 1, err

    alike(tmp_path / "one", tmp_path / "two")
    if kind == "adversarial tokenizer":  # what two processes began one ends, opponent and moving codebook included
        cut_back(tmp_path / "two", tmp_path / "rest")
        run_command([*words, "--run.micro_batch", micro["one"], "--out", str(tmp_path / "rest"), "--resume"])
        assert "going on from" in capfd.readouterr().err
        alike(tmp_path / "one", tmp_path / "rest")
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def alike(one: Path, other: Path) -> None:
    """Two runs have the same numbers and weights, to rounding."""
    logs = [read_log(out / "log.jsonl") for out in (one, other)]
    assert [entry["step"] for entry in logs[1]] == [2, 4, 4]  # written once, by the first process
    for mine, theirs in zip(*logs, strict=True):
        for name in mine.keys() - {"time", "images/s", "tokens/s", "padding", "kind"}:
            assert theirs[name] == pytest.approx(mine[name], rel=2e-3, abs=1e-5), name
    weights = [load_file(out / "model.safetensors") for out in (one, other)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], weight, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: name + text
        )


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


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}),
        ({"TORCH_FR_BUFFER_SIZE": "9", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}, {}),
        ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"}, {"TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}),
    ],
)
def test_on_gpus_the_last_collectives_are_recorded(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], added: dict[str, str]
) -> None:
    """By names that torch reads; what is set already stays."""
    headers = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "distributed" / "c10d"
    read = "".join((headers / f"{name}.hpp").read_text() for name in ("FlightRecorder", "ProcessGroupNCCL"))
    assert all(f'"{name}"' in read for name in (*given, *added))

    def meet(*_: Any, **__: Any) -> None:
        raise UserError("met")

    places = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    monkeypatch.setattr(os, "environ", {**places, **given})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(world, "_keys_of_a_meeting", lambda timeout: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    with pytest.raises(UserError, match="met"), join("cuda"):
        pass
    assert os.environ == {**places, **given, **added}
