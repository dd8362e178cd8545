"""Where the time of our side of a row goes: the share of each kind of operation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import ours
from rows import Row

KINDS = {
    "linear layers": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "aten::mkldnn_linear"),
    "attention": ("attention", "aten::bmm", "aten::baddbmm", "aten::_softmax", "attend_to_first"),
    "optimizer": ("_fused_adamw_",),
    "casts, copies": ("aten::copy_", "aten::cat", "aten::index", "aten::gather", "aten::fill_", "aten::index_add_"),
    "compiled": ("CompiledFunction", "CompiledFxGraph", "Torch-Compiled", "TorchDynamo"),
}
"""Kind of work -> parts of the names of its operations; others are named "other operations"."""
OTHER, PYTHON = "other operations", "between operations"


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Kind -> share of the time by the clock. Operations are watched, which takes time: small ones look larger."""
    from torch.profiler import ProfilerActivity, profile

    work()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    whole = time.perf_counter() - started
    found: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), OTHER)
        found[kind] += event.self_cpu_time_total / 1e6
    found[PYTHON] = max(0.0, whole - sum(found.values()))
    return {kind: seconds / whole for kind, seconds in found.most_common()}


def show(rows: Sequence[Row]) -> None:
    """Prints the shares of every form of our side of rows."""
    for row in rows:
        for objective in row.objectives:
            for form, work in ours.WORKS[row.work](row, objective).items():
                parts = ", ".join(f"{kind} {share:.0%}" for kind, share in shares(work).items() if share >= 0.005)
                print(f"{row.name(objective)}, {form}: {parts}", flush=True)
