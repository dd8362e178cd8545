"""Models in the forms of other programs, and on the hub. Free of torch until one is written."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .folders import Export

PROGRAMS = {
    "diffusers": ".vq_model",
    "transformers": ".language",
    "onnx": ".graphs",
}
"""Program -> the module whose `export` makes a folder of ours one of its own."""


def export_to(program: str, name: str | Path) -> Export:
    """The model or tokenizer in a folder, in the form of a program of `PROGRAMS`.

    Raises:
        UserError: no such folder, or a model that the program cannot compute.
    """
    found: Export = importlib.import_module(PROGRAMS[program], __name__).export(name)
    return found
