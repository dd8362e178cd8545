from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage import weights
from unitok.config import TrunkConfig
from unitok.ports import IdPort
from unitok.processes.world import World
from unitok.train.checkpoint import TrainState, all_checkpoints, keep_newest, load, newest_whole, save
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.parallel.files import write_shards
from unitok.trunk.native import Transformer


def make_state(seed: int = 0, width: int = 32) -> TrainState:
    torch.manual_seed(seed)
    ids = IdPort(50, width, tied=True)
    model = torch.nn.ModuleDict({"ids": ids, "trunk": Transformer(TrunkConfig(width=width, depth=1, heads=2))})
    return TrainState(model, AveragedWeights(model, 0.9), build_optimizers(model, OptimConfig()), 0, {})


def take_steps(state: TrainState, number: int) -> None:
    for _ in range(number):
        for index, weight in enumerate(state.model.parameters()):
            generator = torch.Generator().manual_seed(state.step * 1000 + index)
            weight.grad = torch.randn(weight.shape, generator=generator)
        for optimizer in state.optimizers:
            optimizer.step()
        state.average.update(state.step)
        state.step += 1
        state.sums = {"loss": torch.tensor(state.step, dtype=torch.double)}


def test_a_loaded_state_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    """Tied weights, moments and averages included."""
    state, again = make_state(), make_state(seed=1)
    take_steps(state, 3)
    load(save(tmp_path, state, {"settings": {}}, keep=1), again)
    assert again.step == 3 and torch.equal(again.sums["loss"], state.sums["loss"])
    take_steps(state, 2)
    take_steps(again, 2)
    assert all(torch.equal(x, y) for x, y in zip(state.model.parameters(), again.model.parameters(), strict=True))
    assert all(torch.equal(x, again.average.tensors[name]) for name, x in state.average.tensors.items())
    assert again.model["ids"].head.weight is again.model["ids"].embedding.weight


def test_moments_keep_the_memory_format_of_their_weight(tmp_path: Path) -> None:
    """Safetensors forgets strides; the fused kernel reads weight and moments in the order of memory."""

    def make() -> TrainState:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        return TrainState(model, AveragedWeights(model, 0.9), build_optimizers(model, OptimConfig()), 0, {})

    state, again = make(), make()
    take_steps(state, 3)
    load(save(tmp_path, state, {}, keep=1), again)
    take_steps(state, 1)
    take_steps(again, 1)
    assert torch.equal(state.model.weight, again.model.weight)


