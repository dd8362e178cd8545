"""A tiny model of transformers' Chameleon with an image tokenizer of ours in it, for the families of this network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from tokenizers_vq.base import ImageTokenizer, build_tokenizer
from tokenizers_vq.config import ConvVQConfig
from tokenizers_vq.quantizers.config import VQ

from ..foreign import CODES, TEXTS, stirred


def spelled(code: int) -> str:
    return "IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z"


def image_tokenizer(size: int | tuple[int, int] = 16) -> ImageTokenizer:
    """One of taming-transformers with attention in the middle alone."""
    config = ConvVQConfig(
        image_size=size,
        channels=32,
        channel_multipliers=(1, 1, 2),
        blocks=1,
        latent_dim=32,
        quantizer=VQ(codebook_size=CODES, dim=256),
        attention="middle",
    )
    torch.manual_seed(0)
    return build_tokenizer(config).eval()


def chameleon(folder: Path, words: Any, own: ImageTokenizer, **more: Any) -> Any:
    """A model that reads and writes the codes of `own`, saved in a folder; `words` is its text tokenizer, `more` are
    settings of its configuration."""
    images = {"embed_dim": 256, "num_embeddings": CODES, "latent_channels": 32, "resolution": 16, "base_channels": 32}
    config = ChameleonConfig(
        vocab_size=TEXTS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        vq_config={**images, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1},
        vocabulary_map={**words.get_vocab(), "<image>": TEXTS - 1},
        bos_token_id=0,
        eos_token_id=2,
        **more,
    )
    torch.manual_seed(0)
    model = stirred(ChameleonForConditionalGeneration(config))
    parts = {name: one for name, one in own.state_dict().items() if not name.startswith(("decoder.", "quantizer."))}
    model.model.vqmodel.load_state_dict({**parts, "quantize.embedding.weight": own.code_vectors()[0]})
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def scored(model: Any, ids: list[int]) -> Tensor:
    """Logits (T, all ids); the model itself hides those of codes."""
    return model.lm_head(model.model(torch.tensor([ids])).last_hidden_state[0])
