"""A tokenizer as two graphs in ONNX files, for programs without torch: pictures to codes, codes to pictures.

They take any number of pictures of the tokenizer's size. torch writes them with the packages of the extra `[onnx]`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer, find_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import write_json

from .folders import Export

ENCODER, DECODER, FACTS = "encoder.onnx", "decoder.onnx", "config.json"


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) float32 in [-1, 1] to codes (B, L) int64."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return self.tokenizer._encode(images)


class Decoder(nn.Module):
    """Codes (B, L) int64 to pictures (B, 3, H, W) float32, about [-1, 1], not clamped."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.tokenizer, self.layout = tokenizer, tokenizer.layout

    def forward(self, codes: Tensor) -> Tensor:
        return self.tokenizer._decode(codes, self.layout)


def export(name: str | Path) -> Export:
    """The graphs of the tokenizer in a folder, of its own or of a model.

    Raises:
        UserError: no tokenizer, no package that writes ONNX, or a network that cannot be written as a graph.
    """
    return graphs(find_tokenizer(name))


def graphs(tokenizer: ImageTokenizer) -> Export:
    """See `export`."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("ONNX files are written by the package onnxscript: pip install unitok-vq[onnx]") from None
    layout, (height, width) = tokenizer.layout, tokenizer.image_size
    facts = {
        "image_size": [height, width],
        "grids": [list(grid) for grid in layout.scales],
        "codes": layout.length,
        "codebook_size": tokenizer.codebook_size,
        "fingerprint": tokenizer.fingerprint(),
    }

    def fill(folder: Path) -> None:
        device = next(tokenizer.parameters()).device
        images = torch.zeros(2, 3, height, width, device=device)  # of one picture the graph would be for one alone
        codes = torch.tensor([first for (first, _), n in _books(tokenizer) for _ in range(n)], device=device)
        _write(Encoder(tokenizer), images, "images", "codes", folder / ENCODER)
        _write(Decoder(tokenizer), codes.repeat(2, 1), "codes", "images", folder / DECODER)
        write_json(folder / FACTS, facts)

    return Export("onnxruntime", "codes and pictures (within 1e-4)", fill)


def _books(tokenizer: ImageTokenizer) -> list[tuple[tuple[int, int], int]]:
    """Of each grid: its codebook, and the number of its codes."""
    layout = tokenizer.layout
    books = layout.books or ((0, tokenizer.codebook_size),) * len(layout.scales)
    return list(zip(books, layout.lengths, strict=True))


def _write(module: nn.Module, example: Tensor, given: str, made: str, path: Path) -> None:
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                input_names=[given],
                output_names=[made],
                dynamic_shapes=({0: torch.export.Dim("pictures")},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except UserError:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # it raises what its many parts do
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"this tokenizer cannot be written as a graph of ONNX ({said}): use it from Python") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words on its own progress and on what changes in its next versions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
