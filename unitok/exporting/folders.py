"""How the folder of an export is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.storage.files import replace_parts, write_json
from tokenizers_vq.storage.weights import write_weights

FORMAT = {"format": "pt"}
"""What transformers and diffusers look for in the header of a file of weights."""


@dataclass(frozen=True)
class Export:
    """A model in the form of another program."""

    opens: str
    """What opens its folder."""
    holds: str
    """What is the same in both programs."""
    fill: Callable[[Path], None]
    """Writes its files into an empty folder."""

    def write(self, out: Path) -> None:
        """Writes the folder, whole or not at all. Raises UserError where it cannot be written, or a weight is not
        finite."""
        replace_parts(out, self.fill)


def files(weights_file: str, weights: Mapping[str, Tensor], values: Mapping[str, Any]) -> Callable[[Path], None]:
    """What `Export.fill` is for a file of weights and JSON files, by their names."""

    def fill(folder: Path) -> None:
        write_weights(weights, folder / weights_file, FORMAT)
        for name, content in values.items():
            write_json(folder / name, content)

    return fill
