"""Llama's blocks (arXiv:2302.13971) by the names of transformers, and the published models that are built of them.

Published models go back with their authors' ids: each of our own spans has the row of its token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_vq.config import ConvVQConfig
from tokenizers_vq.errors import UserError

from ..config import TrunkConfig
from ..model import UniTok
from ..ports import IdPort
from ..text import FILE as TOKENIZER
from ..text import TextTokenizer
from ..trunk.base import Trunk
from ..trunk.published import published_family
from ..trunk.published.chameleon import ChameleonTrunk
from ..trunk.published.chameleon import places_of_codes as chameleons_codes
from ..trunk.published.family import CLOSED, id_of
from ..trunk.published.llama import LlamaTrunk
from ..trunk.published.seed_llama import places_of_codes as seeds_codes
from .folders import Export, files
from .vq_model import unlike_vqgan

WEIGHTS, TABLE, HEAD = "model.safetensors", "model.embed_tokens.weight", "lm_head.weight"
TEXTS, TEXTS_AND_CODES = "logits of texts (within 1e-4)", "logits of texts and codes (within 1e-4)"
LONGEST = 2**15
"""Positions that are said to be there; rotary ones have no end."""
NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp.down": "mlp.down_proj",
}
"""Ours -> theirs, inside a layer."""
IMAGE = "<image>"
"""The token at which Chameleon's class puts the codes of a picture that is read."""


