"""`unitok export`. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tokenizers_vq.errors import UserError

from ..exporting import export_to
from .importing import holds_more_than_a_lock

Program = Literal["diffusers", "transformers", "onnx"]


def export(*, model: str, to: Program, out: Path) -> None:
    """Write a model or its tokenizer in the form of another program, which opens the folder without code of unitok.

    diffusers: a tokenizer as VQModel. transformers: the trunk of a model as a causal language model, for texts. onnx:
    a tokenizer as two graphs, encoder.onnx and decoder.onnx. docs/interchange.md says what is the same there, and for
    which models.

    Args:
        model: Folder of a tokenizer or of a model, or hf:owner/name. Of a model, diffusers and onnx take the tokenizer.
        to: The program.
        out: New folder for what the program opens.

    Example:
        unitok export runs/tokenizer --to diffusers --out runs/vq_model
        unitok export runs/generator --to transformers --out runs/language_model
        unitok export runs/generator --to onnx --out runs/onnx
    """
    if holds_more_than_a_lock(out):
        raise UserError(f"--out {out} is not empty: choose a new folder")
    made = export_to(to, model)
    made.write(out)
    print(f"{made.opens}: {out}")
    print(f"the same there: {made.holds}")
