"""What the loss over the ids that can stand at a position saves: time and memory of a training step with a large text
vocabulary, beside a softmax over all ids.

    python benchmarks/spans.py --words 50000

Each case runs in a process of its own, so that its peak memory is its own; times are medians, taken in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from typing import Any

BATCH = 24


def measure(every: bool, words: int, preset: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step and peak memory, with a softmax over every id or over those that can stand there."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import TRUNK_PRESETS, ModelConfig, TasksConfig
    from unitok.data.mixture import Source, slots_of
    from unitok.data.records import Key, Record, RecordBatch
    from unitok.device import autocast, pick_device
    from unitok.model import UniTok
    from unitok.text import TextTokenizer
    from unitok.train.packing import Packer
    from unitok.vocabulary import Vocabulary

    device = pick_device("auto")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[preset]())
    table = Tokenizer(models.WordLevel({f"w{number}": number for number in range(words)}, unk_token="w0"))
    table.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextTokenizer(table)
    spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
    model = UniTok(ModelConfig(TRUNK_PRESETS[preset](), "next_token", spans), tokenizer, text).to(device).train()
    codes = torch.randint(tokenizer.codebook_size, (BATCH, tokenizer.layout.length))
    records = [Record(str(row), " ".join(f"w{row * 12 + place}" for place in range(12))) for row in range(BATCH)]
    keys = [Key(0, row, row) for row in range(BATCH)]
    captions = [record.caption or "" for record in records]
    batch = RecordBatch(keys, [""] * BATCH, captions, None, codes, records=records)
    slots = slots_of([Source(BATCH, False, tasks=TasksConfig().shares())], BATCH)
    packed = Packer(model.modalities(), slots, {"text": 0.1}, model.vocabulary.pad, 0).pack(batch).to(device).batch
    if every:
        packed.spans = ((slice(0, model.vocabulary.size), len(packed.at)),)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def step() -> float:
        started = time.perf_counter()
        with autocast(device, "auto"):
            losses = model(packed)
        losses.sum().div(len(packed.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    step()
    seconds = statistics.median(step() for _ in range(rounds))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return {"seconds": seconds, "gb": (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=50_000, help="ids of the text vocabulary")
    parser.add_argument("--preset", default="shapes", help="preset of both the tokenizer and the trunk")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(3):
            for every in found:
                found[every].append(pool.apply(measure, (every, options.words, options.preset, options.rounds)))
    for every, rows in found.items():
        seconds, memory = (statistics.median(row[key] for row in rows) for key in ("seconds", "gb"))
        what = "all ids" if every else "ids that can stand there"
        print(f"{what:<26} {seconds:8.3f} s a step  {memory:6.2f} GB")


if __name__ == "__main__":
    main()
