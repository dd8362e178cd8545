"""What a plan says, what torch's allocator hands out, and tiny models of published families to compare both with."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from published.infinity_arithmetic import SQUARE, TEXT, WHOLE, images_of
from published.tiny import CODES, SIDES, tokenizer
from published.voken_arithmetic import POST, PRE, SIDE, lfq_tokenizer
from torch.profiler import ProfilerActivity, profile

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.families.seed_config import SeedConfig
from tokenizers_vq.quantizers.config import VQ
from unitok.importing import published_config
from unitok.model import UniTok
from unitok.objectives import objective_class
from unitok.reader.config import NO_READER
from unitok.text import number_tokenizer
from unitok.train.plan.model import Wanted
from unitok.trunk.published import published_family
from unitok.tuning.config import NO_LORA

# The first backward pass of a process starts a thread for each device, and a plan for GPUs makes torch believe in one;
# with such threads no process can be forked for another test. So the first pass is made here, before any plan.
torch.zeros(1, requires_grad=True).sum().backward()


def wanted(model: object, **more: Any) -> Wanted:
    given = {"tokenizer": None, "objective": "next_token", "text_vocabulary": None, "reader": NO_READER}
    return Wanted(str(model), **{**given, "trainable": [], "lora": NO_LORA, **more})


def most_of(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has handed out at once for a work, beside what was there before."""
    gc.collect()  # what is let go of in the work counts as given back by it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    found = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = most = 0
    for event in sorted((one for one in found if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def near(found: float, wanted: float) -> bool:
    return abs(found - wanted) <= 0.1 * wanted


def seed_tokenizer() -> ImageTokenizer:
    quantizer, vision = VQ(codebook_size=CODES, dim=8), {"vision_width": 16, "vision_depth": 1, "vision_heads": 2}
    sizes = {"width": 24, "depth": 2, "heads": 2, "inner": 32, "decoder_depth": 1, "embedding": 12}
    return build_tokenizer(
        SeedConfig(image_size=28, patch=7, tokens=16, quantizer=quantizer, vision_inner=24, **vision, **sizes)
    )


TOKENIZERS: dict[str, Callable[[], ImageTokenizer]] = {
    "var": lambda: tokenizer(SIDES),
    "seed_llama": seed_tokenizer,
    "infinity": lambda: images_of(SQUARE),
    "open_magvit2_ar": lfq_tokenizer,
}
"""Family -> its image tokenizer; all others draw one grid of codes."""
SIZES = {
    "sides": SIDES,
    "latent": 8,
    "scales": SQUARE,
    "whole": WHOLE[SQUARE],
    "bits": 6,
    "caption_width": TEXT,
    "sub_tokens": (PRE, POST),
    "side": SIDE,
    "kv_heads": None,
    "patches": 2,
}
"""Sizes of trunks that have them."""


def tiny_published(name: str) -> UniTok:
    """Of a family, with random weights; of LlamaGen the one with classes."""
    family = published_family(name)
    trunk, texts, _ = next(iter(family.released().values()))
    held = {field: value for field, value in SIZES.items() if field in vars(trunk)}
    if name == "llamagen":
        held["caption_width"] = 0  # classes
    trunk = replace(trunk, width=64, depth=1, heads=4, inner=96, **held)
    images = TOKENIZERS.get(name, tokenizer)()
    words = number_tokenizer(100 if texts else 1)
    codes = objective_class(family.objective).ids_of(images)
    torch.manual_seed(0)
    return UniTok(published_config(family, trunk, images, words, codes), images.eval(), words).eval()
