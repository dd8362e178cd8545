"""What is exported, and how the folder of an export is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_vq.files import replace_parts, write_json
from tokenizers_vq.weights import write_weights

FORMAT = {"format": "pt"}
"""What transformers and diffusers look for in a file of weights."""


@dataclass(frozen=True)
class Export:
    """What the folder of an export holds."""

    what: str
    """The class that loads it."""
    holds: str
    """What is the same in both programs, in a line."""
    weights_file: str
    weights: Mapping[str, Tensor]
    json_files: Mapping[str, Any] = field(default_factory=dict)
    """Name -> content."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Name -> content of further files."""

    def write(self, out: Path) -> None:
        """Writes the folder, whole or not at all. Raises UserError where it cannot be written."""

        def fill(draft: Path) -> None:
            write_weights(self.weights, draft / self.weights_file, FORMAT)
            for name, values in self.json_files.items():
                write_json(draft / name, values)
            for name, text in self.texts.items():
                (draft / name).write_text(text, encoding="utf-8")

        replace_parts(out, fill)