def test_old_checkpoints_go(tmp_path: Path) -> None:
    state = make_state()
    for _ in range(4):
        take_steps(state, 5)
        save(tmp_path, state, {}, keep=2)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    take_steps(state, 1)
    save(tmp_path, state, {}, keep=2)
    take_steps(state, 1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*step-00000002: No space left on device; free some space"):
        save(tmp_path, state, {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    state = make_state()
    take_steps(state, 1)
    path = save(tmp_path, state, {}, keep=1)
    with pytest.raises(
        UserError, match=r"model.safetensors has .* instead of .*: the checkpoint is damaged or of another"
    ):
        load(path, make_state(width=64))
    (path / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"optimizer.safetensors cannot be read"):
        load(path, make_state())
    (path / "state.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match=r"has format 'other', this version reads 'unitok-checkpoint-2'"):
        load(path, make_state())


def spoil(path: Path, place: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model", "average", "optimizer", "sums", "state", "kept"])
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, file: str) -> None:
    state = make_state()
    for _ in range(2):
        take_steps(state, 1)
        save(tmp_path, state, {}, keep=2, fill=lambda draft: (draft / "kept.txt").write_text("words"))
    old, new = all_checkpoints(tmp_path)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == new and not said
    spoil(next(new.glob(f"{file}.*")))
    assert newest_whole(tmp_path, said.append) == old
    assert len(said) == 1 and f"checkpoint {new} is damaged" in said[0] and f"going on from {old}" in said[0]
    shutil.rmtree(old)
    with pytest.raises(UserError, match=r"is damaged .*no other checkpoint in .* is whole: restore it, or start again"):
        newest_whole(tmp_path, said.append)


def in_shards(draft: Path, parts: Any) -> dict[str, str]:
    return write_shards(draft, parts, World(torch.device("cpu")))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process writes shards too
@pytest.mark.parametrize("write", [None, in_shards])
def test_a_checkpoint_that_is_cut_anywhere_is_passed_over_and_said(tmp_path: Path, write: Any) -> None:
    """At every byte of its JSON, at every 97th of its tensors, and at the last one."""
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 16)
    state = TrainState(model, AveragedWeights(model, 0.9), build_optimizers(model, OptimConfig()), 0, {})
    for _ in range(2):
        take_steps(state, 1)
        save(tmp_path, state, {"settings": {"data": "shapes"}}, keep=2, write_shards=write)
    old, new = all_checkpoints(tmp_path)
    files = [path for path in sorted(new.rglob("*")) if path.is_file()]
    assert len(files) == 5
    said: list[str] = []
    for path in files:
        data = path.read_bytes()
        whole = len(data.rstrip()) if path.suffix == ".json" else len(data)  # without its last line break it is whole
        for size in sorted({*range(0, whole, 1 if path.suffix == ".json" else 97), whole - 1}, reverse=True):
            os.truncate(path, size)
            said.clear()
            assert newest_whole(tmp_path, said.append) == old, f"{path} cut to {size} bytes"
            assert len(said) == 1 and f"checkpoint {new} is damaged" in said[0] and f"going on from {old}" in said[0]
        path.write_bytes(data)
    said.clear()
    assert newest_whole(tmp_path, said.append) == new and not said


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_never_pushes_out_a_whole_one(tmp_path: Path, keep: int) -> None:
    """A run that went back from a damaged step 3 to step 1 or 2 keeps what it writes next."""
    state = make_state()
    for _ in range(3):
        take_steps(state, 1)
        save(tmp_path, state, {}, keep=3)
    spoil(all_checkpoints(tmp_path)[-1] / "model.safetensors")
    state.step = 2
    path = save(tmp_path, state, {}, keep=keep)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == path and len(said) == 1
    keep_newest(tmp_path, 2, keep)
    assert path in all_checkpoints(tmp_path)
    state.step = 3
    assert newest_whole(tmp_path, said.append) == path and save(tmp_path, state, {}, keep=keep).name == "step-00000003"
    assert len(all_checkpoints(tmp_path)) == keep and newest_whole(tmp_path, said.append) == tmp_path / "step-00000003"


def test_a_checkpoint_without_digests_still_opens(tmp_path: Path) -> None:
    state, again = make_state(), make_state(seed=1)
    take_steps(state, 1)
    path = save(tmp_path, state, {}, keep=1)
    about = json.loads((path / "state.json").read_text())
    del about["files"]
    (path / "state.json").write_text(json.dumps(about))
    assert newest_whole(tmp_path, print) == path
    load(path, again)
    assert torch.equal(state.model["trunk"].norm.weight, again.model["trunk"].norm.weight)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    state = make_state()
    take_steps(state, 1)
    path = save(tmp_path, state, {}, keep=2)
    with torch.no_grad():
        state.average.tensors["trunk.norm.weight"][3] = float("nan")
    state.step = 2
    with pytest.raises(UserError, match=r"average.safetensors is not written: trunk.norm.weight has NaN"):
        save(tmp_path, state, {}, keep=2)
    assert all_checkpoints(tmp_path) == [path]
    moments = load_file(path / "optimizer.safetensors")
    name = next(name for name in moments if name.endswith("exp_avg"))
    moments[name].view(-1)[0] = float("inf")
    save_file(moments, path / "optimizer.safetensors")
    with pytest.raises(UserError, match=rf"holds NaN or infinity: {name} has infinite values"):
        load(path, make_state())


def test_moments_of_any_name_come_back_and_strange_ones_are_refused(tmp_path: Path) -> None:
    """Whatever an optimizer keeps for a weight is its state; what belongs to no weight is an error, not dropped."""
    state, again = make_state(), make_state(seed=1)
    take_steps(state, 1)
    weight = state.model["trunk"].norm.weight
    state.optimizers[0].state[weight]["max_exp_avg_sq"] = torch.full_like(weight, 2.0)
    path = save(tmp_path, state, {}, keep=2)
    load(path, again)
    assert torch.equal(
        again.optimizers[0].state[again.model["trunk"].norm.weight]["max_exp_avg_sq"], torch.full_like(weight, 2.0)
    )
    moments = load_file(path / "optimizer.safetensors")
    save_file({**moments, "nobody.exp_avg": torch.zeros(1)}, path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"state of the optimizer for weights that there are not: \['nobody'\]"):
        load(path, make_state())
