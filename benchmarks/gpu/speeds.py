"""How fast a GPU draws, trains and decodes. Every part measures time, so each runs alone."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

CAPTION = "a small red circle left of a large blue square"
READ = 2**31
"""Bytes whose reading is timed."""
SIDES = {"bf16": 8192, "fp32": 4096}
"""Of the matrices whose product is timed."""
DRAWS = (("next_token", (1, 64)), ("masked_token", (1, 64)), ("next_scale", (1, 64)))
"""(objective, pictures at a time)."""
BATCHES = 3
"""That are drawn one after another by one engine: the first captures, the others are timed."""


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
            for captured in (True, False):
                what = {"objective": objective, "pictures": batch, "captured": captured}
                try:
                    yield {**what, **drawing(model, batch, captured, rates)}
                except Exception as error:  # one case leaves the others alone
                    yield {**what, "failed": first_line(error)}
        del model
        release(place)


def drawing(model: UniTok, batch: int, captured: bool, rates: dict[str, Any]) -> Row:
    """Batches of pictures through one engine: seconds of the first and of the later ones, and their share of what the
    machine can do, by the bytes of weights, keys and values that passes read, and by their operations."""
    place = model.device
    settings = SampleSettings.of(model.config)
    jobs = [[job(model, settings, number * batch + one) for one in range(batch)] for number in range(BATCHES)]
    prompt, value = rooms_of(model, jobs[0][0])
    engine = Engine(model, batch * len(jobs[0][0].prompts), prompt + value)
    if not captured:
        engine.steps.capture = None
    reset_peak(place)
    gigaflop, read = 0.0, Read(model)
    seconds = []
    for number, some in enumerate(jobs):
        # Many passes cost more to count than to run; what they wait for is memory.
        count = number == 0 and not captured and objective_passes(model) < 100
        with read.counted() if number == 0 else nothing(), FlopCounterMode(display=False) if count else nothing() as ops:
            seconds.append(timed(lambda some=some: drained(engine, some), place))
        if count:
            gigaflop = ops.get_total_flops() / 1e9
    later = statistics.median(seconds[1:])
    found: Row = {
        "first_s": seconds[0],
        "s": later,
        "pictures_s": batch / later,
        "passes": read.passes,
        "ms_a_pass": 1000 * later / read.passes,
        "gb_read": read.bytes / 1e9,
        "bandwidth_share": read.bytes / 1e9 / later / rates["copy_gb_s"],
        "peak_memory_gb": peak_memory(place),
    }
    if gigaflop:
        found |= {"gflop": gigaflop, "matmul_share": gigaflop / later / rates["matmul_gflops"]["bf16"]}
    replays = [one.captured for one in engine.steps.seen.values() if one.captured is not None]
    if replays:
        found["captures"] = len(replays)
        found["replay_ms"] = 1000 * timed(lambda: [replays[-1].replay() for _ in range(20)], place) / 20
    return found


def job(model: UniTok, settings: SampleSettings, seed: int) -> Job:
    return job_for("text_to_image", {"caption": model.text_ids(CAPTION)}, seed, settings)


def drained(engine: Engine, jobs: list[Job]) -> None:
    for one in jobs:
        engine.add(one)
    while engine.busy:
        engine.step()


def objective_passes(model: UniTok) -> int:
    """Passes of a picture, at least."""
    writer = model.modalities()["image"].writer(1, model.device)
    writer.admit(0, 0, SampleSettings.of(model.config))
    return writer.steps(0)


class Read:
    """Counts what passes of an engine read: weights of the trunk and of the head of pictures, keys and values."""

    def __init__(self, model: UniTok) -> None:
        self.passes = self.bytes = 0
        layers = [one for one in model.trunk.modules() if isinstance(one, Prepared)]
        ids = model.vocabulary.image_range
        self.weights = 2 * (sum(one.weight.numel() for one in layers) + (ids.stop - ids.start) * model.config.trunk.width)

    @contextmanager
    def counted(self) -> Iterator[None]:
        advance = KVCache.advance

        def counting(cache: KVCache, rows: Any, n: int) -> bool:
            even = advance(cache, rows, n)
            slot = 2 * cache.keys[:, 0, :, 0].nbytes
            self.passes += 1
            self.bytes += self.weights + slot * sum(cache.lengths[row] for row in rows)
            return even

        KVCache.advance = counting  # type: ignore[method-assign]
        try:
            yield
        finally:
            KVCache.advance = advance  # type: ignore[method-assign]


@contextmanager
def nothing() -> Iterator[Any]:
    yield None


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
        for is_compiled in (False, True):
            what = {"preset": preset, "compiled": is_compiled}
            try:
                yield {**what, **trained(preset, tiny, place, is_compiled, roofline)}
            except Exception as error:  # one case leaves the others alone
                yield {**what, "failed": first_line(error)}
            release(place)


def trained(preset: str, tiny: bool, place: torch.device, is_compiled: bool, roofline: dict[str, Any]) -> Row:
    step, model = training(preset, tiny, place)
    positions: list[int] = []
    handle = model.trunk.register_forward_hook(lambda module, given, found: positions.append(found[..., 0].numel()))
    with FlopCounterMode(display=False) as counter:
        step()
    handle.remove()
    if is_compiled:
        for block in model.trunk.blocks:
            block.compile()
    reset_peak(place)
    first = timed(step, place)
    seconds = statistics.median([timed(step, place) for _ in range(1 if tiny else 10)])
    gigaflop = counter.get_total_flops() / 1e9
    found = {
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
    return found


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
