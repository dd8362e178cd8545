"""The trunk of a model with its table and its head as a causal language model of transformers, without code of ours.

What holds is the same in all of them: ids stand as in the model's own vocabulary, and a text alone, `bos` first, has
equal logits. Pictures lie by row and column, which these classes do not know: a row with a picture in it differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor

from tokenizers_vq.errors import UserError

from ..config import TrunkConfig
from ..model import UniTok
from ..ports import IdPort
from ..text import FILE as TOKENIZER
from ..trunk.hf import HFTrunk
from ..trunk.hf.reading import authors_names
from ..trunk.native import Transformer
from ..vocabulary import SPECIALS
from .folders import Export, files
from .llama import LONGEST, TEXTS, WEIGHTS, chameleon, llama, llama_settings, llama_weights

STILL = 1e30
"""Wavelength of a pair that does not turn."""


def export(name: str | Path) -> Export:
    """The language model of the model in a folder.

    Raises:
        UserError: no model, or a trunk that is not written for transformers.
    """
    return language_model(UniTok.from_pretrained(name))


@torch.no_grad()
def language_model(model: UniTok) -> Export:
    """See `export`."""
    kind = model.config.trunk.kind
    if kind not in TRUNKS:
        raise UserError(
            f"the trunk of this model is that of {kind}, which unitok does not write for transformers: export trunks "
            f"of kind {', '.join(TRUNKS)}, or take --to onnx for its image tokenizer"
        )
    return TRUNKS[kind](model)


def _with_own_ids(model: UniTok, config: dict[str, Any], weights: dict[str, Tensor]) -> Export:
    """A model whose ids are those of our vocabulary, and that writes texts alone when it is asked to go on."""
    vocabulary = model.vocabulary
    tokens = {f"{name}_token_id": vocabulary[name].start for name in ("bos", "eos", "pad")}
    writing = {**tokens, "suppress_tokens": [*range(vocabulary.eos + 1, vocabulary.size)]}
    values = {"config.json": {**config, **tokens, "vocab_size": vocabulary.size, "dtype": "float32"}}
    tokenizer = _tokenizer(model)
    holds = TEXTS if tokenizer else f"{TEXTS}; the text tokenizer stays here, for its marks would have other ids there"
    values |= {"generation_config.json": writing} | tokenizer
    return Export(f"transformers.{config['architectures'][0]}", holds, files(WEIGHTS, weights, values))


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
    settings: dict[str, Any] = {f"{name}_token": marks[name] for name in ("bos", "eos", "pad")}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {TOKENIZER: json.loads(texts.to_str()), "tokenizer_config.json": settings}


def _tables(model: UniTok, embedding: str, head: str) -> tuple[dict[str, Tensor], bool]:
    """(table and head by these names, whether they are one). What ids have in common is linear: it is added to
    the rows."""
    ids = model.ids
    assert isinstance(ids, IdPort), "as of every kind in TRUNKS"
    table, scores = ids.embedding.weight.clone(), ids.head.weight.clone()
    for alike in ids.alike:
        table[alike.span] += alike.read(alike.vectors[:-1])
        scores[alike.span] += alike.rows(alike.span)
    tied = model.config.trunk.tied_head and torch.equal(table, scores)
    found = {embedding: table} if tied else {embedding: table, f"{head}.weight": scores}
    if ids.head.bias is not None:
        found[f"{head}.bias"] = ids.head.bias
    return found, tied


# --- one function for each kind of trunk -----------------------------------------------------------------------------


def _native(model: UniTok) -> Export:
    """Ours is Qwen3 (Llama with norms of queries and keys, arXiv:2505.09388) whose rotary pairs turn at frequencies of
    their own: half of them with the order, and those of row and column, which are 0 in a text, not at all. transformers
    takes frequencies as factors of `longrope`; of base 1 they are wavelengths."""
    trunk, config = model.trunk, model.config.trunk
    assert isinstance(trunk, Transformer) and isinstance(config, TrunkConfig)
    weights, tied = _tables(model, "model.embed_tokens.weight", "lm_head")
    weights |= llama_weights(trunk, config, "model.")
    for layer, state in enumerate(block.state_dict() for block in trunk.blocks):
        for short, long in (("q", "query"), ("k", "key")):
            norm = state[f"attention.{long}_norm.weight"]
            weights[f"model.layers.{layer}.self_attn.{short}_norm.weight"] = norm
    lengths = [1 / turn if turn else STILL for turn in trunk.rotary.frequencies[0].tolist()]
    rope = {"rope_type": "longrope", "rope_theta": 1.0, "factor": 1.0, "attention_factor": 1.0}
    rope |= {"short_factor": lengths, "long_factor": lengths, "original_max_position_embeddings": LONGEST}
    values = llama_settings(config, trunk.norm.eps) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": config.head_size,
        "tie_word_embeddings": tied,
        "rope_parameters": rope,
    }
    return _with_own_ids(model, values, weights)


def _hf(model: UniTok) -> Export:
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
    return _with_own_ids(model, values, weights)


TRUNKS: dict[str, Callable[[UniTok], Export]] = {
    TrunkConfig.kind: _native,
    HFTrunk.kind: _hf,
    "janus": llama,
    "seed_llama": llama,
    "chameleon": chameleon,
}
"""Kind of trunk -> how it is written."""
