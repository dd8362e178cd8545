from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from unitok.config import TrunkConfig
from unitok.ports import IdPort
from unitok.train import optim
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers, decay_groups, learning_rate, learning_tensors
from unitok.trunk.native import Transformer


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    config = OptimConfig(lr=2.0, min_lr=0.2, warmup_steps=10)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[:11][9] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert rates[99] == pytest.approx(0.2)
    assert rates[54] == pytest.approx((2.0 + 0.2) / 2, rel=0.02)  # half-way down the cosine


def test_a_run_shorter_than_its_warm_up_still_ends_at_the_peak() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=100)
    assert [learning_rate(step, 4, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_norms_biases_embeddings_and_codebooks_do_not_decay() -> None:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codebook = nn.Parameter(torch.ones(4, 2))
            self.linear = nn.Linear(2, 2)
            self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)

    decayed, kept = decay_groups(Coded())
    assert set(decayed) == {"linear.weight"} and set(kept) == {"codebook", "linear.bias"}
    for tied in (False, True):
        transformer = nn.ModuleDict(
            {"ids": IdPort(50, 32, tied), "trunk": Transformer(TrunkConfig(width=32, depth=1, heads=2))}
        )
        decayed, kept = decay_groups(transformer)
        assert "ids.embedding.weight" in kept and not any("norm" in name for name in decayed)
        assert ("ids.head.weight" in decayed) == (not tied)
        assert len({*decayed.values(), *kept.values()}) == len(list(transformer.parameters()))


def test_decay_shrinks_matrices_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    (optimizer,) = build_optimizers(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(model[0].weight.data, before["0.weight"] * 0.95)
    assert torch.equal(model[0].bias, before["0.bias"]) and torch.equal(model[1].weight, before["1.weight"])


def test_muon_moves_the_matrices_of_the_blocks_alone() -> None:
    transformer = Transformer(TrunkConfig(width=32, depth=2, heads=2))
    by_blocks, adamw = build_optimizers(transformer, OptimConfig(lr=0.01, muon=True, weight_decay=0.1))
    by_muon = {id(weight) for group in by_blocks.param_groups for weight in group["params"]}
    names = {name for name, weight in transformer.named_parameters() if id(weight) in by_muon}
    parts = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
    assert names == {f"blocks.{block}.{part}.weight" for block in range(2) for part in parts}
    rest = [weight for group in adamw.param_groups for weight in group["params"]]
    assert len(rest) + len(names) == len(list(transformer.parameters()))
    with pytest.raises(UserError, match=r"optim.muon is true, but this model has no transformer blocks and no levels"):
        build_optimizers(nn.Linear(2, 2), OptimConfig(muon=True))


def test_muon_moves_the_kernels_of_a_network_without_blocks() -> None:
    tokenizer = build_tokenizer(TOKENIZER_PRESETS["debug"]())
    by_levels, adamw = build_optimizers(tokenizer, OptimConfig(lr=0.01, muon=True))
    moved = {id(weight) for group in by_levels.param_groups for weight in group["params"]}
    names = {name for name, weight in tokenizer.named_parameters() if id(weight) in moved}
    assert {"encoder.down.0.block.0.conv1.weight", "decoder.mid.block_1.conv2.weight"} <= names
    assert "decoder.up.1.upsample.conv.weight" in names and all(name.endswith("weight") for name in names)
    assert not any("conv_in" in name or "conv_out" in name or "quant" in name or "norm" in name for name in names)
    rest = [weight for group in adamw.param_groups for weight in group["params"]]
    assert len(rest) + len(names) == len(list(tokenizer.parameters()))


def test_a_kernel_moves_as_the_matrix_that_it_is() -> None:
    torch.manual_seed(0)
    kernels = [nn.Parameter(torch.randn(shape)) for shape in ((8, 4, 3, 3), (8, 4, 3, 3), (64, 4, 1, 1))]
    matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
    settings = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizer, reference = optim.StackedMuon(kernels, **settings), torch.optim.Muon(matrices, **settings)
    before = [matrix.detach().clone() for matrix in matrices]
    for kernel, matrix in zip(kernels, matrices, strict=True):
        kernel.grad = torch.randn(kernel.shape)
        matrix.grad = kernel.grad.flatten(1).clone()
    optimizer.step()
    reference.step()
    for kernel, matrix, old in zip(kernels, matrices, before, strict=True):
        assert (kernel.flatten(1) - matrix).norm() <= 0.02 * (matrix - old).norm()


def test_a_step_of_muon_is_orthogonal_and_as_long_as_one_of_adamw() -> None:
    transformer = Transformer(TrunkConfig(width=32, depth=1, heads=2))
    optimizer, _ = build_optimizers(transformer, OptimConfig(lr=0.01, muon=True, weight_decay=0.0))
    weight = transformer.blocks[0].attention.out.weight
    before = weight.detach().clone()
    left, _, right = torch.linalg.svd(torch.randn(32, 32))
    weight.grad = left @ torch.diag(torch.linspace(0.2, 10, 32)) @ right
    optimizer.step()
    step = before - weight.detach()
    values = torch.linalg.svdvals(step) / (0.2 * 32**0.5 * 0.01)
    assert values.min() > 0.3 and values.max() < 1.4, "five Newton-Schulz steps bring singular values near 1"
    assert 0.6 < step.square().mean().sqrt() / (0.2 * 0.01) < 1.2, "0.2 is what AdamW's steps measure"


@pytest.mark.parametrize("stack", [1, 2**20])
def test_muon_over_stacks_takes_the_steps_of_torchs(stack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "STACK", stack)
    torch.manual_seed(0)
    shapes = [(96, 32), (32, 32), (32, 96), (96, 32), (64, 32), (32, 32), (16, 8)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    settings = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizer, reference = optim.StackedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        before = [weight.detach().clone() for weight in theirs]
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            # A weight without a gradient stays where it is, and keeps its momentum.
            gradient = None if step == 2 and number == 3 else torch.randn(mine.shape)
            mine.grad, other.grad = gradient, None if gradient is None else gradient.clone()
        optimizer.step()
        reference.step()
        for mine, other, old in zip(ours, theirs, before, strict=True):
            assert (mine - other).norm() <= 0.02 * (other - old).norm(), "bfloat16 rounds otherwise in another order"
            mine.data.copy_(other)
    state = reference.state_dict()
    optimizer.load_state_dict(state)  # a training may go on on the other kind of device
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]


def test_the_average_is_the_recurrence_written_out() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("codes", torch.zeros(2))
    model.register_buffer("ready", torch.tensor(False))
    average = AveragedWeights(model, 0.5)
    expected, codes = model.weight.item(), 0.0
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(step)
            model.codes.fill_(2 * step)
            model.ready.fill_(step > 3)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        codes = decay * codes + (1 - decay) * 2 * step
    assert average.tensors["weight"].item() == pytest.approx(expected)
    assert average.tensors["codes"].tolist() == pytest.approx([codes, codes])
    assert average.tensors["ready"].item() is True
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected) and model.weight.requires_grad
    assert model.weight.item() == 19 and average.tensors["weight"].item() == pytest.approx(expected)


def test_the_average_of_a_tokenizer_follows_its_codebook() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS["debug"]()).train()
    average = AveragedWeights(tokenizer, 0.9)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    for _ in range(3):
        tokenizer(images)  # k-means starts the codebook, then it follows the latents
    for step in range(200):
        average.update(step)
    state = tokenizer.state_dict()
    assert average.tensors.keys() == state.keys()
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-3, atol=1e-4)


def test_what_is_frozen_is_neither_averaged_nor_saved() -> None:
    """A frozen tokenizer inside a model: neither its weights nor its codebook."""
    frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
    model = nn.ModuleDict({"learns": nn.BatchNorm1d(2), "frozen": frozen, "codebook": nn.Module()})
    model["codebook"].register_buffer("codes", torch.zeros(3))
    names = set(learning_tensors(model))
    assert names == {
        *(f"learns.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "codebook.codes",
    }


def test_without_averaging_the_average_is_the_model() -> None:
    model = nn.Linear(1, 1)
    average = AveragedWeights(model, 0.0)
    average.update(0)
    with average.in_place(), torch.no_grad():
        model.weight.fill_(3.0)
    assert average.tensors["weight"].item() == model.weight.item() == 3.0
