"""How near `unitok plan` comes to the memory that a training on a CPU takes.

    python benchmarks/plan.py emoji --rows 16

Two steps of the model on random ids, with AdamW and averages, in float32. Measured is how resident memory has grown
since before the model was built: before the second backward pass, when all but the gradients is there, once the C
library has given back what it keeps of freed memory; and at its greatest, with that.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
from pathlib import Path

import torch

from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.config import TRUNK_PRESETS
from unitok.ports import IdPort
from unitok.train.config import OptimConfig
from unitok.train.optim import AveragedWeights, build_optimizers
from unitok.train.plan.memory import Sizes, count, total, training
from unitok.trunk.native import Transformer
from unitok.trunk.rule import Visibility
from unitok.vocabulary import Vocabulary


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Bytes that are in use."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def train(sizes: Sizes, steps: int) -> int:
    """Bytes resident before the last backward pass."""
    trunk, ids = Transformer(sizes.trunk), IdPort(sizes.vocabulary, sizes.trunk.width, sizes.trunk.tied_head)
    model = torch.nn.ModuleDict({"trunk": trunk, "ids": ids})
    optimizers, average = build_optimizers(model, OptimConfig()), AveragedWeights(model, 0.999)
    shape, first = (sizes.rows, sizes.positions), sizes.vocabulary - sizes.codebook
    places = torch.arange(sizes.positions).view(1, -1, 1).expand(sizes.rows, -1, 3)
    for step in range(steps):
        x = ids(torch.randint(sizes.vocabulary, shape))
        states = trunk(x, places, Visibility("sdpa", causal=True))[:, -sizes.codes :].flatten(0, 1)
        targets = torch.randint(sizes.codebook, (len(states),))
        loss = ids.losses(states, targets, slice(first, sizes.vocabulary)).mean()
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
    images = TOKENIZER_PRESETS[given.tokenizer]()
    codes = images.layout_for(*images.size).length
    vocabulary = Vocabulary.of(4096, images.quantizer.size).size
    trunk = TRUNK_PRESETS[given.preset]()
    sizes = Sizes(trunk, vocabulary, images.quantizer.size, codes, 32, given.rows, bf16=False, gpu=False)
    counts = count(sizes)
    needs = training(sizes, counts, "ddp", 1)
    train(Sizes(TRUNK_PRESETS["debug"](), 400, 64, 64, 10, 1, bf16=False, gpu=False), 1)  # what torch takes for itself
    before, before_peak = resident(), peak()
    measured = train(sizes, 2) - before
    planned = total(needs) - needs["gradients"] - needs["passing"]
    print(f"{given.preset}, {given.rows} rows of {sizes.positions}, {counts.all / 1e6:.1f} M parameters, float32, CPU")
    print("planned, MB: " + ", ".join(f"{name} {number / 1e6:.0f}" for name, number in needs.items()))
    print(f"before the backward pass: planned {planned / 1e6:.0f}, measured {measured / 1e6:.0f}")
    print(f"at most: planned {total(needs) / 1e6:.0f}, measured {(peak() - before_peak) / 1e6:.0f} with what is kept")


if __name__ == "__main__":
    main()
