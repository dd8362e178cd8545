"""Configuration of adversarial training. Free of torch, so that the command line can print its help quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import Problems


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A discriminator that learns to tell pictures from their reconstructions, while the tokenizer learns to make that
    hard: sharp texture instead of blur (VQGAN, arXiv 2012.09841)."""

    weight: float = 0.0
    """Weight of the adversarial loss, times the adaptive weight if that is on; VQGAN takes 0.8. 0: no discriminator is
    built."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """hinge ignores pictures that are classified with a margin; non_saturating (logistic) has a gradient on all."""
    adaptive: bool = True
    """Scale the adversarial loss so that its gradient at the last layer is as long as that of the reconstruction losses
    (measured one step before)."""
    adaptive_max: float = 10_000.0
    """Largest adaptive weight."""
    start: int = 2000
    """Steps of plain reconstruction before the discriminator appears; pictures should be recognisable by then."""
    ramp: int = 1000
    """Steps over which the weight then grows from 0 to its full value, while the discriminator learns. A sudden start
    can ruin a tokenizer; 0 = sudden."""
    lr: float = 1e-4
    """Learning rate of the discriminator where the tokenizer's is optim.lr; both follow the same schedule."""
    layers: int = 3
    """Convolutions that halve the resolution: 1, 2, 3 make each logit judge patches of 16, 34, 70 pixels."""
    channels: int = 64
    """Channels of the first layer; each of the next doubles them, up to eight times."""
    lecam_weight: float = 0.001
    """Weight of LeCam (arXiv 2104.03310), which holds a discriminator back where there are few pictures. 0: off."""
    lecam_decay: float = 0.99
    """Share of the old value that LeCam's running means of the logits keep at each step."""
    r1_weight: float = 0.0
    """Weight of the gradient penalty R1 on real pictures (arXiv 1801.04406, where it is 10), for discriminators that
    learn too fast. 0: off."""
    r1_every: int = 16
    """Steps between two penalties, each counted so many times: the penalty is dear."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name in ("weight", "start", "ramp", "lecam_weight", "r1_weight"):
            value = getattr(self, name)
            problems.check(value >= 0, f"adversarial.{name} is {value}: choose 0 or more")
        for name in ("lr", "adaptive_max"):
            value = getattr(self, name)
            problems.check(value > 0, f"adversarial.{name} is {value}: choose a value above 0")
        for name, most in (("layers", 12), ("channels", 2**12), ("r1_every", 2**31)):
            problems.check_range(f"adversarial.{name}", getattr(self, name), 1, most)
        problems.check(
            self.loss in ("hinge", "non_saturating"),
            f"adversarial.loss is {self.loss!r}: choose hinge or non_saturating",
        )
        problems.check(
            0 <= self.lecam_decay < 1,
            f"adversarial.lecam_decay is {self.lecam_decay}: choose 0 (the last step alone) or a value below 1",
        )
        problems.raise_if_any()

    @property
    def smallest_side(self) -> int:
        """Pixels that a picture's side needs for one logit: the halvings leave 3, of which two layers take one each."""
        return 3 * 2**self.layers

    def check_run(self, size: tuple[int, int], steps: int) -> None:
        """Raises UserError when pictures of this (height, width) or a run of so many steps leave nothing to do."""
        problems = Problems()
        side = min(size)
        fitting = [layers for layers in range(1, self.layers) if side >= 3 * 2**layers]
        problems.check(
            side >= self.smallest_side,
            f"adversarial.layers is {self.layers}, which needs pictures of {self.smallest_side} pixels, but these have "
            f"{side}: choose " + (f"{fitting[-1]} or less" if fitting else "larger pictures or adversarial.weight 0"),
        )
        problems.check(
            self.start < steps,
            f"adversarial.start is {self.start}, but the run has {steps} steps: choose a smaller start, more "
            "run.steps, or adversarial.weight 0",
        )
        problems.raise_if_any()

    def ramp_at(self, step: int) -> float:
        """Share of the weight at a step (from 0): 0 up to `start`, then linear, 1 from `start + ramp` on.

        >>> config = AdversarialConfig(start=10, ramp=4)
        >>> [config.ramp_at(step) for step in (9, 10, 12, 14, 99)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
        """
        if step < self.start:
            return 0.0
        return min(1.0, (step - self.start) / self.ramp) if self.ramp else 1.0
