"""What a plan says, and what torch's allocator hands out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from unitok.reader.config import NO_READER
from unitok.train.plan.model import Wanted
from unitok.tuning.config import NO_LORA

# The first backward pass of a process starts a thread for each device, and a plan for GPUs makes torch believe in one;
# with such threads no process can be forked for another test. So the first pass is made here, before any plan.
torch.zeros(1, requires_grad=True).sum().backward()


def wanted(model: object, **more: Any) -> Wanted:
    given = {"tokenizer": None, "objective": "next_token", "text_vocabulary": None, "reader": NO_READER}
    return Wanted(str(model), **{**given, "trainable": [], "lora": NO_LORA, **more})


def most_of(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has handed out at once for a work, beside what was there before."""
    gc.collect()  # what is let go of in the work counts as given back by it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    found = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = most = 0
    for event in sorted((one for one in found if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= 0.1 * wanted
