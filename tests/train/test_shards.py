"""Processes that share one model (fsdp) against one process: the same losses, and checkpoints that either reads. What
processes refuse, they refuse together: one line, and the same exit code of all.

The processes are forked: torch is imported once.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import pair, several
from safetensors.torch import load_file

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.lock import only_writer
from unitok.processes.world import join
from unitok.train import loop
from unitok.train.checkpoint import all_checkpoints, read_about
from unitok.train.log import read_log
from unitok.train.parallel import choice, shards  # noqa: F401 (shards: before the processes are forked)


def command(out: Path, tokenizer: Path, *more: str) -> list[str]:
    words = "train generator --data shapes --val_data shapes@val?limit=8 --preset debug --run.batch_size 8"
    words += " --run.log_every 1 --run.eval_pictures 2 --run.device cpu --run.precision fp32 --run.threads 1"
    words += " --optim.lr 0.002 --optim.warmup_steps 2 --text_vocabulary 300 --trunk.width 32 --run.steps 4"
    return [*words.split(), "--image_tokenizer", str(tokenizer), "--out", str(out), *more]


def unmeasured(out: Path, tokenizer: Path, *more: str) -> list[str]:
    """As `command`, but nothing is evaluated, which costs most of the time."""
    words = command(out, tokenizer, *more)
    where = words.index("--val_data")
    return words[:where] + words[where + 2 :]


def assert_equal_runs(a: Path, b: Path, steps: int = 4, val: bool = True) -> None:
    """To rounding: 1e-5 of a loss, 1e-5 in a weight."""
    logs = [{(e["kind"], e["step"]): e["loss"] for e in read_log(out / "log.jsonl")} for out in (a, b)]
    validation = {("val", steps)} if val else set()
    assert logs[0].keys() == logs[1].keys() == {*(("train", n + 1) for n in range(steps))} | validation
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    mine, other = (load_file(out / "model.safetensors") for out in (a, b))
    assert mine.keys() == other.keys() and all(mine[name].shape == other[name].shape for name in mine)
    assert max(float((mine[name] - other[name]).abs().max()) for name in mine) < 1e-5


def resumed_at(source: Path, out: Path, step: int) -> Path:
    """A copy of a run that was killed behind the checkpoint of `step`."""
    shutil.copytree(source, out)
    for path in all_checkpoints(out / "checkpoints"):
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:step]))
    return out


@pytest.mark.usefixtures("figures")
@pytest.mark.timeout(300)
def test_shards_train_as_one_process_and_checkpoints_fit_both(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every part of the loop runs: accumulation, clipping, averages, evaluation, pictures, checkpoints, export."""
    often = ["--run.save_every", "2", "--run.sample_every", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(one, tiny_tokenizer_folder, *often, "--run.micro_batch", "4")) == 0
    grown = resumed_at(one, tmp_path / "grown", 2)
    monkeypatch.setattr(choice, "device_memory", lambda device: 100_000)
    train = command(two, tiny_tokenizer_folder, *often, "--run.micro_batch", "2", "--run.checkpointing", "true")
    capfd.readouterr()
    codes = pair(
        lambda rank: main(train),
        lambda rank: main([*train, "--resume"]),  # finished: changes nothing
        lambda rank: main(command(grown, tiny_tokenizer_folder, "--run.parallel", "fsdp", "--resume")),
    )
    said = capfd.readouterr().err
    assert codes == [0, 0], said
    assert said.count("training on 2 x cpu, fsdp") == 2 and said.count("finished after 4 steps: nothing to do") == 1
    assert said.count("run.parallel auto is fsdp: weights, gradients and optimizer of a whole model need") == 1
    assert_equal_runs(one, two)
    assert_equal_runs(one, grown)
    newest = all_checkpoints(two / "checkpoints")[-1]
    assert [path.name for path in sorted((newest / "model").iterdir())] == [
        f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)
    ]
    assert not list(newest.rglob("*metadata*")), "nothing pickled"
    assert (two / "samples" / "step-00000002.png").exists()

    shrunk = resumed_at(two, tmp_path / "shrunk", 2)
    assert main(command(shrunk, tiny_tokenizer_folder, "--resume")) == 0
    assert_equal_runs(one, shrunk)

    torn = resumed_at(two, tmp_path / "torn", 4)  # a shard that is cut: the checkpoint before it is taken
    shard = next((torn / "checkpoints" / newest.name / "optimizer").glob("shard-00002*"))
    shard.write_bytes(shard.read_bytes()[:-40])
    capfd.readouterr()
    assert main(command(torn, tiny_tokenizer_folder, "--resume")) == 0
    said = capfd.readouterr().err
    assert "is damaged, it is not what was written" in said and "going on from" in said
    assert read_about(all_checkpoints(torn / "checkpoints")[-1])["step"] == 4


