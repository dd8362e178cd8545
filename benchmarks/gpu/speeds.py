"""How fast a GPU draws, trains and decodes. Every part measures time, so each runs alone."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from checks import Part, Row, backends, first_line, training
from torch.utils.flop_counter import FlopCounterMode

from unitok.cli.bench_cases import generator, measure
from unitok.device import pick_device
from unitok.model import UniTok
from unitok.prepare import Prepared, prepare
from unitok.sample.engine import Engine
from unitok.sample.jobs import Job, job_for, rooms_of
from unitok.sampling import SampleSettings
from unitok.train.folder import environment
from unitok.trunk.cache import KVCache
from unitok.trunk.steps import REPEATED

CAPTION = "a small red circle left of a large blue square"
READ = 2**31
"""Bytes whose reading is timed."""
SIDES = {"bf16": 8192, "fp32": 4096}
"""Of the matrices whose product is timed."""
DRAWS = (("next_token", (1, 64)), ("masked_token", (1, 64)), ("next_scale", (1, 64)))
"""(objective, pictures at a time)."""
BATCHES = {True: REPEATED + 2, False: 1}
"""Captured or not -> that are drawn one after another by one engine. A pass that comes once in each of them is captured
in number `REPEATED`; those behind it are timed."""
MANY = 100
"""Passes from which on operations are not counted: counting takes long, and what such passes wait for is memory."""


def decode(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """The roofline, then codes that `base` draws in bf16, captured and not."""
    place = pick_device(device)
    rates = measured_roofline(place, tiny)
    yield {**environment(), "roofline": rates}
    for objective, batches in DRAWS[: 1 if tiny else None]:
        torch.manual_seed(0)
        _, model, _, _ = generator("decode", objective, "debug" if tiny else "base", 1, "bf16", place)
        prepare(model, "bf16")
        for batch in (1, 2) if tiny else batches:
            what = {"objective": objective, "pictures": batch}
            try:
                needed = Needed(model, batch)
                for captured in (True, False):
                    yield {**what, "captured": captured, **drawing(model, batch, captured, needed, rates)}
            except Exception as error:  # one case leaves the others alone
                yield {**what, "failed": first_line(error)}
        del model
        release(place)


def drawing(model: UniTok, batch: int, captured: bool, needed: Needed, rates: dict[str, Any]) -> Row:
    """Batches of pictures through one engine: seconds of the first and of the later ones, and their share of what the
    machine can do."""
    place = model.device
    reset_peak(place)
    engine = engine_for(model, batch, captured)
    first, *later = [timed(lambda: drained(engine, model, batch), place) for _ in range(BATCHES[captured])]
    usual = statistics.median(later[REPEATED - 1 :] or [first])
    found: Row = {
        "first_s": first,
        "s": usual,
        "pictures_s": batch / usual,
        "passes": needed.passes,
        "ms_a_pass": 1000 * usual / needed.passes,
        "gb_read": needed.gigabytes,
        "bandwidth_share": needed.gigabytes / usual / rates["copy_gb_s"],
        "peak_memory_gb": peak_memory(place),
    }
    if needed.gigaflop:
        found |= {
            "gflop": needed.gigaflop,
            "matmul_share": needed.gigaflop / usual / rates["matmul_gflops"]["bf16"],
        }
    replays = [one.captured for one in engine.steps.seen.values() if one.captured is not None]
    if replays:
        found |= {
            "captures": len(replays),
            "replay_ms": 1000 * timed(lambda: [replays[-1].replay() for _ in range(20)], place) / 20,
        }
    return found


def engine_for(model: UniTok, batch: int, captured: bool) -> Engine:
    one = jobs(model, 1)[0]
    prompt, value = rooms_of(model, one)
    engine = Engine(model, batch * len(one.prompts), prompt + value)
    if not captured:
        engine.steps.capture = None
    return engine


def drained(engine: Engine, model: UniTok, batch: int) -> None:
    for one in jobs(model, batch):
        engine.add(one)
    while engine.busy:
        engine.step()


def jobs(model: UniTok, number: int) -> list[Job]:
    record, settings = {"caption": model.text_ids(CAPTION)}, SampleSettings.of(model.config)
    return [job_for("text_to_image", record, seed, settings) for seed in range(number)]


class Needed:
    """What a batch of pictures needs: passes, the bytes of weights, keys and values that they read, and operations of
    products, where there are few passes. Counted in a draw that is not captured."""

    def __init__(self, model: UniTok, batch: int) -> None:
        self.passes, self.gigabytes, self.gigaflop = 0, 0.0, 0.0
        layers = [one for one in model.trunk.modules() if isinstance(one, Prepared)]
        ids = model.vocabulary.image_range
        numbers = sum(one.weight.numel() for one in layers) + (ids.stop - ids.start) * model.config.trunk.width
        self.weights = 2 * numbers / 1e9
        writer = model.modalities()["image"].writer(1, model.device)
        writer.admit(0, 0, SampleSettings.of(model.config))
        counter = FlopCounterMode(display=False)
        with self._reading(), counter if writer.steps(0) < MANY else nullcontext():
            drained(engine_for(model, batch, False), model, batch)
        self.gigaflop = counter.get_total_flops() / 1e9

    @contextmanager
    def _reading(self) -> Iterator[None]:
        advance = KVCache.advance

        def counting(cache: KVCache, rows: Sequence[int], n: int) -> bool:
            even = advance(cache, rows, n)
            slot = 2 * cache.keys[:, 0, :, 0].nbytes / 1e9
            self.passes += 1
            self.gigabytes += self.weights + slot * sum(cache.lengths[row] for row in rows)
            return even

        KVCache.advance = counting  # type: ignore[method-assign]
        try:
            yield
        finally:
            KVCache.advance = advance  # type: ignore[method-assign]


def measured_roofline(place: torch.device, tiny: bool) -> dict[str, Any]:
    """Rates of this machine, best of ten: {"matmul_gflops" of bf16 and fp32, "copy_gb_s", "read_gb_s"}."""
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        side = 256 if tiny else SIDES[name]
        one, other = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
        rates[name] = 2 * side**3 / 1e9 / least(lambda one=one, other=other: one @ other, place)
    number = READ // (1024 if tiny else 1)
    source = torch.ones(number // 4, device=place)
    target = torch.empty_like(source)
    copied = 2 * number / 1e9 / least(lambda: target.copy_(source), place)
    return {"matmul_gflops": rates, "copy_gb_s": copied, "read_gb_s": number / 1e9 / least(source.sum, place)}


def train(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """A step of `next_token`, eager and compiled."""
    place = pick_device(device)
    for preset in ("base", "small"):
        try:
            yield from trained(preset, tiny, place, roofline)
        except Exception as error:  # one preset leaves the other alone
            yield {"preset": preset, "failed": first_line(error)}
        release(place)


def trained(preset: str, tiny: bool, place: torch.device, roofline: dict[str, Any]) -> Iterator[Row]:
    step, model = training(preset, tiny, place)
    positions: list[int] = []
    handle = model.trunk.register_forward_hook(lambda module, given, found: positions.append(found[..., 0].numel()))
    with FlopCounterMode(display=False) as counter:
        step()
    handle.remove()
    gigaflop = counter.get_total_flops() / 1e9
    for is_compiled in (False, True):
        if is_compiled:
            for block in model.trunk.blocks:
                block.compile()
        first = timed(step, place)
        reset_peak(place)
        seconds = statistics.median([timed(step, place) for _ in range(1 if tiny else 10)])
        found = {
            "preset": preset,
            "compiled": is_compiled,
            "parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
            "positions": positions[0],
            "first_s": first,
            "s": seconds,
            "tokens_s": positions[0] / seconds,
            "gflop": gigaflop,
            "peak_memory_gb": peak_memory(place),
        }
        if roofline:
            found["mfu"] = gigaflop / seconds / roofline["matmul_gflops"]["bf16"]
        yield found


def tokenizer(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """`base` encodes, decodes and is trained, as `unitok bench tokenizer`; then the backends of attention."""
    place = pick_device(device)
    rates = roofline or measured_roofline(place, tiny)
    preset, batch, rounds = ("debug", 2, 1) if tiny else ("base", 16, 5)
    for work in ("encode", "decode", "train"):
        try:
            reset_peak(place)
            yield measure(f"tokenizer {work}", preset, batch, rounds, "bf16", None, device, rates)
        except Exception as error:  # one case leaves the others alone
            yield {"case": f"tokenizer {work}", "failed": first_line(error)}
        release(place)
    for name, run in backends(device, tiny):
        for backward in (False, True):
            what = {"backend": name, "backward": backward}
            try:
                run(name, torch.bfloat16, backward)
                times = [timed(lambda: run(name, torch.bfloat16, backward), place) for _ in range(1 if tiny else 10)]  # noqa: B023
                yield {**what, "bf16_ms": 1000 * statistics.median(times)}
            except Exception as error:  # a backend that this machine lacks leaves the others alone
                yield {**what, "failed": first_line(error)}


def least(work: Callable[[], object], place: torch.device) -> float:
    """Seconds, the least of ten rounds after two to warm up."""
    return min([timed(work, place) for _ in range(12)][2:])


def timed(work: Callable[[], object], place: torch.device) -> float:
    """Seconds."""
    if place.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def reset_peak(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory(place: torch.device) -> float | None:
    """GB on the GPU since `reset_peak`."""
    return torch.cuda.max_memory_allocated() / 1e9 if place.type == "cuda" else None


def release(place: torch.device) -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()


PARTS: dict[str, Part] = {"decode": decode, "train": train, "tokenizer": tokenizer}
