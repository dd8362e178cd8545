"""The trunk of a model with its table and its head as a causal language model of transformers, without code of ours.

What holds is the same in all of them: ids stand as in the model's own vocabulary, and a text alone, `bos` first, has
equal logits. Pictures lie by row and column, which these classes do not know: a row with a picture in it differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor

from tokenizers_vq.errors import UserError

from ..config import TrunkConfig
from ..model import UniTok
from ..text import FILE as TOKENIZER
from ..trunk.hf import HFTrunk
from ..trunk.hf.reading import authors_names
from ..trunk.native import Transformer
from ..vocabulary import SPECIALS
from .folders import Export

LONGEST = 2**15
"""Positions that are said to be there; rotary ones have no end."""
STILL = 1e30
"""Wavelength of a pair that does not turn."""
WEIGHTS = "model.safetensors"
TEXTS = "logits of texts (within 1e-4)"

Made = tuple[dict[str, Any], dict[str, Tensor]]
"""Configuration and weights, by the authors' names."""


def export(name: str | Path) -> Export:
    """The language model of the model in a folder.

    Raises:
        UserError: no model, or a trunk that no class of transformers computes.
    """
    return language_model(UniTok.from_pretrained(name))


@torch.no_grad()
def language_model(model: UniTok) -> Export:
    """See `export`."""
    kind = model.config.trunk.kind
    if kind not in TRUNKS:
        raise UserError(
            f"the trunk of this model is that of {kind}, which no class of transformers computes: export trunks of "
            f"kind {', '.join(TRUNKS)}, or take --to onnx for its image tokenizer"
        )
    config, weights = TRUNKS[kind](model)
    vocabulary = model.vocabulary
    tokens = {f"{name}_token_id": vocabulary[name].start for name in ("bos", "eos", "pad")}
    config |= {"vocab_size": vocabulary.size, "dtype": "float32", **tokens}
    closed = [one for one in range(vocabulary.size) if not 0 <= one - vocabulary.text_range.start < _texts(model)]
    writing = {**tokens, "suppress_tokens": [one for one in closed if one != vocabulary.eos]}
    files = {"config.json": config, "generation_config.json": writing} | _tokenizer(model)
    name = config["architectures"][0]
    return Export(f"transformers.{name}", TEXTS, WEIGHTS, weights, json_files=files)


def _texts(model: UniTok) -> int:
    return dict(model.vocabulary.spans)["text"]


def _tokenizer(model: UniTok) -> dict[str, Any]:
    """Files of the text tokenizer with the marks of the vocabulary as tokens, so that a text begins with `bos`; none
    where their ids would be others."""
    texts = Tokenizer.from_str(model.text_tokenizer.tokenizer.to_str())
    marks = {name: f"<|unitok_{name}|>" for name in SPECIALS}
    texts.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks.values()])
    if any(texts.token_to_id(mark) != model.vocabulary[name].start for name, mark in marks.items()):
        return {}
    bos = marks["bos"]
    texts.post_processor = processors.TemplateProcessing(
        f"{bos} $A", f"{bos} $A {bos} $B", [(bos, model.vocabulary.bos)]
    )
    settings = {f"{name}_token": marks[name] for name in ("bos", "eos", "pad")}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {TOKENIZER: json.loads(texts.to_str()), "tokenizer_config.json": settings}


def _tables(model: UniTok, embedding: str, head: str) -> tuple[dict[str, Tensor], bool]:
    """(table and head by these names, whether they are one). Waves of steps of a scale are linear: their part is added
    to the rows."""
    ids = model.ids
    table, scores = ids.embedding.weight.clone(), ids.head.weight.clone()
    for waves in ids.waves.values():
        steps = waves.steps[:-1]  # type: ignore[index]
        table[waves.span] += waves.read(steps)  # type: ignore[index,operator]
        scores[waves.span] += steps @ waves.write.weight  # type: ignore[index,operator,union-attr]
    tied = model.config.trunk.tied_head and torch.equal(table, scores)
    found = {embedding: table} if tied else {embedding: table, f"{head}.weight": scores}
    if ids.head.bias is not None:
        found[f"{head}.bias"] = ids.head.bias
    return found, tied


# --- one function for each kind of trunk -----------------------------------------------------------------------------


def _native(model: UniTok) -> Made:
    """Ours is Qwen3 (Llama with norms of queries and keys, arXiv:2505.09388) whose rotary pairs turn at frequencies of
    their own: half of them with the order, and those of row and column, which are 0 in a text, not at all. transformers
    takes frequencies as factors of `longrope`; of base 1 they are wavelengths."""
    trunk, config = model.trunk, model.config.trunk
    assert isinstance(trunk, Transformer) and isinstance(config, TrunkConfig)
    weights, tied = _tables(model, "model.embed_tokens.weight", "lm_head")
    weights["model.norm.weight"] = trunk.norm.weight
    sizes = [count * config.head_size for count in (config.heads, config.key_heads, config.key_heads)]
    for layer, state in enumerate(block.state_dict() for block in trunk.blocks):
        start = f"model.layers.{layer}."
        for part, tensor in zip("qkv", state["attention.qkv.weight"].split(sizes), strict=True):
            weights[f"{start}self_attn.{part}_proj.weight"] = tensor
        for part, tensor in zip(("gate", "up"), state["mlp.gate_up.weight"].chunk(2), strict=True):
            weights[f"{start}mlp.{part}_proj.weight"] = tensor
        for ours, theirs in NATIVE_NAMES.items():
            weights[f"{start}{theirs}.weight"] = state[f"{ours}.weight"]
    lengths = [1 / turn if turn else STILL for turn in trunk.rotary.frequencies[0].tolist()]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": trunk.norm.eps,
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1.0,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": LONGEST,
            "short_factor": lengths,
            "long_factor": lengths,
        },
    }, weights


NATIVE_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp.down": "mlp.down_proj",
}


def _hf(model: UniTok) -> Made:
    """A language model goes back as its own class, with the rows of the new ids."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model.config.trunk
    assert isinstance(config, HFTrunk)
    settings = AutoConfig.for_model(**config.language_model)
    theirs = AutoModelForCausalLM._model_mapping[type(settings)]
    base = f"{theirs.base_model_prefix}."
    weights, tied = _tables(model, f"{base}{config.parts.embedding}.weight", "lm_head")
    state = {f"trunk.{name}": tensor for name, tensor in model.trunk.state_dict().items()}
    weights |= {base + name: state[ours] for ours, name in authors_names(config, state).items()}
    values = {**config.language_model, "architectures": [theirs.__name__], "tie_word_embeddings": tied}
    return values, weights


TRUNKS: Mapping[str, Callable[[UniTok], Made]] = {
    TrunkConfig.kind: _native,
    HFTrunk.kind: _hf,
}
"""Kind of trunk -> how it is written."""
