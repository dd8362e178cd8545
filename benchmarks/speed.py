"""How fast and how large: tokenizers, training, sampling. Fresh weights: speed does not depend on what was learned.

    python benchmarks/speed.py --preset shapes

prints a table and writes benchmarks/results/DATE-HARDWARE-shapes.json. Each case runs in a process of its own, so that
its peak memory is its own. Times are medians of several rounds, on a GPU taken after synchronising. Compare numbers of
one run; absolute times say something about one machine only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BATCH = 32
CAPTION = "a small red circle left of a large blue square"


def rate(work: Callable[[], object], amount: float, rounds: int) -> float:
    """Amount per second, median over rounds, after one round to warm up."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return amount / statistics.median(once() for _ in range(rounds))


def measure(case: str, preset: str, rounds: int) -> dict[str, Any]:
    """One case: {"what", "value", "unit", "peak_memory_gb"}."""
    import torch

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import TRUNK_PRESETS, ModelConfig, TasksConfig
    from unitok.data.mixture import Source
    from unitok.data.records import Key, Record, RecordBatch
    from unitok.device import autocast, pick_device
    from unitok.model import UniTok
    from unitok.objectives import get_objective
    from unitok.sample.pipeline import draw
    from unitok.sampling import SampleSettings
    from unitok.text import train_bpe
    from unitok.train.packing import Packer
    from unitok.vocabulary import Vocabulary

    device = pick_device("auto")
    torch.manual_seed(0)
    # The scales of a preset stand in a preset of their own, where it has any.
    scaled = "next_scale" in case or "scales" in case
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[f"{preset}_scales" if scaled else preset]()).to(device)
    layout = tokenizer.layout
    kind, _, detail = case.removesuffix(" scales").partition(" ")
    unit = "images/s"
    if kind == "tokenizer":
        images = torch.rand(BATCH, 3, *tokenizer.image_size, device=device) * 2 - 1
        codes = tokenizer.encode(images)
        optimizer = torch.optim.AdamW(tokenizer.parameters(), fused=True)

        def train() -> None:
            with autocast(device, "auto"):
                output = tokenizer.train()(images)
            ((output.reconstruction.float() - images) ** 2).mean().add(sum(output.losses.values())).backward()
            optimizer.step()
            optimizer.zero_grad()

        works = {"encode": lambda: tokenizer.encode(images), "decode": lambda: tokenizer.decode(codes), "train": train}
        value = rate(works[detail], BATCH, rounds)
    else:
        text = train_bpe([CAPTION], 300)
        objective, _, batch = detail.partition(" ")
        spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
        ports = get_objective(objective, tokenizer).ports(layout)
        config = ModelConfig(TRUNK_PRESETS[preset](), objective, spans, ports=ports)
        model = UniTok(config, tokenizer, text).to(device).eval()
        if kind == "train":
            unit = "tokens/s"
            keys = [Key(0, index, index) for index in range(BATCH)]
            codes = torch.randint(tokenizer.codebook_size, (BATCH, layout.length))
            records = [Record(str(index), CAPTION) for index in range(BATCH)]
            batch = RecordBatch(keys, [""] * BATCH, [CAPTION] * BATCH, None, codes, records=records)
            sources = [Source(BATCH, False, tasks=TasksConfig().shares())]
            packed = Packer(model.modalities(), sources, {"text": 0.1}, model.vocabulary.pad, 0).pack(batch).to(device)
            tokens, targets = packed.tokens, len(packed.batch.targets)
            optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], fused=True)

            def step() -> None:
                model.train()
                with autocast(device, "auto"):
                    losses = model(packed.batch)
                losses.sum().div(targets).backward()
                optimizer.step()
                optimizer.zero_grad()

            value = rate(step, tokens, rounds)
        else:
            unit = "s/image"
            captions = [CAPTION] * int(batch)
            value = 1 / rate(lambda: draw(model, captions, SampleSettings()), len(captions), rounds)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"case": case, "value": float(f"{value:.4g}"), "unit": unit, "peak_memory_gb": round(peak / 1e9, 2)}


def cases(preset: str) -> list[str]:
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.objectives import OBJECTIVES

    scaled = f"{preset}_scales" in TOKENIZER_PRESETS
    objectives = [objective for objective in OBJECTIVES if scaled or objective != "next_scale"]
    kinds = ("", " scales") if scaled else ("",)
    listed = [f"tokenizer {what}{kind}" for kind in kinds for what in ("encode", "decode", "train")]
    listed += [f"train {objective}" for objective in objectives]
    return listed + [f"sample {objective} {batch}" for objective in objectives for batch in (1, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="shapes", help="preset of both the tokenizer and the trunk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    from unitok.train.folder import environment

    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in cases(options.preset):
            row = pool.apply(measure, (case, options.preset, options.rounds))
            rows.append(row)
            print(
                f"{row['case']:<28} {row['value']:>10g} {row['unit']:<9} {row['peak_memory_gb']:>6.2f} GB", flush=True
            )
    facts = environment()
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}-{facts['hardware']['cpu_cores']}cores"
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    date = datetime.now(UTC).date().isoformat()
    path = options.out / f"{date}-{slug}-{options.preset}.json"
    record = {
        "date": date,
        "preset": options.preset,
        "batch": BATCH,
        "rounds": options.rounds,
        **facts,
        "results": rows,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