@pytest.mark.timeout(300)
def test_muon_and_groups_of_shards(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """Muon on gathered matrices; a group of one process holds its model alone."""
    muon = ["--optim.muon", "true", "--run.steps", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(unmeasured(one, tiny_tokenizer_folder, *muon)) == 0
    sharded = ["--run.parallel", "fsdp", "--run.shard_within", "1"]
    assert pair(
        lambda rank: main(unmeasured(two, tiny_tokenizer_folder, *muon, "--run.parallel", "fsdp")),
        lambda rank: main(unmeasured(tmp_path / "alone", tiny_tokenizer_folder, "--run.steps", "2", *sharded)),
    ) == [0, 0]
    mine, other = (load_file(out / "model.safetensors") for out in (one, two))
    worst = max(float((mine[name] - other[name]).abs().max()) for name in mine)
    assert worst < 5e-4, "Muon's iterations are in bfloat16"


@pytest.mark.timeout(300)
def test_four_processes_train_as_one(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With whole copies; in two groups of two, each with a copy in shards, in micro-batches. What the groups saved is
    opened by two processes, and what those saved by one."""

    def run(way: str, *more: str) -> list[str]:
        return unmeasured(tmp_path / way, tiny_tokenizer_folder, "--run.steps", "3", "--run.save_every", "1", *more)

    assert main(run("one")) == 0
    groups = run("fsdp", "--run.parallel", "fsdp", "--run.shard_within", "2", "--run.micro_batch", "1")
    codes = several(4, lambda rank: main(run("ddp")), lambda rank: main(groups))
    said = capfd.readouterr().err
    assert codes == [0, 0, 0, 0], said
    for way in ("ddp", "fsdp"):
        assert said.count(f"training on 4 x cpu, {way}") == 1
        assert_equal_runs(tmp_path / "one", tmp_path / way, 3, val=False)
    resumed_at(tmp_path / "fsdp", tmp_path / "two", 1)
    assert pair(lambda rank: main(run("two", "--run.parallel", "fsdp", "--resume"))) == [0, 0]
    resumed_at(tmp_path / "two", tmp_path / "last", 2)
    assert main(run("last", "--resume")) == 0
    for way in ("two", "last"):
        assert_equal_runs(tmp_path / "one", tmp_path / way, 3, val=False)
    newest = all_checkpoints(tmp_path / "fsdp" / "checkpoints")[-1]
    written = [load_file(path) for path in (newest / "model").iterdir()]
    held = sum(weight.numel() for shard in written for weight in shard.values())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert held == sum(weight.numel() for weight in whole.values()), "of several copies one is written"


def refused(work: Callable[[int], int], capfd: pytest.CaptureFixture[str]) -> str:
    """What two processes say that leave together: one line."""
    capfd.readouterr()
    codes = pair(work, timeout=60)
    said = capfd.readouterr().err
    assert codes == [2, 2] and said.count("error:") == 1 and "Traceback" not in said, said
    return said


@pytest.mark.timeout(120)
def test_a_second_job_on_a_folder_is_refused_as_a_whole(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path / "out", tiny_tokenizer_folder)
    held, leave = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold() -> None:
        with only_writer(tmp_path / "out"):
            held.set()
            leave.wait(60)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    assert held.wait(60)
    assert f"is in use by process {holder.pid} on " in refused(lambda rank: main(words), capfd)
    tokenizer = "train tokenizer --data shapes --preset debug --run.batch_size 8 --run.device cpu --run.threads 1"
    lines = refused(lambda rank: main([*tokenizer.split(), "--out", str(tmp_path / "out")]), capfd)
    assert f"is in use by process {holder.pid} on " in lines
    leave.set()
    holder.join()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "mine.txt").touch()
    assert "is not empty: choose another folder" in refused(lambda rank: main(words), capfd)


@pytest.mark.timeout(120)
def test_data_that_differ_or_change_under_a_job(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_data(data: str, *more: str) -> list[str]:
        words = command(tmp_path / "out", tiny_tokenizer_folder, *more)
        words[words.index("--data") + 1] = data
        return words

    said = refused(lambda rank: main(on_data(f"shapes?seed={rank}")), capfd)
    assert "processes 0 and 1 see other pictures or captions" in said
    assert not (tmp_path / "out").exists()

    codes = tmp_path / "codes"
    encode = ["encode", "--data", "shapes@val?limit=40", "--shard_size", "8", "--device", "cpu"]
    assert main([*encode, "--image_tokenizer", str(tiny_tokenizer_folder), "--out", str(codes)]) == 0
    make = loop.make_loader

    def after_a_change(*arguments: object, **more: object) -> object:
        for shard in codes.glob("codes-*.safetensors"):  # the first process has read texts of all, the other none
            os.utime(shard, (0, 0))
        return make(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "make_loader", after_a_change)
    said = refused(lambda rank: main(on_data(str(codes))), capfd)
    assert "safetensors has changed since" in said and "repeat the command (training: with --resume)" in said


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run.batch_size", "7"], "run.batch_size is 7: choose a multiple of the number of processes (2)"),
        (["--run.parallel", "fsdp", "--run.shard_within", "3"], "run.shard_within is 3: choose a divisor"),
    ],
)
def test_what_does_not_fit_the_processes_is_said_once(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    codes = pair(lambda rank: main(command(tmp_path / "out", tiny_tokenizer_folder, *words)))
    said = capfd.readouterr().err
    assert codes == [2, 2] and said.count("error:") == 1 and f"error: {message}" in said and "Traceback" not in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("fate", "message"),
    [
        (lambda: time.sleep(6), "process 0 of 2 waited 0.05 minutes for the others at step 7: one of them hangs"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "process 0 of 2 lost another process at step 7"),
    ],
)
def test_a_process_that_waits_says_where(
    capfd: pytest.CaptureFixture[str], fate: Callable[[], None], message: str
) -> None:
    def work(rank: int) -> int:
        with join("cpu", 1, timeout_minutes=0.05) as world:
            world.wait()
            world.doing = "step 7"
            if rank == 1:
                fate()
                return 0
            world.sum(torch.ones(3))
        return 0

    def said(rank: int) -> int:
        try:
            return work(rank)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2

    assert pair(said)[0] == 2
    assert message in capfd.readouterr().err


@pytest.mark.timeout(60)
def test_a_process_that_keeps_the_addresses_may_hang(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before all have met. torch waits for its answers without end."""

    def hang(**values: object) -> None:
        me = os.getpid()
        if os.fork() == 0:
            time.sleep(8)
            os.kill(me, signal.SIGKILL)
            os._exit(0)
        os.kill(me, signal.SIGSTOP)

    def work(rank: int) -> int:
        if rank == 0:
            monkeypatch.setattr(dist, "init_process_group", lambda *_, **values: hang())
        with join("cpu", 1, timeout_minutes=0.05):
            return 0

    assert pair(work) == [-signal.SIGKILL, 2]
    assert "error: process 1 of 2 waited 0.05 minutes for the others at the start: one of" in capfd.readouterr().err


@pytest.mark.timeout(60)
def test_an_error_of_one_process_ends_all(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(rank: int, guilty: int) -> int:
        if rank == guilty:
            raise UserError("no")
        return rank

    def work(rank: int) -> int:
        with join("cpu", 1) as world:
            assert world.together(lambda: rank) == rank and world.from_main(lambda: 5) == 5
            for guilty, ask in ((1, world.together), (0, world.from_main)):
                try:
                    ask(lambda guilty=guilty: refuse(rank, guilty))
                except UserError:
                    assert rank == guilty
                except SystemExit as end:
                    assert rank != guilty and end.code == 2
                else:
                    return 3
        return 0

    assert pair(work) == [0, 0], capfd.readouterr().err