def llama_settings(config: TrunkConfig | LlamaTrunk, eps: float) -> dict[str, Any]:
    """What `config.json` says of the sizes."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": eps,
        "max_position_embeddings": LONGEST,
        "dtype": "float32",
    }


def llama_weights(trunk: Trunk, config: TrunkConfig | LlamaTrunk, start: str) -> dict[str, Tensor]:
    """The tensors of blocks and last norm, but for norms of queries and keys; names begin with `start`."""
    state = trunk.state_dict()
    found = {f"{start}norm.weight": state["norm.weight"]}
    sizes = [count * config.head_size for count in (config.heads, config.key_heads, config.key_heads)]
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}.", f"{start}layers.{layer}."
        for part, tensor in zip("qkv", state[f"{ours}attention.qkv.weight"].split(sizes), strict=True):
            found[f"{theirs}self_attn.{part}_proj.weight"] = tensor
        for part, tensor in zip(("gate", "up"), state[f"{ours}mlp.gate_up.weight"].chunk(2), strict=True):
            found[f"{theirs}mlp.{part}_proj.weight"] = tensor
        for inner, outer in NAMES.items():
            found[f"{theirs}{outer}.weight"] = state[f"{ours}{inner}.weight"]
    return found


def llama(model: UniTok) -> Export:
    """The language model of Janus and of SEED-LLaMA is Llama. SEED's codes are ids among those of texts. Janus has a
    table and a head of its own for codes, and SigLIP, which reads pictures: no class of Llama has these, so they stay.
    """
    config = model.config.trunk
    assert isinstance(config, LlamaTrunk)
    weights = llama_weights(model.trunk, config, "model.") | _tables(model)
    values = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": config.head_size}
    content = {"config.json": _settings(model, config, len(weights[HEAD])) | values} | _tokenizer(model)
    holds = TEXTS_AND_CODES if config.kind in CODES else TEXTS
    return Export("transformers.LlamaForCausalLM", holds, files(WEIGHTS, weights, content))


def chameleon(model: UniTok) -> Export:
    """Chameleon whole, but for the decoder of pictures, which its class has not: codes are ids among those of texts, in
    one line with them, and the encoder of the image tokenizer is a part of the class.

    Raises:
        UserError: an image tokenizer that is no VQGAN.
    """
    config, images = model.config.trunk, model.image_tokenizer
    reasons = unlike_vqgan(images)
    if reasons:
        raise UserError(f"Chameleon of transformers cannot compute the image tokenizer ({'; '.join(reasons)})")
    assert isinstance(config, ChameleonTrunk) and isinstance(images.config, ConvVQConfig)
    weights = llama_weights(model.trunk, config, "model.") | _tables(model)
    state = model.trunk.state_dict()
    for layer in range(config.depth):
        for part, ours in (("q", "query"), ("k", "key")):
            for kind, of_head in (("weight", "scale"), ("bias", "shift")):
                norm = state[f"blocks.{layer}.attention.{ours}_norm.{of_head}"]
                weights[f"model.layers.{layer}.self_attn.{part}_norm.{kind}"] = norm[:, 0]
    words = model.text_tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    size = len(weights[HEAD])
    if IMAGE not in words:  # nothing is learned at its place: codes take it
        words, size = {**words, IMAGE: size}, size + 1
        for name in (TABLE, HEAD):
            weights[name] = F.pad(weights[name], (0, 0, 0, 1))
    encoder = {
        name: one for name, one in images.state_dict().items() if not name.startswith(("decoder.", "quantizer."))
    }
    weights |= {f"model.vqmodel.{name}": tensor for name, tensor in encoder.items()}
    weights["model.vqmodel.quantize.embedding.weight"] = images.code_vectors()[0]
    values = _settings(model, config, size) | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "swin_norm": config.norms_behind,
        "vocabulary_map": words,
        "vq_config": _vqgan(images.config, *weights["model.vqmodel.quantize.embedding.weight"].shape),
    }
    holds = f"{TEXTS_AND_CODES}, codes of pictures that are read"
    content = {"config.json": values} | _tokenizer(model)
    return Export("transformers.ChameleonForConditionalGeneration", holds, files(WEIGHTS, weights, content))


def _vqgan(config: ConvVQConfig, codes: int, dim: int) -> dict[str, Any]:
    """The settings of the encoder of pictures. Attention stands in the middle, and behind the blocks of levels that go
    by their resolution."""
    side, levels = max(config.size), len(config.channel_multipliers)
    attending = {*config.attention_levels, *([levels - 1] if config.attention == "lowest" else [])}
    return {
        "model_type": "chameleon_vqgan",
        "num_embeddings": codes,
        "embed_dim": dim,
        "latent_channels": config.latent_dim,
        "resolution": side,
        "in_channels": 3,
        "base_channels": config.channels,
        "channel_multiplier": list(config.channel_multipliers),
        "num_res_blocks": config.encoder_levels[0][1],
        "attn_resolutions": [side // 2**level for level in sorted(attending)] or None,
        "attn_type": "none" if config.attention == "none" else "vanilla",
        "double_latent": False,
    }


def _settings(model: UniTok, config: LlamaTrunk, size: int) -> dict[str, Any]:
    tokens = published_family(config.kind).tokens
    texts = model.text_tokenizer
    return llama_settings(config, config.eps) | {
        "vocab_size": size,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        **{f"{name}_token_id": id_of(texts, tokens[name]) for name in ("bos", "eos", "pad")},
    }


def _tables(model: UniTok) -> dict[str, Tensor]:
    """Table and head of the authors' ids: each of our own spans in the place of its tokens.

    Raises:
        UserError: the head has learned biases, which the class has not.
    """
    ids, vocabulary, texts = model.ids, model.vocabulary, model.text_tokenizer
    assert isinstance(ids, IdPort), "as of every kind that is written here"
    family = published_family(model.config.trunk.kind)
    tokens = {span: token for span, token in family.tokens.items() if span in vocabulary}
    places = {span: [id_of(texts, token)] for span, token in tokens.items()}
    if family.config.kind in CODES:
        places["image"] = CODES[family.config.kind](texts, vocabulary.codebook_size)
    bias = ids.head.bias[torch.cat([torch.arange(vocabulary.size)[vocabulary[span]] for span in ("text", *places)])]
    if bool((bias[bias > CLOSED / 2] != 0).any()):
        raise UserError(
            "training has moved biases of the head (ids.head.bias), which no class of transformers has for this model: "
            "export the model that it started from, or tune it without them (--trainable, --lora.rank)"
        )
    found = {}
    for name, rows in ((TABLE, ids.embedding.weight), (HEAD, ids.head.weight)):
        table = rows[vocabulary["text"]].clone()
        for span, numbers in places.items():
            table[numbers] = rows[vocabulary[span]]
        found[name] = table
    return found


CODES: dict[str, Callable[[TextTokenizer, int], list[int]]] = {"seed_llama": seeds_codes, "chameleon": chameleons_codes}
"""Family -> where so many codes stand among the authors' ids. In others they have a table of their own."""


def _tokenizer(model: UniTok) -> dict[str, Any]:
    tokens = published_family(model.config.trunk.kind).tokens
    settings: dict[str, Any] = {f"{name}_token": tokens[name] for name in ("bos", "eos", "pad")}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {TOKENIZER: json.loads(model.text_tokenizer.tokenizer.to_str()), "tokenizer_config.json": settings}
