"""Cross-entropy by pieces, beside autograd's; freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from unitok import cross_entropy
from unitok.cross_entropy import LinearCrossEntropy
from unitok.ports import IdPort


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
        assert losses.grad_fn is not None and losses.shape == (5,)
        made_by = losses.grad_fn.next_functions[0][0]  # behind the slice that leaves the padding out
        assert (type(made_by).__name__ == "LinearCrossEntropyBackward") == (least == 0)
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
import resource, torch
from unitok.device import keep_freed_memory
def step():
    for part in [torch.ones(2**20) for _ in range(20)]:
        del part
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def least():
    step(), step()
    return min(faults() for _ in range(5))  # a system that is short of memory takes pages at any time
print(least())
keep_freed_memory()
print(least())
"""
    # Left alone, glibc may keep memory by the order in which it was asked for: here it must return it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    returned, kept = map(int, done.stdout.split())
    # Twenty tensors of 4 MiB are 40 pages where pages are large, 20,480 where they are small.
    assert kept * 2 < 40 <= returned, "pages that the system had to fill again"
