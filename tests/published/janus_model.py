"""Janus as transformers computes it: a tiny model, its prompts, and what it draws and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration

from unitok.model import UniTok

from .foreign import CODES, SIDE, TEXTS, WORDS, stirred, text_tokenizer

EOS, BOS, PAD = (
    f"<\uff5c{word}\uff5c>" for word in ("end\u2581of\u2581sentence", "begin\u2581of\u2581sentence", "\u2581pad\u2581")
)
SPECIALS = ("<unk>", BOS, EOS, PAD, "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>")
BOI, EOI, COLON = 4, 5, len(SPECIALS)
HERE = TEXTS - 1
"""Where transformers puts what it sees in a picture; no id of the text tokenizer."""
CAPTION = "w3 w7 w1"


def tiny_janus(folder: Path) -> Any:
    """A tiny model with random weights, saved in the folder."""
    torch.manual_seed(0)
    text = {"model_type": "llama", "vocab_size": TEXTS, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500.0}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "max_position_embeddings": 256}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    vision |= {"projection_dim": 32, "num_image_tokens": SIDE * SIDE}
    images = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32}
    images |= {"channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32}
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=images, image_token_id=HERE, tie_word_embeddings=False
    )
    model = stirred(JanusForConditionalGeneration(config))
    book = model.model.vqmodel.quantize.embedding.weight
    # transformers looks codes up without bringing latents to length 1, as the authors do: the same for such a book.
    book.data = torch.nn.functional.normalize(book.data, dim=-1)
    model.save_pretrained(folder)
    text_tokenizer(folder, SPECIALS)
    return model


def ids_of(model: UniTok, caption: str) -> list[int]:
    return [1, *model.text_tokenizer.encode(f"<|User|>: {caption}\n\n<|Assistant|>:"), BOI]


@torch.inference_mode()
def forced(model: Any, prompt: list[int], codes: Tensor) -> Tensor:
    """Logits (L, V) where each of the codes (L,) stands."""
    texts = model.get_input_embeddings()(torch.tensor([prompt]))
    images = model.prepare_embeddings_for_image_generation(codes[None, :-1])
    hidden = model.model.language_model(inputs_embeds=torch.cat([texts, images], 1)).last_hidden_state
    return model.model.generation_head(hidden[0, len(prompt) - 1 :])


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], scale: float) -> Tensor:
    config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        max_length=64,
        generation_kwargs={"boi_token_id": BOI},
        guidance_scale=scale,
        do_sample=False,
    )
    return model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_mode="image",
        generation_config=config,
    )[0]


def prompt(model: UniTok, question: str, system: str = "", pictures: int = 1) -> list[int]:
    """A talk's first turn about pictures, tokenized as a whole."""
    marks = "<begin_of_image> <end_of_image> " * pictures
    whole = f"{system}<|User|>: {marks}\n{question}\n\n<|Assistant|>:"
    seen = [HERE] * SIDE * SIDE
    return [1, *(id for one in model.text_tokenizer.encode(whole) for id in ([*seen, one] if one == EOI else [one]))]


def seen(pixels: Tensor) -> Tensor:
    return pixels[None] / 127.5 - 1


@torch.inference_mode()
def said(model: Any, ids: list[int], pixels: Tensor, most: int = 12) -> list[int]:
    """What transformers answers, the most likely each time."""
    config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3, max_new_tokens=most, do_sample=False)
    config.suppress_tokens = list(range(COLON + 1 + WORDS, TEXTS))  # rows that no token has
    inputs, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64)
    found = model.generate(inputs, attention_mask=mask, pixel_values=seen(pixels), generation_config=config)[0]
    new = found[len(ids) :].tolist() if len(found) > most else found.tolist()
    return new[: new.index(2)] if 2 in new else new


def words_of(model: UniTok, ids: list[int]) -> str:
    return model.text_tokenizer.decode(ids)
