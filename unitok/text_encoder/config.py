"""What a model says of its text encoder. Free of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers_vq.errors import Problems, shown
from tokenizers_vq.storage.hub import HUB


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Which encoder it is. Its weights stay where they are: they are as large as many a generator."""

    name: str
    """A folder, or hf:owner/name."""
    revision: str | None = None
    """The commit, of one on the hub."""
    digest: str
    """SHA-256 (hex) of its weights as float32 and of the file of its text tokenizer."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(bool(self.name), "text_encoder.name is empty: restore the file")
        problems.check(
            re.fullmatch("[0-9a-f]{64}", self.digest) is not None,
            f"text_encoder.digest is {shown(self.digest)}: restore the file",
        )
        problems.check(
            self.revision is None
            or (self.name.startswith(HUB) and re.fullmatch(r"\w{1,64}", self.revision) is not None),
            f"text_encoder.revision is {shown(self.revision)}: restore the file",
        )
        problems.raise_if_any()
