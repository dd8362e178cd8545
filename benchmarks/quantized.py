"""What a base in few bits costs and saves: adapters on a language model, over float32, 4 and 8 bits, in turns.

    python benchmarks/quantized.py hf:models/SmolLM2-135M --text recipes/language/prose.txt

Each line of the text is a document. The last fifth of the lines is held out: its loss is measured before and after, and
after it for the adapter on the base that it was learned on, as a model folder opens it, and on the float32 base.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

from unitok.device import autocast
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.seeding import keyed_generator
from unitok.sequence import PackedBatch, pack
from unitok.tasks import documents
from unitok.train.config import OptimConfig
from unitok.train.optim import build_optimizers, learning_tensors
from unitok.train.packing import NUMBERS
from unitok.trunk.hf.reading import read_language_model
from unitok.tuning.adapter import tune
from unitok.tuning.config import LoraConfig
from unitok.tuning.lora import merge_lora
from unitok.tuning.quantized import FORMATS, held_in_few_bits, rounded

KINDS = (None, *FORMATS)


def batch_of(model: UniTok, lines: list[str]) -> PackedBatch:
    draws = [Draw(keyed_generator("text", row), 0.0) for row in range(len(lines))]
    records: list[dict[str, Any]] = [{"caption": line} for line in lines]
    made = documents(["text_only"] * len(lines), records, draws, model.modalities(), {}, NUMBERS)
    return pack(made, pad=model.vocabulary.pad).to(model.device)


def loss(model: UniTok, batch: PackedBatch, precision: Any) -> torch.Tensor:
    """Nats a token."""
    with autocast(model.device, precision):
        return model(batch).sum() / len(batch.targets)


def measure(name: str, text: Path, steps: int, rank: int, rows: int, device: str, precision: Any) -> dict[str, Any]:
    """What each kind holds, takes and learns."""
    base = read_language_model(name).alone(text_length=128)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    cut = len(lines) * 4 // 5
    held_out = batch_of(base, lines[cut:])
    models, optimizers, found = {}, {}, {str(kind): {"seconds": [], "losses": []} for kind in KINDS}
    for kind in KINDS:
        model = copy.deepcopy(base)
        torch.manual_seed(0)
        tune(model, base, [], LoraConfig(rank=rank, quantize=kind))
        models[kind] = model.to(device).train()
        optimizers[kind] = build_optimizers(model, OptimConfig(lr=1e-3, weight_decay=0.0))[0]
        numbers, size = held_in_few_bits(model)
        floats = sum(weight.numel() for weight in model.parameters())
        found[str(kind)] |= {"weights, MB": (4 * floats + size) / 1e6, "of the blocks, bits a number": 32.0}
        if numbers:
            found[str(kind)]["of the blocks, bits a number"] = 8 * size / numbers
    clock = time.process_time if device == "cpu" else time.perf_counter
    with torch.no_grad():
        for kind, model in models.items():
            found[str(kind)]["held out before"] = float(loss(model, held_out.to(device), precision))
    for step in range(steps):
        batch = batch_of(base, [lines[(step * rows + row) % cut] for row in range(rows)]).to(device)
        for kind, model in models.items():
            started = clock()
            value = loss(model, batch, precision)
            value.backward()
            optimizers[kind].step()
            optimizers[kind].zero_grad()
            found[str(kind)]["losses"].append(value.item())  # waits for the device
            found[str(kind)]["seconds"].append(clock() - started)
    with torch.no_grad():
        for kind, model in models.items():
            here = found[str(kind)]
            here["held out after"] = float(loss(model, held_out.to(device), precision))
            here["seconds"] = sorted(here["seconds"])[steps // 2]
            if kind is not None:
                for place, rounds in (("opened", True), ("on the float base", False)):
                    here[place] = float(loss(joined(base, model, rank, kind if rounds else None), held_out, precision))
    return found


def joined(base: UniTok, tuned: UniTok, rank: int, kind: str | None) -> UniTok:
    """The adapters of a model, added to a base: in few bits and back before, or as it is."""
    model = copy.deepcopy(base)
    if kind is not None:
        rounded(model.trunk, kind, ())
    tune(model, base, [], LoraConfig(rank=rank))
    model.load_state_dict({name: one.cpu() for name, one in learning_tensors(tuned).items()}, strict=False)
    merge_lora(model.trunk)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunk", help="as --trunk of a training: hf:NAME")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    given = parser.parse_args()
    rows = measure(given.trunk, given.text, given.steps, given.rank, given.rows, given.device, given.precision)
    for kind, facts in rows.items():
        print(json.dumps({"base": kind, **facts}))


if __name__ == "__main__":
    main()
