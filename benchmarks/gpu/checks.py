"""What a GPU computes, beside what it should. Nothing here measures time, so the parts may run side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from unitok.cli.bench_cases import generator
from unitok.config import TRUNK_PRESETS, ModelConfig
from unitok.device import autocast, pick_device
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.prepare import prepare
from unitok.sample import engine
from unitok.sample.pipeline import draw_codes, score_codes
from unitok.sampling import SampleSettings
from unitok.text import train_bpe
from unitok.trunk.rule import attend, visibility
from unitok.trunk.steps import capturing
from unitok.vocabulary import Vocabulary

Row = dict[str, Any]
Part = Callable[[str, bool, dict[str, Any]], Iterator[Row]]
"""(device, tiny, roofline) -> what is found, row by row."""

CAPTIONS = ["a small red circle", "a large blue square left of a small green triangle", "a black star", ""]
THREADS = 4
"""Of each part, which has others beside it."""


def codes(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """Tokenizers against the CPU."""
    place = pick_device(device)
    torch.set_num_threads(THREADS)
    for preset in ("debug",) if tiny else ("shapes", "shapes_scales", "small", "base"):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(TOKENIZER_PRESETS[preset]()).eval()
        images = torch.rand(2, 3, *tokenizer.image_size) * 2 - 1
        twin = copy.deepcopy(tokenizer).to(place)
        right = tokenizer.encode(images)
        same = (twin.encode(images.to(place)).cpu() == right).float().mean().item()
        with torch.inference_mode():
            pictures = twin.decode(right.to(place)).cpu() - tokenizer.decode(right)
        yield {"preset": preset, "equal_codes": same, "largest_pixel_difference": pictures.abs().max().item()}


def logits(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """Models in float32 against the CPU, and captured steps against those that are not."""
    place, settings = pick_device(device), SampleSettings(guidance=2.0, top_p=0.9)
    torch.set_num_threads(THREADS)
    for objective, model in models(tiny):
        twin, given = copy.deepcopy(model).to(place), some_codes(model)
        difference = score_codes(twin, CAPTIONS, given) - score_codes(model, CAPTIONS, given)
        one, two = (draw_codes(each, CAPTIONS, settings, range(4)).cpu() for each in (twin, model))
        engine.capturing = lambda device: None
        plain = draw_codes(twin, CAPTIONS, settings, range(4)).cpu()
        engine.capturing = capturing
        yield {
            "objective": objective,
            "largest_difference": difference.abs().max().item(),
            "equal_drawn_codes": (one == two).float().mean().item(),
            "equal_captured_codes": (one == plain).float().mean().item(),
        }


def bf16(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """Models in bf16 against themselves in float32, both on the device."""
    place, settings = pick_device(device), SampleSettings(guidance=2.0, top_p=0.9)
    torch.set_num_threads(THREADS)
    for objective, model in models(tiny):
        model.to(place)
        prepared, given = copy.deepcopy(model), some_codes(model)
        prepare(prepared, "bf16")
        right = score_codes(model, CAPTIONS, given).log_softmax(-1)
        with autocast(model.device, "bf16"):
            rounded = score_codes(model, CAPTIONS, given).float().log_softmax(-1)
        half = score_codes(prepared, CAPTIONS, given).log_softmax(-1)
        one, two = (draw_codes(each, CAPTIONS, settings, range(4)) for each in (prepared, model))
        names = ("fp32", "autocast", "prepared")
        nats = {
            f"nats_{name}": -each.gather(-1, given[..., None]).mean().item()
            for name, each in zip(names, (right, rounded, half), strict=True)
        }
        yield {"objective": objective, **nats, "equal_drawn_codes": torch.eq(one, two).float().mean().item()}


def attention(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
    """The other backends against SDPA."""
    for name, run in backends(device, tiny):
        for backward in (False, True):
            what = {"backend": name, "backward": backward}
            try:
                pairs = zip(*(run(each, torch.float32, backward) for each in (name, "sdpa")), strict=True)
                yield {**what, "largest_difference": max((one - other).abs().max().item() for one, other in pairs)}
                run(name, torch.bfloat16, backward)  # compiles what the times will need
            except Exception as error:  # a backend that this machine lacks leaves the others alone
                yield {**what, "failed": first_line(error)}


def backends(device: str, tiny: bool) -> Iterator[tuple[str, Callable[..., list[torch.Tensor]]]]:
    """(backend, what attends by it, forward and backward) under the rule of two documents in a row with groups that see
    themselves."""
    place = pick_device(device)
    rows, heads, length, size = (1, 2, 128, 16) if tiny else (4, 16, 1024, 64)
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(rows, heads, length, size, device=place) for _ in range(4))
    groups = torch.arange(length, device=place).div(8, rounding_mode="floor").repeat(rows, 1)
    owners = (torch.arange(length, device=place) // (length // 2)).repeat(rows, 1)
    seen: dict[str, Any] = {}

    def run(backend: str, dtype: torch.dtype, backward: bool) -> list[torch.Tensor]:
        if backend not in seen:
            seen[backend] = visibility(groups, owners, backend=backend)
        parts = [one.to(dtype).requires_grad_(backward) for one in (q, k, v)]
        out = attend(parts[0], parts[1], parts[2], seen[backend])
        grads = torch.autograd.grad(out, parts, upstream.to(dtype)) if backward else ()
        return [one.detach().float() for one in (out, *grads)]

    yield from ((backend, run) for backend in ("sdpa", "flex", "xformers"))


def compiled(preset: str) -> Part:
    """The loss and a training step with compiled blocks, as `--run.compile true` has them."""

    def check(device: str, tiny: bool, roofline: dict[str, Any]) -> Iterator[Row]:
        place = pick_device(device)
        step, model = training(preset, tiny, place)
        weights = {name: one.clone() for name, one in model.state_dict().items()}
        before = step()
        model.load_state_dict(weights)
        for block in model.trunk.blocks:
            block.compile()
        started = time.perf_counter()
        after = step()
        yield {"preset": preset, "loss": before, "compiled_loss": after, "compile_s": time.perf_counter() - started}

    return check


PICTURES = {"small": 64, "base": 32}
"""Of a training step."""


def training(preset: str, tiny: bool, place: torch.device) -> tuple[Callable[[], float], UniTok]:
    """A step in bf16, which gives the loss over the number of predicted ids, and the model that it trains."""
    torch.manual_seed(0)
    name, pictures = ("debug", 2) if tiny else (preset, PICTURES[preset])
    step, model, _, _ = generator("train", "next_token", name, pictures, "bf16", place)
    losses: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, given, found: losses.append(found.detach().sum()))

    def once() -> float:
        losses.clear()
        step()
        return losses[0].item()

    return once, model


def models(tiny: bool) -> Iterator[tuple[str, UniTok]]:
    """(objective, a fresh model of it that does not say the same everywhere)."""
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
        yield objective, model


def some_codes(model: UniTok) -> torch.Tensor:
    """(4, L): a picture for each caption."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(model.image_tokenizer.codebook_size, (len(CAPTIONS), model.layout.length), generator=random)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


PARTS: dict[str, Part] = {
    "codes": codes,
    "logits": logits,
    "bf16": bf16,
    "attention": attention,
    "compile small": compiled("small"),
    "compile base": compiled("base"),
}
