"""Where the time of a generator's training step goes on a CPU, part by part, in seconds of the processor.

    python benchmarks/training.py --width 768 --depth 12 --heads 12 --rows 2 --side 64
    python benchmarks/training.py --muon --codes 64000
    python benchmarks/training.py --lora 16
    python benchmarks/training.py --width 256 --rows 64 --codes 4375 --objective masked_token --muon --compile

Fresh weights and codes, captions of one length, one thread. Run two checkouts in turns to compare them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

CAPTION = "a small red circle left of a large blue square"


def measure(options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Part of a step -> its median in seconds of the processor; bytes of weights, gradients, moments and averages."""
    import torch
    from torch import nn

    from tokenizers_vq import VQ
    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import ModelConfig, TrunkConfig
    from unitok.data.mixture import Slot
    from unitok.data.records import Key, Record, RecordBatch
    from unitok.device import autocast, keep_freed_memory
    from unitok.model import UniTok
    from unitok.objectives import get_objective
    from unitok.text import train_bpe
    from unitok.train.config import OptimConfig
    from unitok.train.optim import AveragedWeights, build_optimizers
    from unitok.train.packing import Packer
    from unitok.tuning.adapter import tune
    from unitok.tuning.config import LoraConfig, as_patterns
    from unitok.vocabulary import Vocabulary

    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    config = TOKENIZER_PRESETS["shapes"]()
    tokenizer = build_tokenizer(
        dataclasses.replace(config, image_size=options.side, quantizer=VQ(codebook_size=options.codes))
    )
    text = train_bpe([CAPTION], 300)
    spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
    ports = get_objective(options.objective, tokenizer).ports(tokenizer.layout)
    trunk = TrunkConfig(width=options.width, depth=options.depth, heads=options.heads)
    model = UniTok(ModelConfig(trunk, options.objective, spans, ports=ports), tokenizer, text).train()
    tune(model, model, as_patterns(options.trainable), LoraConfig(rank=options.lora))
    rows = options.rows
    codes = torch.randint(tokenizer.codebook_size, (rows, tokenizer.layout.length))
    records = [Record(str(row), CAPTION) for row in range(rows)]
    keys = [Key(0, row, row) for row in range(rows)]
    batch = RecordBatch(keys, [""] * rows, [CAPTION] * rows, None, codes, records=records)
    if options.compile:
        for block in model.trunk.blocks:
            block.compile()
    packer = Packer(model.modalities(), [Slot(0, "text_to_image")] * rows, {}, model.vocabulary.pad, 0)
    settings = OptimConfig(muon=options.muon)
    optimizers, average = build_optimizers(model, settings), AveragedWeights(model, settings.ema)
    weights = [weight for one in optimizers for group in one.param_groups for weight in group["params"]]
    seconds: dict[str, list[float]] = {}

    def lap(part: str, since: float) -> float:
        now = time.process_time()
        seconds.setdefault(part, []).append(now - since)
        return now

    for step in range(options.rounds + 1):
        since = time.process_time()
        packed = packer.pack(batch).batch
        since = lap("pack", since)
        with autocast(torch.device("cpu"), options.precision):
            loss = model(packed).sum() / len(packed.targets)
        since = lap("forward", since)
        loss.backward()
        since = lap("backward", since)
        nn.utils.clip_grad_norm_(weights, settings.clip)
        since = lap("clip", since)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            since = lap(type(optimizer).__name__, since)
        average.update(step)
        lap("average", since)
    found = {part: statistics.median(times[1:]) for part, times in seconds.items()}
    moments = [value for one in optimizers for state in one.state.values() for value in state.values()]
    held = [*model.trunk.parameters(), *model.ids.parameters(), *weights, *moments, *average.tensors.values()]
    return {**found, "step": sum(found.values())}, sum(tensor.numel() * tensor.element_size() for tensor in held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="next_token")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rows", type=int, default=24, help="captioned pictures of a step")
    parser.add_argument("--side", type=int, default=32, help="pixels; 4 are a code")
    parser.add_argument("--codes", type=int, default=1000, help="size of the codebook")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--compile", action="store_true", help="the blocks, as --run.compile true does")
    parser.add_argument("--trainable", default="", help="patterns of the weights that are trained")
    parser.add_argument("--lora", type=int, help="rank of adapters")
    parser.add_argument("--rounds", type=int, default=10)
    parts, held = measure(parser.parse_args())
    for part, value in parts.items():
        print(f"{part:<10} {value:8.4f} s")
    print(f"{'held':<10} {held / 1e6:8.0f} MB")


if __name__ == "__main__":
    main()
