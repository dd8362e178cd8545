"""What a GPU computes, and how fast: one JSON in less than eight minutes.

    python benchmarks/gpu.py > gpu.json

Each part runs in a process of its own under its own limit, is printed to the standard error when it is done, and one
that fails or takes too long leaves the others alone:

    codes       tokenizers in float32: the share of codes and pixels that are those of the CPU
    logits      each objective in float32: the largest difference from the CPU's; and the share of codes drawn alike
    bf16        each objective: loss and drawn codes in bf16 against float32
    attention   FlexAttention and xFormers against SDPA, forward and backward: differences, milliseconds
    compile     a training step with compiled blocks against an eager one: losses, milliseconds, seconds of compiling
    decode, train of a preset: as `unitok bench`, in bf16, with the share of the roofline

`--device cpu --tiny` shows on any machine that it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from unitok.model import UniTok

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", "a black star", ""]
SPEEDS = {
    "decode small next_token": 60,
    "train small next_token": 40,
    "decode base next_token": 70,
    "train base next_token": 40,
}
"""Line of the table of speeds -> its seconds at most."""
LIMITS = {"codes": 40, "logits": 40, "bf16": 40, "attention": 75, "compile": 60, **SPEEDS}
"""Part -> its seconds at most."""


def codes(device: str, tiny: bool) -> dict[str, Any]:
    """Tokenizers against the CPU."""
    import copy

    import torch

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.device import pick_device

    found = {}
    for preset in ("debug",) if tiny else ("shapes", "shapes_scales", "small", "base"):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENIZER_PRESETS[preset]()).eval()
        images = torch.rand(2, 3, *tokenizer.image_size) * 2 - 1
        twin = copy.deepcopy(tokenizer).to(pick_device(device))
        right = tokenizer.encode(images)
        same = (twin.encode(images.to(pick_device(device))).cpu() == right).float().mean().item()
        pictures = twin.decode(right.to(pick_device(device))).cpu() - tokenizer.decode(right)
        found[preset] = {"equal_codes": same, "largest_pixel_difference": pictures.abs().max().item()}
    return found


def logits(device: str, tiny: bool) -> dict[str, Any]:
    """Models in float32 against the CPU."""
    import copy

    from unitok.device import pick_device
    from unitok.sample.pipeline import draw_codes, score_codes
    from unitok.sampling import SampleSettings

    found, settings = {}, SampleSettings(guidance=2.0, top_p=0.9)
    for objective, model in models(tiny):
        twin, given = copy.deepcopy(model).to(pick_device(device)), some_codes(model)
        difference = score_codes(twin, CAPTIONS, given) - score_codes(model, CAPTIONS, given)
        one, two = (draw_codes(each, CAPTIONS, settings, range(4)).cpu() for each in (twin, model))
        found[objective] = {
            "largest_difference": difference.abs().max().item(),
            "equal_drawn_codes": (one == two).float().mean().item(),
        }
    return found


def bf16(device: str, tiny: bool) -> dict[str, Any]:
    """Models in bf16 against themselves in float32, both on the device."""
    import copy

    import torch

    from unitok.device import autocast, pick_device
    from unitok.prepare import prepare
    from unitok.sample.pipeline import draw_codes, score_codes
    from unitok.sampling import SampleSettings

    found, settings = {}, SampleSettings(guidance=2.0, top_p=0.9)
    for objective, model in models(tiny):
        model.to(pick_device(device))
        prepared, given = copy.deepcopy(model), some_codes(model)
        prepare(prepared, "bf16")
        right = score_codes(model, CAPTIONS, given).log_softmax(-1)
        with autocast(model.device, "bf16"):
            rounded = score_codes(model, CAPTIONS, given).float().log_softmax(-1)
        one, two = (draw_codes(each, CAPTIONS, settings, range(4)) for each in (prepared, model))
        nats = [each.gather(-1, given[..., None]).mean() for each in (right, rounded)]
        found[objective] = {
            "nats_fp32": -nats[0].item(),
            "nats_bf16": -nats[1].item(),
            "equal_drawn_codes": torch.eq(one, two).float().mean().item(),
        }
    return found


def attention(device: str, tiny: bool) -> dict[str, Any]:
    """The other backends against SDPA, under the rule of two documents in a row with groups that see themselves."""
    import torch

    from unitok.device import pick_device
    from unitok.trunk.rule import attend, visibility

    place = pick_device(device)
    rows, heads, length, size = (1, 2, 128, 16) if tiny else (4, 16, 1024, 64)
    torch.manual_seed(0)
    shape = (rows, heads, length, size)
    q, k, v, upstream = (torch.randn(shape, device=place) for _ in range(4))
    groups = torch.arange(length, device=place).div(8, rounding_mode="floor").repeat(rows, 1)
    owners = (torch.arange(length, device=place) // (length // 2)).repeat(rows, 1)

    def run(backend: str, dtype: torch.dtype, backward: bool) -> list[torch.Tensor]:
        parts = [one.to(dtype).requires_grad_(backward) for one in (q, k, v)]
        out = attend(parts[0], parts[1], parts[2], visibility(groups, owners, backend=backend))
        grads = torch.autograd.grad(out, parts, upstream.to(dtype)) if backward else ()
        return [one.detach().float() for one in (out, *grads)]

    found: dict[str, Any] = {}
    for backend in ("sdpa", "flex", "xformers"):
        for backward in (False, True):
            name = f"{backend} {'forward and backward' if backward else 'forward'}"
            try:
                pairs = zip(run(backend, torch.float32, backward), run("sdpa", torch.float32, backward), strict=True)
                difference = max((one - other).abs().max().item() for one, other in pairs)
                times = timed(lambda: run(backend, torch.bfloat16, backward), place, 1 if tiny else 10)  # noqa: B023
                found[name] = {"largest_difference": difference, "bf16_ms": statistics.median(times) * 1000}
            except Exception as error:  # a backend that this machine lacks leaves the others alone
                found[name] = {"failed": first_line(error)}
    return found


def compiled(device: str, tiny: bool) -> dict[str, Any]:
    """A training step with compiled blocks, as `--run.compile true` has them."""
    import torch

    from unitok.cli.bench_cases import generator
    from unitok.device import pick_device

    place = pick_device(device)
    found: dict[str, Any] = {}
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        step, model, _, _ = generator("train", "next_token", "debug" if tiny else "shapes", 8, "bf16", place)
        if name == "compiled":
            for block in model.trunk.blocks:
                block.compile()
        first = timed(step, place, 1, warm=False)[0]
        times = timed(step, place, 2 if tiny else 20)
        weight = sum(one.detach().double().sum().item() for one in model.trunk.parameters())
        found[name] = {"first_s": first, "ms": statistics.median(times) * 1000, "sum_of_weights": weight}
    return found


def speed(device: str, tiny: bool, line: str) -> dict[str, Any]:
    """A line of the table of speeds."""
    from unitok.cli.bench_cases import measure, on_this_machine

    what, preset, objective = line.split()
    preset, batch, rounds = ("debug", 2, 1) if tiny else (preset, 16, 2)
    facts = on_this_machine(device, "bf16", None)
    row = measure(f"{what} {objective}", preset, batch, rounds, "bf16", None, device, facts["roofline"])
    return {"batch_size": batch, "roofline": facts["roofline"], **row}


PARTS: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "codes": codes,
    "logits": logits,
    "bf16": bf16,
    "attention": attention,
    "compile": compiled,
}


def models(tiny: bool) -> list[tuple[str, UniTok]]:
    """(objective, a fresh model of it that does not say the same everywhere)."""
    import torch

    from tokenizers_vq.base import build_tokenizer
    from tokenizers_vq.config import TOKENIZER_PRESETS
    from unitok.config import TRUNK_PRESETS, ModelConfig
    from unitok.model import UniTok
    from unitok.objectives import OBJECTIVES, get_objective, objective_class
    from unitok.text import train_bpe
    from unitok.vocabulary import Vocabulary

    found = []
    for objective in list(OBJECTIVES)[: 1 if tiny else None]:
        torch.manual_seed(0)
        scaled = objective_class(objective).sets_scales
        tokenizer = build_tokenizer(TOKENIZER_PRESETS["shapes_scales" if scaled else "shapes"]()).eval()
        text = train_bpe(CAPTIONS, 300)
        spans = Vocabulary.of(text.size, tokenizer.codebook_size).spans
        ports = get_objective(objective, tokenizer).ports(tokenizer.layout)
        trunk = TRUNK_PRESETS["debug" if tiny else "shapes"]()
        model = UniTok(ModelConfig(trunk, objective, spans, ports=ports), tokenizer, text).eval()
        for weight in model.parameters():
            if weight.ndim == 2 and weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.08)
        found.append((objective, model))
    return found


def some_codes(model: UniTok) -> torch.Tensor:
    """(4, L): a picture for each caption."""
    import torch

    random = torch.Generator().manual_seed(0)
    return torch.randint(model.image_tokenizer.codebook_size, (len(CAPTIONS), model.layout.length), generator=random)


def timed(work: Callable[[], object], place: torch.device, rounds: int, warm: bool = True) -> list[float]:
    """Seconds of each round, after one to warm up."""
    import torch

    times = []
    for _ in range(rounds + warm):
        started = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times[warm:]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def outcome(part: str, device: str, tiny: bool, limit: float) -> dict[str, Any]:
    """What a part found, or why it did not, and its seconds."""
    words = [sys.executable, __file__, "--only", part, "--device", device, *(["--tiny"] if tiny else [])]
    started = time.perf_counter()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        found = json.loads(done.stdout) if done.returncode == 0 else {"failed": last}
    except subprocess.TimeoutExpired:
        found = {"failed": f"took longer than {limit:g} s"}
    return {"part": part, "seconds": round(time.perf_counter() - started, 1), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--only", choices=list(LIMITS), help="run one part in this process, without a limit")
    parser.add_argument("--tiny", action="store_true", help="small models, one objective, few rounds")
    options = parser.parse_args()
    if options.only:
        if options.only in PARTS:
            found = PARTS[options.only](options.device, options.tiny)
        else:
            found = speed(options.device, options.tiny, options.only)
        print(json.dumps(found))
        return
    from unitok.train.folder import environment

    results = []
    for part in options.parts:
        results.append(outcome(part, options.device, options.tiny, LIMITS[part]))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"device": options.device, "tiny": options.tiny, **environment(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
