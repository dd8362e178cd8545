"""What `unitok bench` measures: one case, and what the machine could do at best."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.networks.conv import fast_weights
from unitok.config import TRUNK_PRESETS, ModelConfig, TasksConfig
from unitok.data.mixture import Source, slots_of
from unitok.data.records import Key, Record, RecordBatch
from unitok.device import Precision, autocast, bf16_supported, pick_device
from unitok.model import UniTok
from unitok.objectives import get_objective, objective_class
from unitok.sample.pipeline import draw
from unitok.sampling import SampleSettings
from unitok.text import train_bpe
from unitok.train.folder import environment
from unitok.train.packing import Packer
from unitok.vocabulary import Vocabulary

CAPTION = "a small red circle left of a large blue square"
MATRIX = 2048
"""Side of the matrices whose product is timed."""
READ = 2**28
"""Bytes whose reading is timed, more than caches hold."""

Work = Callable[[], object]


def on_this_machine(device: str, precision: Precision, threads: int | None) -> dict[str, Any]:
    """Versions, hardware, and the roofline: {"matmul_gflops" in fp32 and at the precision, "read_gb_s"}."""
    place = _prepare(device, threads)
    matrix = torch.randn(MATRIX, MATRIX, device=place)
    row = torch.ones(READ // 4, device=place)
    operations = 2 * MATRIX**3 / 1e9
    rates = {"fp32": operations / min(_times(lambda: matrix @ matrix, place, 5))}
    if _name(place, precision) == "bf16":
        half = matrix.bfloat16()
        rates["bf16"] = operations / min(_times(lambda: half @ half, place, 5))
    read = READ / 1e9 / min(_times(row.sum, place, 5))
    roofline = {"matmul_gflops": {name: _short(rate) for name, rate in rates.items()}, "read_gb_s": _short(read)}
    return {**environment(), "roofline": roofline}


def measure(
    case: str,
    preset: str,
    batch_size: int,
    rounds: int,
    precision: Precision,
    threads: int | None,
    device: str,
    roofline: dict[str, Any],
) -> dict[str, Any]:
    """One case of `bench.cases`: seconds (median and quartiles), rate, peak memory, passes, share of the roofline."""
    place = _prepare(device, threads)
    kind, _, detail = case.partition(" ")
    network: nn.Module
    if kind == "tokenizer":
        work, network, amount, unit = _tokenizer(detail, preset, batch_size, precision, place)
    else:
        work, network, amount, unit = generator(kind, detail, preset, batch_size, precision, place)
    gigaflop, gigabytes, passes = _needed(work, network)
    seconds = _times(work, place, rounds)
    median = statistics.median(seconds)
    exact = case.startswith("tokenizer encode")  # always in fp32
    rates = roofline["matmul_gflops"]
    fastest = rates["fp32"] if exact else rates[_name(place, precision)]
    peak = torch.cuda.max_memory_allocated() if place.type == "cuda" else 0
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {
        "case": case,
        "seconds_median": _short(median),
        "seconds_quartiles": [_short(low), _short(high)],
        "rate": _short(amount / median),
        "unit": unit,
        "seconds_per_image": _short(median / batch_size),
        "peak_memory_gb": round((peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9, 3),
        "passes": passes,
        "gflop": _short(gigaflop),
        "weights_read_gb": _short(gigabytes),
        "roofline_share": round(max(gigaflop / fastest, gigabytes / roofline["read_gb_s"]) / median, 4),
    }


def _prepare(device: str, threads: int | None) -> torch.device:
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return pick_device(device)


def _name(device: torch.device, precision: Precision) -> str:
    """fp32 or bf16."""
    return "bf16" if precision == "bf16" or (precision == "auto" and bf16_supported(device)) else "fp32"


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _times(work: Work, device: torch.device, rounds: int) -> list[float]:
    """Seconds of each round, after one to warm up."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    gc.collect()
    return [once() for _ in range(rounds)]


