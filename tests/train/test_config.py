from __future__ import annotations

import subprocess
import sys

import pytest

from tokenizers_vq.errors import UserError
from unitok.train.config import AugmentConfig, OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(lr=0), r"optim.lr is 0: choose a value above 0"),
        (lambda: OptimConfig(min_lr=1.0), r"optim.min_lr is 1.0: choose a value from 0 to optim.lr \(0.0003\)"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), r"optim.betas is \(0.9, 1.0\): choose two values in \[0, 1\)"),
        (lambda: OptimConfig(ema=1.0), r"optim.ema is 1.0: choose 0 \(off\) or a value below 1"),
        (lambda: RunConfig(steps=0), r"run.steps is 0: choose 1 or more"),
        (lambda: RunConfig(workers=-1), r"run.workers is -1: choose 0 or more"),
        (lambda: RunConfig(max_bad=2), r"run.max_bad is 2: choose a share from 0 to 1"),
        (lambda: AugmentConfig(flip=2), r"augment.flip is 2: choose a chance from 0 to 1"),
        (lambda: AugmentConfig(crop=0), r"augment.crop is 0: choose a share above 0 and up to 1"),
        (lambda: RunConfig(batch_size=6).micro_batch_for(4), r"run.batch_size is 6: choose a multiple of .* \(4\)"),
        (lambda: RunConfig(batch_size=8, micro_batch=3).micro_batch_for(2), r"run.micro_batch is 3: choose a divisor"),
    ],
)
def test_wrong_values_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        make()


def test_several_problems_are_reported_together() -> None:
    with pytest.raises(UserError, match=r"(?s)2 problems:.*optim.warmup_steps is -1.*optim.clip is -2"):
        OptimConfig(warmup_steps=-1, clip=-2)


def test_shares() -> None:
    assert RunConfig(batch_size=24).micro_batch_for(3) == 8
    assert RunConfig(batch_size=24, micro_batch=2).micro_batch_for(3) == 2


def test_commands_load_without_torch() -> None:
    """Help must be quick."""
    code = "import sys, unitok.train.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
