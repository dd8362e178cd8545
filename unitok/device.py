"""Where arithmetic happens and how precisely: decided here for training, sampling and measuring."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.tf32 import forbid_tf32

Precision = Literal["auto", "bf16", "fp32"]


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device named by `auto` (a GPU where there is one), `cpu` or `cuda`, for one process of a machine."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {name!r}: choose auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU: choose cpu, or check the driver (nvidia-smi)")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}: "
            "start at most one process per GPU (--nproc-per-node), or choose the device cpu"
        )
    forbid_tf32()
    return torch.device("cuda", local_rank)


def check_memory(parameters: int, numbers: int, what: str, frozen: bool = False) -> None:
    """Raises UserError when training cannot fit into the memory of this machine and its GPUs, by a low estimate.

    Args:
        parameters: each is held four times in fp32: itself, its gradient and the two averages of the optimizer.
        numbers: of one batch, in fp32.
        what: what is trained, for the message.
        frozen: most parameters do not learn, and are held once.
    """
    needed = (4 if frozen else 16) * parameters + 4 * numbers
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    has += sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    if needed > has:
        raise UserError(
            f"{what} with {parameters:,} parameters and batches of {numbers:,} numbers needs at least "
            f"{needed / 1e9:,.0f} GB, this machine has {has / 1e9:,.0f}: choose smaller sizes, or a smaller "
            "run.batch_size or run.micro_batch"
        )


def bf16_supported(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself. (On a CPU without it, bf16 is emulated and slow.)"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = torch.cpu.get_capabilities()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 autocast, or none; `auto` is bf16 where the hardware has it. Never fp16: on CPUs it is hundreds of times
    slower."""
    if precision == "bf16" or (precision == "auto" and bf16_supported(device)):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The type that a linear layer computes in for x now: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def learns_on_cpu(x: torch.Tensor) -> bool:
    """Whether x is part of a training step on a CPU, where backward passes written out pay."""
    return x.requires_grad and x.device.type == "cpu"


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt's parameters (malloc.h of glibc)."""


def keep_freed_memory() -> None:
    """Lets this process keep memory that tensors on the CPU have freed, where the C library is glibc.

    A training step frees what the next one asks for. By default glibc returns it to the system, which has to fill it
    with zeros before it comes back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        # glibc before 2.35 takes no more than 32 MiB.
        if not mallopt(MMAP_THRESHOLD, 2**30):
            mallopt(MMAP_THRESHOLD, 2**25)


def return_freed_memory() -> None:
    """Gives memory that is kept so back to the system. Steps of many shapes leave holes that no later tensor fits into,
    and what is kept grows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def resident_memory() -> int:
    """Bytes of the host's memory that this process has now; 0 where the system does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


CONTROL = Path("/sys/fs/cgroup")
"""Where Linux says what a container or a job may use (cgroup v2)."""


def free_memory() -> int | None:
    """Bytes of the host's memory that can still be had: of the machine, and of each control group that this process is
    in, the least of them. None where the system does not say."""
    found = []
    with suppress(OSError, ValueError):
        found.append(_table("/proc/meminfo")["MemAvailable:"] * 1024)
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        for group in (CONTROL / path, *(CONTROL / path).parents):
            limit = group / "memory.max"
            if group.is_relative_to(CONTROL) and limit.exists() and limit.read_text().strip() != "max":
                cached = _table(group / "memory.stat")["inactive_file"]  # which the system gives away when asked
                found.append(int(limit.read_text()) - int((group / "memory.current").read_text()) + cached)
    return min(found, default=None)


def _table(path: str | Path) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
