"""What a tuning can be told. Free of torch, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers_vq.errors import Problems

MOST_RANK = 2**14


def as_patterns(given: str | Sequence[str]) -> list[str]:
    """Patterns with commas between them, or a list of them.

    >>> as_patterns("decoder.*, post_quant_conv.*")
    ['decoder.*', 'post_quant_conv.*']
    """
    texts = [given] if isinstance(given, str) else given
    return [pattern.strip() for text in texts for pattern in text.split(",") if pattern.strip()]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA, arXiv:2106.09685): linear maps stay as they are, and what is learned beside each is a
    product of two thin matrices. The output folder then holds these alone."""

    rank: int | None = None
    """Rows of a thin matrix; null = no adapters."""
    alpha: float = 16.0
    """Strength: the product is multiplied by alpha / rank."""
    targets: str | list[str] = "trunk.*"
    """Names of the linear maps of the trunk that get one, as those of --trainable: 'trunk.*attention*'."""

    quantize: Literal["nf4", "int8"] | None = None
    """Hold the linear maps of --init that do not learn in 4 bits (nf4) or 8 (int8) while adapters are trained, which
    saves memory and costs time (QLoRA, arXiv:2305.14314). nf4 needs the extra [bitsandbytes]."""

    def __post_init__(self) -> None:
        problems = Problems()
        if self.rank is not None:
            problems.check_range("lora.rank", self.rank, 1, MOST_RANK)
        problems.check(0 < self.alpha <= 10**6, f"lora.alpha is {self.alpha}: choose a value above 0")
        problems.check(bool(as_patterns(self.targets)), "lora.targets names nothing: leave it out for all of the trunk")
        problems.check(
            self.quantize is None or self.rank is not None,
            f"lora.quantize is {self.quantize}, but without adapters all weights learn: give --lora.rank",
        )
        problems.raise_if_any()


NO_LORA = LoraConfig()
