"""Tiny text encoders with random weights, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from .foreign import stirred

WORDS = ("a", "red", "blue", "circle", "square", "left", "of", "small", "large", ",", "the", "two")


def saved_t5(folder: Path, width: int = 256, seed: int = 1) -> Path:
    """flan-T5's shape in small: gated GELU, and a tokenizer that puts an end behind every text."""
    tokens = ["<pad>", "</s>", "<unk>", *WORDS, *(f"w{number}" for number in range(20))]
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config = T5Config(
        vocab_size=40,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    stirred(T5EncoderModel(config), seed).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@torch.no_grad()
def authors_states(folder: Path, captions: list[str], most: int) -> list[Tensor]:
    """As the authors call it: all captions in a batch, padded and cut to the greatest length; those that count."""
    texts = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    model: Any = T5EncoderModel.from_pretrained(folder).eval()
    given = texts(captions, max_length=most, padding="max_length", truncation=True, return_tensors="pt")
    states = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    return [one[mask.bool()] for one, mask in zip(states, given["attention_mask"], strict=True)]
