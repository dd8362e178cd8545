"""Settings of sampling. Free of torch, so that the command line can show them quickly."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers_vq.errors import Problems


@dataclass
class SampleSettings:
    """How codes are chosen."""

    guidance: float = 3.0
    """Classifier-free guidance scale s: uncond + s * (cond - uncond). At 1 the unconditional pass is left out."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely code."""
    top_k: int = 0
    """Keep the k most likely codes; 0 keeps all."""
    top_p: float = 0.0
    """Keep the smallest set of codes with this much probability, in (0, 1]; 0 keeps all."""
    steps: int = 12
    """Passes of masked-token decoding. Other objectives do not use it."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(self.guidance >= 0, f"--guidance is {self.guidance}: choose 0 or more (1 turns guidance off)")
        problems.check(self.temperature >= 0, f"--temperature is {self.temperature}: choose 0 or more")
        problems.check(self.top_k >= 0, f"--top-k is {self.top_k}: choose 1 or more, or 0 to keep all codes")
        problems.check(
            0 <= self.top_p <= 1, f"--top-p is {self.top_p}: choose a value in (0, 1], or 0 to keep all codes"
        )
        problems.check(self.steps >= 1, f"--steps is {self.steps}: choose 1 or more")
        problems.raise_if_any()
