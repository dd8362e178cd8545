"""How near `unitok plan` comes to the memory that a training on a CPU takes.

    python benchmarks/plan.py emoji --rows 16

Two steps of a fresh model, with AdamW and averages, in float32. Measured is how resident memory has grown since before
the model was built: before the second backward pass, when all but the gradients is there, once the C library has given
back what it keeps of freed memory; and at its greatest, with that.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
from pathlib import Path

from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import TRUNK_PRESETS
from unitok.model import UniTok
from unitok.reader.config import NO_READER
from unitok.sequence import PackedBatch
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.plan.model import Wanted, batch_of, build
from unitok.train.plan.passes import measure
from unitok.train.plan.sums import Training, count, total, training, ways
from unitok.tuning.config import NO_LORA

TASK, TOKENS = "text_to_image", 32


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Bytes that are in use."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def real(model: UniTok) -> UniTok:
    """The same model, with memory."""
    return UniTok(model.config, model.image_tokenizer, model.text_tokenizer).train()


def train(model: UniTok, batch: PackedBatch, steps: int) -> int:
    """Bytes resident before the last backward pass."""
    optimizers, average = build_optimizers(model, OptimConfig()), AveragedWeights(model, 0.999)
    for step in range(steps):
        loss = model(batch).sum()
        found = resident()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(step)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=TRUNK_PRESETS)
    parser.add_argument("--tokenizer", choices=TOKENIZER_PRESETS, default="emoji")
    parser.add_argument("--rows", type=int, default=16)
    given = parser.parse_args()

    def wanted(preset: str, tokenizer: str) -> Wanted:
        return Wanted(preset, tokenizer, "next_token", None, NO_READER, [], NO_LORA)

    model = build(wanted(given.preset, given.tokenizer))
    batch, twice = (batch_of(model, TASK, rows, TOKENS) for rows in (given.rows, 2 * given.rows))
    counts = count(model)
    needs = training(counts, measure(model, batch, twice, False, False, False), ways(1, 1)[0], Training(4))
    needs["weights"] -= 4 * counts.still_outside  # the image tokenizer, which takes no part in it
    small, large = build(wanted("debug", "debug")), build(wanted(given.preset, given.tokenizer))
    train(real(small), batch_of(small, TASK, 1, TOKENS), 1)  # what torch takes for itself
    before, before_peak = resident(), peak()
    measured = train(real(large), batch, 2) - before
    planned = total(needs) - needs["gradients"] - needs["passing"]
    length = batch.inputs.shape[1]
    print(f"{given.preset}, {given.rows} rows of {length}, {counts.learned / 1e6:.1f} M parameters, float32, CPU")
    print("planned, MB: " + ", ".join(f"{name} {number / 1e6:.0f}" for name, number in needs.items()))
    print(f"before the backward pass: planned {planned / 1e6:.0f}, measured {measured / 1e6:.0f}")
    print(f"at most: planned {total(needs) / 1e6:.0f}, measured {(peak() - before_peak) / 1e6:.0f} with what is kept")


if __name__ == "__main__":
    main()
