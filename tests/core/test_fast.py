"""Backward passes written out, beside autograd's."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from unitok import cross_entropy
from unitok.config import TrunkConfig
from unitok.cross_entropy import LinearCrossEntropy
from unitok.ports import IdPort
from unitok.trunk.fast import Norm, Turn
from unitok.trunk.native import RMSNorm, rotate
from unitok.trunk.native import Transformer as Trunk
from unitok.trunk.rule import Visibility


def test_the_norm_and_its_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Norm.apply(x, weight, x.dtype, 1e-6), F.rms_norm(x, (8,), weight, eps=1e-6))
    assert torch.autograd.gradcheck(lambda a, b: Norm.apply(a, b, a.dtype, 1e-6), (x, weight))


def test_the_norm_of_zeros_has_no_nan() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    out = Norm.apply(x, torch.ones(8), torch.float32, 1e-6)
    out.sum().backward()
    assert not out.any() and torch.isfinite(x.grad).all()


def test_the_norm_comes_out_as_the_next_layer_takes_it() -> None:
    norm, x = RMSNorm(8), torch.randn(3, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
        expected = F.rms_norm(x, (8,), norm.weight, eps=1e-6).bfloat16()
        assert norm(x.detach()).dtype == torch.float32, "drawing computes as before"
    torch.testing.assert_close(out, expected)
    (of_x,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert of_x.dtype == torch.float32


def test_a_turn_and_its_gradient_are_those_of_rotate() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    turn = angles.cos(), angles.sin()
    torch.testing.assert_close(Turn.apply(x, *turn), rotate(x.detach(), turn))
    assert torch.autograd.gradcheck(lambda a: Turn.apply(a, *turn), (x,))


def test_training_and_drawing_compute_the_same() -> None:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=32, depth=2, heads=2, kv_heads=1))
    x, places, seen = torch.randn(2, 6, 32), torch.rand(2, 6, 3) * 6, Visibility("sdpa", causal=True)
    learned = trunk(x.clone().requires_grad_(), places, seen)
    with torch.no_grad():
        torch.testing.assert_close(learned, trunk(x, places, seen))


@pytest.mark.parametrize("piece", [1, 40, 2**22])
@pytest.mark.parametrize("ids", [slice(3, 20), (slice(3, 6), slice(20, 34))])
def test_cross_entropy_by_pieces_equals_that_of_all_logits(
    ids: slice | tuple[slice, ...], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(cross_entropy, "PIECE", piece)
    port, targets, weights = IdPort(40, 8, tied=False), torch.tensor([3, 5, 4, 5, 3]), torch.rand(5)
    found = []
    for least in (0, 2**40):
        monkeypatch.setattr("unitok.ports.PIECE", least)
        hidden = torch.linspace(-2, 2, 40).reshape(5, 8).requires_grad_()
        losses = port.losses(hidden, targets, ids)
        assert (type(losses.grad_fn).__name__ == "LinearCrossEntropyBackward") == (least == 0)
        gradients = torch.autograd.grad((losses * weights).sum(), [hidden, port.head.weight])
        found.append([losses.detach(), *gradients])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


def test_cross_entropy_in_bfloat16_is_as_near_as_torchs() -> None:
    torch.manual_seed(0)
    states, weight, targets = torch.randn(64, 32), torch.randn(300, 32), torch.randint(300, (64,))

    def gradients(precise: bool, own: bool) -> list[torch.Tensor]:
        dtype = torch.float32 if precise else torch.bfloat16
        h, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
        losses = (
            LinearCrossEntropy.apply(h, w, targets, dtype)
            if own
            else F.cross_entropy(F.linear(h.to(dtype), w.to(dtype)).float(), targets, reduction="none")
        )
        return [losses.detach(), *torch.autograd.grad(losses.sum(), [h, w])]

    right, torchs, ours = gradients(True, False), gradients(False, False), gradients(False, True)
    for exact, theirs, mine in zip(right, torchs, ours, strict=True):
        assert (mine - exact).norm() < 1.2 * (theirs - exact).norm() + 1e-6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    program = """
import resource, sys, torch
from unitok.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    for part in [torch.ones(2**20) for _ in range(20)]:
        del part
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("keep", "return")
    }
    assert faults["keep"] < 100 < 1000 < faults["return"], "pages that the system had to fill again"
