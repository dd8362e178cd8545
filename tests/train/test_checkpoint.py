from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.config import TrunkConfig
from unitok.train import checkpoint
from unitok.train.checkpoint import TrainState, all_checkpoints, load, save
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.transformer import Transformer


def make_state(seed: int = 0, width: int = 32) -> TrainState:
    torch.manual_seed(seed)
    model = Transformer(TrunkConfig(width=width, depth=1, heads=2, tied_head=True), 50)
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
    for a, b in ((state.model, again.model), (state.average.model, again.average.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert again.model.head.weight is again.model.embedding.weight


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

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        UserError, match=r"step-00000002 cannot be written \(No space left on device\): free some space"
    ):
        save(tmp_path, state, {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    state = make_state()
    take_steps(state, 1)
    path = save(tmp_path, state, {}, keep=1)
    with pytest.raises(UserError, match=r"step-00000001 does not fit this run: .*size mismatch"):
        load(path, make_state(width=64))
    (path / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"does not fit this run"):
        load(path, make_state())
    (path / "state.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match=r"has format 'other', this version reads 'unitok-checkpoint-1'"):
        load(path, make_state())
