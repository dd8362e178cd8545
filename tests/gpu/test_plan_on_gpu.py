"""On a GPU: what a training takes against what `unitok plan` said it would."""

from __future__ import annotations

import gc

import pytest
import torch
from planning import near, wanted
from torch import nn

from unitok.device import pick_device
from unitok.model import UniTok
from unitok.train.config import OptimConfig
from unitok.train.loop import recompute_activations
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.plan import sums
from unitok.train.plan.model import batch_of, build
from unitok.train.plan.passes import measure
from unitok.train.plan.sums import Training, Way

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

ROWS, TOKENS = 16, 32


def warm_up(device: torch.device) -> None:
    """What libraries take of the allocator when they are first called, and keep, is no part of a plan: workspaces of
    both threads that multiply matrices, the one of the backward pass among them."""
    layer = nn.Linear(64, 64, device=device)
    for bf16 in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            layer(torch.randn(64, 64, device=device, requires_grad=True)).sum().backward()
    torch.cuda.synchronize(device)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_a_training_takes_what_was_planned(bf16: bool, checkpointing: bool) -> None:
    """The peak of torch's allocator over two steps of two micro-batches: some gigabytes, so that a workspace more or
    less does not decide."""
    device, asked = pick_device("cuda"), wanted("small", tokenizer="base")
    planned, same = build(asked), build(asked)  # the first is emptied by being followed
    batch, twice = (batch_of(planned, "text_to_image", rows, TOKENS) for rows in (ROWS, 2 * ROWS))
    held = measure(planned, batch, twice, bf16, True, checkpointing)
    needs = sums.training(sums.count(planned), held, Way("one", 1, 1), Training(2 if bf16 else 4))
    if sums.total(needs) * 1.2 > torch.cuda.mem_get_info(device)[0]:
        pytest.skip(f"needs {sums.total(needs) / 1e9:.1f} GB, and the GPU has less free")

    warm_up(device)
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model = UniTok(same.config, same.image_tokenizer, same.text_tokenizer).to(device).train()
    if checkpointing:
        recompute_activations(model)
    optimizers, average, given = build_optimizers(model, OptimConfig()), AveragedWeights(model, 0.999), batch.to(device)
    for step in range(2):
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                losses = model(given).sum()
            losses.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(step)
    taken = torch.cuda.max_memory_allocated(device) - before
    assert near(sums.total(needs), taken), (needs, taken)
