"""Compiled passes of drawing: the operations of a pass, fused into few kernels that are made for its form.

The form is that of `KVCache.fixed`: how many lanes, how they lie in the cache, and the shapes of what comes in. torch
compiles each form by itself, which takes as long as thousands of passes. So a form is compiled when it has come often,
and only if it is over one position a lane: passes over more come once a picture. What torch has compiled stays in its
own cache on disk (TORCHINDUCTOR_CACHE_DIR), for the next process.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch

from tokenizers_vq.errors import UserError

OFTEN = 256
"""Times that a form comes on a CPU before it is compiled. (On a GPU it has to be, before it is captured.)"""
MOST = 8
"""Forms that are compiled: on a CPU, each holds the weights once more."""
LIMITS = {"recompile_limit": 2**16, "accumulated_recompile_limit": 2**16}
"""Of torch, which counts the forms of all models together."""

Work = Callable[..., torch.Tensor]


class Compiled:
    """The compiled passes of a model.

    Args:
        device: of the model. On a CPU its weights become constants, which are laid out anew for the kernels that
            multiply by them: it must not change any more.

    Raises:
        UserError: nothing compiles for the device.
    """

    def __init__(self, device: torch.device) -> None:
        _check(device)
        self.on_cpu = device.type == "cpu"
        self.seen: Counter[Hashable] = Counter()
        self.ready: set[Hashable] = set()
        """Forms that are compiled."""
        self.given_up = False
        self.run: Work = torch.compile(_pass, dynamic=False, fullgraph=True)

    def takes(self, form: Hashable) -> bool:
        """Whether the next pass of a form is a compiled one."""
        if self.given_up:
            return False
        self.seen[form] += 1
        often = self.seen[form] > OFTEN or not self.on_cpu
        return form in self.ready or (often and len(self.ready) < MOST)

    def __call__(self, form: Hashable, work: Work, *given: Any) -> torch.Tensor:
        """What `work` computes; as it is, once something could not be compiled, which is said."""
        if form in self.ready:
            return self.run(work, *given)
        import torch._dynamo
        import torch._inductor.config

        try:
            # Constants have to be known as such when operations are noted, not only when they are compiled.
            with torch._inductor.config.patch(_settings(self.on_cpu)), torch._dynamo.config.patch(LIMITS):
                found = self.run(work, *given)
        except RuntimeError as error:
            self.given_up = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"a step of this model cannot be compiled, it runs as it is: {reason}", stacklevel=2)
            return work(*given)
        self.ready.add(form)
        return found


def packs(x: torch.Tensor) -> bool:
    """Whether operations on x are noted for a compiler that packs weights, which are constants, and joins operations
    by itself: it is given the plain ones."""
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def _pass(work: Work, *given: Any) -> torch.Tensor:
    return work(*given)


def _settings(on_cpu: bool) -> dict[str, Any]:
    """Of torch's compiler."""
    if not on_cpu:
        return {}
    # Its own kernels multiply few rows faster than those of oneDNN where the hardware has tiles.
    tiles = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
    return {"freezing": True, **(tiles if torch.cpu.get_capabilities().get("amx_bf16") else {})}


def _check(device: torch.device) -> None:
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UserError(
                "--compile finds no C++ compiler: install g++, name another in the environment (CXX), or leave it out"
            ) from None
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise UserError("--compile finds no triton for this GPU: install it, or leave --compile out")
