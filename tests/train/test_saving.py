"""Checkpoints that are written while the training goes on: the same to the bit as those that it waits for."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import pair
from safetensors.torch import load_file

from tokenizers_vq.errors import UserError
from unitok import device
from unitok.cli.main import main
from unitok.device import free_memory
from unitok.train import checkpoint
from unitok.train.checkpoint import all_checkpoints, check
from unitok.train.generator import GeneratorTrainee
from unitok.train.parallel import files, shards
from unitok.train.parallel.tensors import whole
from unitok.train.saving import saver
from unitok.train.saving.copies import Copies, shadow

PATIENCE = 60.0
"""Seconds that a test waits for the other thread."""


def written(out: Path) -> dict[str, bytes]:
    """What checkpoints hold, but for their settings and times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("step-*/**/*")
        if path.is_file() and path.name != "state.json"
    }


def before_writing(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, Path], None]) -> None:
    """Calls `act` with the name of a checkpoint before each of its files of weights is written."""
    write = checkpoint.write_weights

    def first(tensors: Any, path: Path, *more: Any) -> None:
        act(path.parent.name.split(".")[1], path)
        write(tensors, path, *more)

    monkeypatch.setattr(checkpoint, "write_weights", first)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_written_is_that_of_its_step(
    tmp_path: Path, run_toy: Any, toy_class: Any, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """Every write is slow, and takes place while steps change the state: checkpoints and models equal those of a run
    that waits, and no two are written at once."""
    exported: dict[bool, list[dict[str, torch.Tensor]]] = {}
    threads: set[threading.Thread] = set()
    busy = threading.Lock()

    def slow(name: str, path: Path) -> None:
        threads.add(threading.current_thread())
        with_lock = busy.acquire(blocking=False)
        assert with_lock, "two files are written at once"
        time.sleep(0.01)
        busy.release()

    before_writing(monkeypatch, slow)
    for beside in (False, True):
        toy = toy_class()
        models = exported[beside] = []
        toy.export = lambda folder, model, models=models: models.append(
            {name: tensor.clone() for name, tensor in model.state_dict().items()}
        )
        threads.clear()
        out = tmp_path / str(beside)
        run_toy(out, toy=toy, steps=7, save_every=2, log_every=5, keep=9, optim={"ema": ema}, async_save=beside)
        assert len(threads) == (2 if beside else 1)  # the last save is made by the training itself
    assert written(tmp_path / "True") == written(tmp_path / "False")
    names = [path.name for path in all_checkpoints(tmp_path / "True" / "checkpoints")]
    assert names == ["step-00000002", "step-00000004", "step-00000006", "step-00000007"]
    assert len(exported[True]) == len(exported[False]) == 4
    for mine, other in zip(exported[True], exported[False], strict=True):
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert not torch.equal(*(models["1.weight"] for models in exported[True][:2]))


def test_the_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, run_toy: Any, toy_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 3 waits for step 5 to begin; the save of step 6 waits for that write."""
    later, order = threading.Event(), []
    toy = toy_class()
    prepare = toy.prepare

    def begin(records: Any, step: int) -> Any:
        if step == 4:
            later.set()
        return prepare(records, step)

    def wait(name: str, path: Path) -> None:
        assert name != "step-00000003" or later.wait(PATIENCE), "the training waited for the write"
        order.append(name)

    toy.prepare = begin
    before_writing(monkeypatch, wait)
    run_toy(tmp_path / "out", toy=toy, steps=8, save_every=3, keep=9)
    assert order == sorted(order) and len(set(order)) == 3


def test_a_full_disk_ends_the_run_before_the_next_save(
    tmp_path: Path, run_toy: Any, toy_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str, path: Path) -> None:
        if path.name == "average.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")

    before_writing(monkeypatch, full)
    toy = toy_class()
    with pytest.raises(UserError, match=r"cannot write .*step-00000200: No space left on device; free some space"):
        run_toy(tmp_path / "out", toy=toy, steps=600, save_every=200, log_every=100)
    assert 200 <= len({name.split(":")[0] for name in toy.seen}) < 400
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    assert not (tmp_path / "out" / "model.pt").exists()


def test_the_next_save_says_what_kept_the_last_one(
    tmp_path: Path, run_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run ends before the error is known."""

    def full(name: str, path: Path) -> None:
        if name == "step-00000005":
            time.sleep(0.3)
            raise OSError(errno.ENOSPC, "No space left on device")

    before_writing(monkeypatch, full)
    with pytest.raises(UserError, match=r"cannot write .*step-00000005: No space left on device"):
        run_toy(tmp_path / "out", steps=6, save_every=5)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


@pytest.mark.parametrize("way", ["signal", "crash"])
def test_who_leaves_while_a_checkpoint_is_written_finishes_it(
    tmp_path: Path, run_toy: Any, toy_class: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    begun = threading.Event()
    toy = toy_class()
    prepare = toy.prepare

    def leave(records: Any, step: int) -> Any:
        if step == 2:
            assert begun.wait(PATIENCE)
            if way == "crash":
                raise RuntimeError("crash")
            os.kill(os.getpid(), signal.SIGTERM)
        return prepare(records, step)

    def slow(name: str, path: Path) -> None:
        begun.set()
        time.sleep(0.1)

    toy.prepare = leave
    before_writing(monkeypatch, slow)
    with pytest.raises(SystemExit if way == "signal" else RuntimeError):
        run_toy(tmp_path / "out", toy=toy, steps=9, save_every=2)
    found = all_checkpoints(tmp_path / "out" / "checkpoints")
    assert [path.name for path in found] == ["step-00000002"] and (tmp_path / "out" / "model.pt").exists()
    check(found[0])


def test_a_kill_while_a_checkpoint_is_written_loses_that_one_alone(
    tmp_path: Path, run_toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_toy(tmp_path / "whole", steps=8, save_every=2, keep=9)

    def die(name: str, path: Path) -> None:
        if (name, path.name) == ("step-00000004", "optimizer.safetensors"):
            path.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        before_writing(patch, die)
        process = multiprocessing.get_context("fork").Process(
            target=run_toy, args=(tmp_path / "out",), kwargs={"steps": 8, "save_every": 2, "keep": 9}
        )
        process.start()
        process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in all_checkpoints(tmp_path / "out" / "checkpoints")] == ["step-00000002"]
    rest = run_toy(tmp_path / "out", steps=8, save_every=2, keep=9, resume=True)
    assert {name: data for name, data in written(tmp_path / "out").items() if not name.count(".tmp/")} == written(
        tmp_path / "whole"
    )
    assert rest.losses() == whole.losses()


def test_without_room_for_a_copy_the_training_waits(
    tmp_path: Path, run_toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = set()
    before_writing(monkeypatch, lambda name, path: threads.add(threading.current_thread()))
    monkeypatch.setattr(saver, "free_memory", lambda: 20_000)
    run_toy(tmp_path / "out", steps=6, save_every=2)
    assert threads == {threading.main_thread()}
    said = capsys.readouterr().err
    assert said.count("run.async_save: a copy of the state takes 0.0 GB of the host's memory") == 1


def test_free_memory_is_that_of_the_least_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = free_memory()
    assert before is not None and 0 < before <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(device, "CONTROL", tmp_path)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 10\ninactive_file 1000\n")
    assert free_memory() == 5000
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_memory() or 0) > 5000


def test_a_shadow_has_other_tensors_and_the_same_rest() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    copies = Copies()
    first = copies.take("a", {"0.weight": model[0].weight, "1.running_mean": model[1].running_mean})
    twin = shadow(model, first)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    found = twin.state_dict()
    assert found.keys() == before.keys() and twin[2].weight is twin[0].weight
    kept = {"0.weight", "2.weight", "1.running_mean"}
    assert {name for name in before if torch.equal(found[name], before[name])} == kept
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    model[0].weight.data = torch.empty(0)  # as where a model is in shards
    emptied = shadow(model, first).state_dict()
    assert all(torch.equal(emptied[name], before[name]) for name in kept)
    model[0].weight.data = torch.ones(3, 3)
    again = copies.take("a", {"0.weight": model[0].weight})
    assert again["0.weight"] is first["0.weight"] and torch.equal(again["0.weight"], model[0].weight)


def generator(out: Path, tokenizer: Path, *more: str) -> list[str]:
    words = "train generator --data shapes --preset debug --run.batch_size 4 --run.log_every 1 --run.device cpu"
    words += " --run.precision fp32 --run.threads 1 --text_vocabulary 300 --trunk.width 32 --run.keep 9"
    words += " --run.steps 3 --run.save_every 1 --tasks.text_only.share 0 --tasks.image_to_text.share 0"
    return [*words.split(), "--image_tokenizer", str(tokenizer), "--out", str(out), *more]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files; a shard has those of the other process beside it."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        place = path.parent if path.name.startswith("shard-") else path
        for name, tensor in load_file(path).items():
            apart = path.name if tensor.ndim else ""  # nor is it said which process writes a single number
            found[f"{place.relative_to(folder)} {name} {apart}"] = tensor
    return found


@pytest.mark.timeout(300)
def test_two_processes_write_what_they_would_have_waited_for(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints in shards, and the whole model beside each, for which no process has more than one gathered tensor at
    a time."""
    export, copied = GeneratorTrainee.export, shards.Shards.copied

    def export_twice(self: GeneratorTrainee, folder: Path, model: Any) -> None:
        export(self, folder, model)
        export(self, folder / f"after-{len(list(folder.glob('after-*')))}", model)

    def one_at_a_time(self: shards.Shards, state: Any, copies: Copies) -> Any:
        learning = [weight for weight in self._whole.parameters() if weight.requires_grad]
        gathered: list[weakref.ref[torch.Tensor]] = []
        held = []

        def counted(tensor: Any) -> torch.Tensor:
            found = whole(tensor)
            gathered.append(weakref.ref(found))
            alive = [one for one in (ref() for ref in gathered) if one is not None]
            held.append(sum(one.numel() for one in (*alive, *learning)))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(shards, "whole", counted)
            now = copied(self, state, copies)
        largest = max(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        assert max(held) == largest and sum(held) > largest
        return now

    monkeypatch.setattr(GeneratorTrainee, "export", export_twice)
    monkeypatch.setattr(GeneratorTrainee, "draw", lambda self, path: None)
    monkeypatch.setattr(shards.Shards, "copied", one_at_a_time)

    def run(beside: bool) -> Callable[[int], int]:
        words = generator(tmp_path / str(beside), tiny_tokenizer_folder, "--run.parallel", "fsdp")
        words += ["--trunk.tied_head", "true", "--run.async_save", str(beside).lower()]
        return lambda rank: main(words)

    assert pair(run(False), run(True)) == [0, 0]
    mine, other = tensors(tmp_path / "True"), tensors(tmp_path / "False")
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    for step in ("after-0", "after-1", "after-2", "checkpoints/step-00000001", "checkpoints/step-00000002"):
        assert any(name.startswith(step) for name in mine)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_what_one_process_cannot_write_ends_both(
    tmp_path: Path,
    tiny_tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """In whole copies it is the first that writes; in shards the disk of either may be full."""
    guilty = 0 if way == "ddp" else 1
    monkeypatch.setattr(GeneratorTrainee, "draw", lambda self, path: None)

    def work(rank: int) -> int:
        def full(*_: Any) -> None:
            raise UserError("cannot write this: No space left on device")

        if rank == guilty:
            monkeypatch.setattr(checkpoint, "write_weights", full)
            monkeypatch.setattr(files, "check_finite", full)
        words = generator(tmp_path / "out", tiny_tokenizer_folder, "--run.parallel", way, "--run.steps", "6")
        return main([*words, "--run.save_every", "3"])

    capfd.readouterr()
    assert pair(work) == [2, 2]
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and "cannot write this: No space left on device" in said, said
    assert "Traceback" not in said and not list((tmp_path / "out" / "checkpoints").iterdir())
    assert "step 6/" not in said