def _needed(work: Work, network: nn.Module) -> tuple[float, float, int]:
    """(GFLOP of products and convolutions, GB of weights that the layers read, passes of the network's trunk; 0 without
    one). All are counted, none is estimated; tables of ids are left out, of which few rows are read."""
    read, passes = 0, 0

    def layer(module: nn.Module, _: object) -> None:
        nonlocal read
        read += sum(weight.nbytes for weight in module.parameters(recurse=False))

    def trunk(module: nn.Module, _: object) -> None:
        nonlocal passes
        passes += 1

    handles = [m.register_forward_pre_hook(layer) for m in network.modules() if not isinstance(m, nn.Embedding)]
    if isinstance(network, UniTok):
        handles.append(network.trunk.register_forward_pre_hook(trunk))
    with FlopCounterMode(display=False) as counter:
        work()
    for handle in handles:
        handle.remove()
    return counter.get_total_flops() / 1e9, read / 1e9, passes


# --- the cases -------------------------------------------------------------------------------------------------------


def _tokenizer(
    detail: str, preset: str, batch_size: int, precision: Precision, device: torch.device
) -> tuple[Work, ImageTokenizer, float, str]:
    """(what is timed, the tokenizer, images, their unit); `detail` is encode, decode or train, and " scales"."""
    what, _, scales = detail.partition(" ")
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[f"{preset}_{scales}" if scales else preset]()).to(device)
    images = torch.rand(batch_size, 3, *tokenizer.image_size, device=device) * 2 - 1
    codes = tokenizer.eval().encode(images)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), fused=True)

    @torch.inference_mode()
    def decode() -> None:
        with autocast(device, precision):
            tokenizer.decode(codes)

    def train() -> None:
        with autocast(device, precision):
            output = tokenizer.train()(images)
        ((output.reconstruction.float() - images) ** 2).mean().add(sum(output.losses.values())).backward()
        optimizer.step()
        optimizer.zero_grad()

    works: dict[str, Work] = {"encode": lambda: tokenizer.encode(images), "decode": decode, "train": train}
    if what != "train":
        fast_weights(tokenizer)  # as in a tokenizer that was loaded
    return works[what], tokenizer, batch_size, "images/s"


def generator(
    kind: str, objective: str, preset: str, batch_size: int, precision: Precision, device: torch.device
) -> tuple[Work, UniTok, float, str]:
    """(what is timed, the model, tokens or images, their unit); `kind` is train or decode."""
    scaled = objective_class(objective).sets_scales
    tokenizer = build_tokenizer(TOKENIZER_PRESETS[f"{preset}_scales" if scaled else preset]())
    text, layout = train_bpe([CAPTION], 300), tokenizer.layout
    spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
    ports = get_objective(objective, tokenizer).ports(layout)
    model = UniTok(ModelConfig(TRUNK_PRESETS[preset](), objective, spans, ports=ports), tokenizer, text).to(device)
    if kind == "decode":
        fast_weights(tokenizer)
        settings = SampleSettings.of(model.eval().config)
        captions = [CAPTION] * batch_size
        return lambda: draw(model, captions, settings, precision=precision), model, batch_size, "images/s"
    keys = [Key(0, index, index) for index in range(batch_size)]
    codes = torch.randint(tokenizer.codebook_size, (batch_size, layout.length))
    records = [Record(str(index), CAPTION) for index in range(batch_size)]
    batch = RecordBatch(keys, [""] * batch_size, [CAPTION] * batch_size, None, codes, records=records)
    shares = TasksConfig().shares()
    slots = slots_of([Source(batch_size, False, tasks=shares)], max(batch_size, len(shares)))
    packed = Packer(model.modalities(), slots, {"text": 0.1}, model.vocabulary.pad, 0).pack(batch).to(device)
    targets = len(packed.batch.targets)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)

    def step() -> None:
        model.train()
        with autocast(device, precision):
            losses = model(packed.batch)
        losses.sum().div(targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, model, packed.tokens, "tokens/s"
