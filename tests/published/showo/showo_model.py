"""Show-o as its authors compute it: a tiny Phi of transformers with norms of queries and keys, under their masks and in
their passes, written here from a description of their code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM

from unitok.seeding import keyed_generator

from ..foreign import CODES, SIDE, stirred

LENGTH = SIDE * SIDE
P = 300
"""Ids of the text tokenizer; the authors' marks stand behind them."""
END, PAD, SOI, EOI, T2I, MMU, FIRST = 0, P, P + 1, P + 2, P + 5, P + 6, P + 10
MASK = FIRST + CODES
ROOM = 20
"""Positions of the authors' texts before a picture, with padding in front."""
CAPTION = "Please describe this image in detail."
"""The question that asks for a caption."""
CAPTIONS = ("a red circle", "two squares", "")


def text_tokenizer(folder: Path) -> Tokenizer:
    """One that cuts and joins bytes as that of phi-1.5, and knows fewer words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=P,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken("<|endoftext|>")],
        show_progress=False,
    )
    words = ["a red circle", "two squares", "what is in it? a blue square"]
    tokenizer.train_from_iterator([f"USER: \n{word} ASSISTANT: {word}" for word in (*words, CAPTION)], trainer)
    assert tokenizer.get_vocab_size() == P and tokenizer.token_to_id("<|endoftext|>") == END
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def tiny_showo(folder: Path) -> Any:
    """A tiny model with random weights, saved in the folder as the authors save theirs."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=MASK + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        qk_layernorm=True,
        attn_implementation="eager",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    model = stirred(PhiForCausalLM(config))
    torch.save({f"showo.{name}": one for name, one in model.state_dict().items()}, folder / "pytorch_model.bin")
    facts = {"_class_name": "Showo", "llm_vocab_size": P, "codebook_size": CODES, "vocab_size": MASK + 1}
    (folder / "config.json").write_text(json.dumps({**facts, "llm_model_path": "microsoft/phi-1_5"}))
    text_tokenizer(folder)
    return model


@torch.inference_mode()
def run(model: Any, ids: list[int], sees: Tensor) -> Tensor:
    """Logits (T, all ids) under a mask (T, T)."""
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    found: Tensor = model(torch.tensor([ids]), attention_mask=bias[None, None], use_cache=False).logits[0]
    return found


def drawn(model: Any, text: list[int], codes: Tensor, whole: bool = False) -> Tensor:
    """Logits (L, codes) of a picture whose codes (L,) are -1 where they are hidden; `whole`: those of all ids."""
    caption = [T2I, END, *text, END]
    padding = ROOM - len(caption)
    assert padding >= 0
    image = [SOI, *torch.where(codes < 0, MASK, codes + FIRST).tolist(), EOI]
    ids = [*[PAD] * padding, *caption, *image]
    place = torch.arange(len(ids))
    sees = place[:, None] >= place
    sees[padding:, :padding] = False
    sees[ROOM:] = place >= padding
    return run(model, ids, sees)[ROOM + 1 : -1, slice(None) if whole else slice(FIRST, MASK)]


def asked(words: Tokenizer, question: str) -> list[int]:
    """The ids of a question, which is tokenized as a whole."""
    found: list[int] = words.encode(f"USER: \n{question} ASSISTANT:").ids
    return found


def reading(model: Any, codes: Tensor, text: list[int]) -> Tensor:
    """Logits (n + 1, all ids) behind a picture, from the begin of a text on."""
    ids = [MMU, SOI, *(codes + FIRST).tolist(), EOI, END, *text]
    image = LENGTH + 3
    place = torch.arange(len(ids))
    return run(model, ids, (place[:, None] >= place) | (place < image))[image:]


def alone(model: Any, text: list[int]) -> Tensor:
    """Logits (n + 1, all ids) of a text without a picture."""
    ids = [END, *text]
    return run(model, ids, torch.ones(len(ids), len(ids), dtype=torch.bool).tril())


def said(model: Any, codes: Tensor, question: list[int], most: int) -> list[int]:
    """The ids of an answer, the most likely each time."""
    found: list[int] = []
    while len(found) < most:
        chosen = int(reading(model, codes, [*question, *found])[-1, :P].argmax())
        if chosen == END:
            break
        found.append(chosen)
    return found


def passes(
    model: Any,
    text: list[int],
    scale: float,
    steps: int,
    seed: int,
    temperature: float = 1.0,
    known: Tensor | None = None,
) -> Tensor:
    """The authors' loop, with the random numbers of ours; `known` (L,) is -1 where a code is drawn."""
    draws = torch.rand(steps, 2, LENGTH, generator=keyed_generator(seed, "masked_token"))
    codes = torch.full((LENGTH,), -1) if known is None else known
    for step in range(steps):
        logits = (1 + scale) * drawn(model, text, codes) - scale * drawn(model, [], codes)
        chances = logits.softmax(-1)
        point = draws[step, 0].double()[:, None]
        found = (chances.double().cumsum(-1) <= point * chances.double().sum(-1, keepdim=True)).sum(-1)
        unknown = codes < 0
        found = torch.where(unknown, found, codes)
        picked = chances.gather(-1, found[:, None])[:, 0]
        picked = torch.where(unknown, picked, torch.finfo(torch.float32).max)
        done = 1.0 * (step + 1) / steps
        share = torch.cos(torch.tensor(done) * math.pi * 0.5)
        count = max(1, min(int(unknown.sum()) - 1, int((LENGTH * share).floor())))
        temperature = temperature * (1 - done)
        gumbel = -torch.log(-torch.log(draws[step, 1].clamp(1e-9, 1 - 1e-7)))
        confidence = picked.clamp(min=1e-20).log() + temperature * gumbel
        codes = found.masked_fill(confidence < confidence.sort().values[count], -1)
    return found
