"""Our VQGAN tokenizer against the modules of taming-transformers: same configuration, weights and pictures, float32;
and our decoder in bf16 where the hardware multiplies it.

    pip install 'unitok-vq[taming]'
    OMP_NUM_THREADS=1 python benchmarks/tokenizer_speed.py

Encodes and decodes with both, checks that codes and pictures agree, then times them in turns (ours first in one round,
theirs first in the next), so that whatever else the machine does falls on both. Reports medians, spread and best of the
processor's time and of the wall's, and the code look-up alone with its peak memory. Prints a table and writes
benchmarks/results/DATE-HARDWARE-taming-SIDE.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

AGREE = 1e-4
"""Largest difference of a pixel, in [-1, 1], and of the codes' distances, that may come from rounding."""


def build(channels: int, side: int, codebook_size: int) -> tuple[Any, Any]:
    """(taming's modules, our tokenizer) of VQGAN f16 with the same random weights."""
    import torch
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer

    from tokenizers_vq import load_published

    dd = {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,  # attention lies at 16 codes a side of this, whatever the picture's own size
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels,
        "ch_mult": (1, 1, 2, 2, 4),
        "num_res_blocks": 2,
        "attn_resolutions": (16,),
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    parts = {
        "encoder": Encoder(**dd),
        "decoder": Decoder(**dd),
        "quantize": VectorQuantizer(codebook_size, 256, beta=0.25),
        "quant_conv": torch.nn.Conv2d(256, 256, 1),
        "post_quant_conv": torch.nn.Conv2d(256, 256, 1),
    }
    theirs = torch.nn.ModuleDict(parts).eval()
    # The package's start, +-1/size, would leave the choice of a code to rounding.
    torch.nn.init.normal_(theirs["quantize"].embedding.weight, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        torch.save({"state_dict": theirs.state_dict()}, path)
        ours = load_published("taming_vqgan", path, codebook_size=codebook_size, ddconfig=dd)
    return theirs, ours


def works(channels: int, side: int, batch: int, codebook_size: int) -> dict[str, tuple[Callable[[], Any], ...]]:
    """Case -> (theirs, ours), after checking that both give the same."""
    import torch

    from unitok.device import bf16_supported

    theirs, ours = build(channels, side, codebook_size)
    small = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(-1, 1)
    layout = ours.layout_for(side, side)

    @torch.no_grad()
    def encode() -> Any:
        _, _, (_, _, indices) = theirs["quantize"](theirs["quant_conv"](theirs["encoder"](images)))
        return indices.view(batch, -1)

    codes = encode()

    @torch.no_grad()
    def decode() -> Any:
        vectors = theirs["quantize"].get_codebook_entry(codes.flatten(), (batch, *layout.grid, 256))
        return theirs["decoder"](theirs["post_quant_conv"](vectors))

    @torch.no_grad()
    def decode_ours() -> Any:
        return ours.decode(codes, layout)

    @torch.no_grad()
    def decode_half() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ours.decode(codes, layout)

    with torch.no_grad():
        latents, ours_latents = theirs["quant_conv"](theirs["encoder"](images)), ours.latents(images)
    difference = {
        "latents": float((latents - ours_latents).abs().max()),
        "pixels": float((decode() - decode_ours()).abs().max()),
    }
    equal = bool((codes == ours.encode(images)).all())
    print(f"codes equal: {equal} ({len(codes.unique())} different); largest differences: {difference}")
    if not equal or max(difference.values()) > AGREE:
        raise SystemExit("the two do not agree: nothing is timed")
    cases = {"encode": (encode, lambda: ours.encode(images)), "decode": (decode, decode_ours)}
    if bf16_supported(torch.device("cpu")):
        cases["decode in bf16"] = (decode, decode_half)
    return cases


def in_turns(pair: tuple[Callable[[], Any], ...], rounds: int) -> dict[str, Any]:
    """Seconds of (theirs, ours): median, spread (quartiles) and best, of the processor's time and of the wall's."""
    taken: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in ("taming", "unitok")}
    sides = list(zip(taken, pair, strict=True))
    for _, work in sides:
        work()  # warm up
    for number in range(rounds):
        for name, work in sides if number % 2 else sides[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name]["cpu"].append(time.process_time() - cpu)
            taken[name]["wall"].append(time.perf_counter() - wall)
    result: dict[str, Any] = {}
    for name, clocks in taken.items():
        result[name] = {}
        for clock, seconds in clocks.items():
            low, _, high = statistics.quantiles(seconds, n=4)
            numbers = {"median": statistics.median(seconds), "quartiles": [low, high], "best": min(seconds)}
            result[name][clock] = json.loads(json.dumps(numbers), parse_float=lambda text: float(f"{float(text):.4g}"))
    for clock in ("cpu", "wall"):
        pairs = zip(taken["unitok"][clock], taken["taming"][clock], strict=True)
        result[f"ratio_{clock}_median"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
        result[f"ratio_{clock}_best"] = round(result["unitok"][clock]["best"] / result["taming"][clock]["best"], 3)
    return result


def look_up(whose: str, vectors: int, codebook_size: int, width: int, rounds: int) -> dict[str, float]:
    """The nearest of the codes for so many vectors: best seconds of `rounds`, and memory beyond that of its inputs.

    `taming` is the distance matrix of its VectorQuantizer, without the one-hot table and the losses that follow it.
    """
    import torch

    from tokenizers_vq.quantizers.lookup import nearest_rows

    random = torch.Generator().manual_seed(0)
    rows = torch.randn(vectors, width, generator=random)
    book = torch.randn(codebook_size, width, generator=random)

    def matrix(z: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        d = torch.sum(z**2, dim=1, keepdim=True) + torch.sum(e**2, dim=1) - 2 * torch.matmul(z, e.t())
        return torch.argmin(d, dim=1)

    work = matrix if whose == "taming" else nearest_rows
    work(rows[:8], book)  # loads the libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work(rows, book)
        seconds.append(time.process_time() - started)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    agree = float((matrix(rows[:512], book) == nearest_rows(rows[:512], book)).float().mean())
    return {"cpu_seconds_best": round(min(seconds), 4), "extra_memory_mb": round(used / 1024, 1), "agree": agree}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128, help="width of VQGAN f16; 128 as released")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--codebook_size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    from importlib import metadata

    from unitok.train.folder import environment

    searches: dict[str, Any] = {"vectors": 16 * 1024, "codes": 16384, "width": 256}
    # In processes of their own, and before this one is large: a new process inherits the peak of its parent.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for whose in ("taming", "unitok"):
            searches[whose] = pool.apply(
                look_up, (whose, searches["vectors"], searches["codes"], searches["width"], options.rounds)
            )
            print(f"look-up  {whose:<7} {searches[whose]}", flush=True)
    cases = {}
    for case, pair in works(options.channels, options.side, options.batch, options.codebook_size).items():
        cases[case] = row = in_turns(pair, options.rounds)
        for name in ("taming", "unitok"):
            cpu, wall = row[name]["cpu"], row[name]["wall"]
            print(
                f"{case:<14} {name:<7} cpu {cpu['median']:>7.3f} s (best {cpu['best']:.3f}, "
                f"quartiles {cpu['quartiles'][0]:.3f} to {cpu['quartiles'][1]:.3f})   wall {wall['median']:>7.3f} s"
            )
        print(
            f"{case:<14} unitok / taming: cpu {row['ratio_cpu_median']:.3f} (of the best {row['ratio_cpu_best']:.3f}), "
            f"wall {row['ratio_wall_median']:.3f}",
            flush=True,
        )
    facts = environment()
    facts["versions"]["taming-transformers"] = metadata.version("taming-transformers")
    hardware = facts["hardware"]["gpu"] or f"{facts['hardware']['cpu']}-{facts['hardware']['cpu_cores']}cores"
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    date = datetime.now(UTC).date().isoformat()
    path = options.out / f"{date}-{slug}-taming-{options.side}.json"
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    record = {"date": date, **settings, "precision": "float32", **facts, "results": cases, "look_up": searches}
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
