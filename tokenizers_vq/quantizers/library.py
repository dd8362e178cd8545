"""vector-quantize-pytorch, imported without einx.

The library imports einx, einx imports torch's compiler and sympy, and that takes as long as importing torch. Of what we
call, only the training of `simvq` uses einx. So it is imported when it is first called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module whose functions import it when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)


@contextmanager
def _later(name: str) -> Iterator[None]:
    """What is imported here gets a module's functions before the module itself is imported."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = _Later(name)
    try:
        yield
    finally:
        del sys.modules[name]


with _later("einx"):
    import vector_quantize_pytorch as library
    from vector_quantize_pytorch import vector_quantize_pytorch as library_vq

__all__ = ["library", "library_vq"]
