"""A causal language model of transformers becomes the trunk of a model, and its rows those of the text ids.

What is read here is files of others: safetensors, or a GGUF file. No code of theirs runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.published.read import locate, read_weights
from tokenizers_vq.published.tensors import check_numbers, misfits
from tokenizers_vq.storage.files import read_json
from tokenizers_vq.storage.hub import from_hub, why

from ...config import ModelConfig
from ...model import CONFIG, HEAD, UniTok
from ...text import FILE as TOKENIZER
from ...text import TextTokenizer, load_text_tokenizer
from ...vocabulary import Vocabulary
from ..fusion import part_of_fusion
from . import HFTrunk, Parts

HF = "hf:"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
GGUF = ".gguf"
HEAD_OF = "lm_head."
PREFIXES = ("model.", "transformer.")
"""Under which a file may hold all but the head."""
COMPUTED = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
"""Ends of the names of tensors that follow from the sizes."""
NOISE = 0.1
"""Deviation of a new row from the mean of the old ones, as a share of theirs."""


@dataclass(frozen=True)
class LanguageModel:
    """What was read of a language model."""

    name: str
    trunk: HFTrunk
    texts: TextTokenizer | None = None
    """None: the files have none."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By the authors' names; empty where only a configuration was given."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def fill(self, model: UniTok) -> None:
        """Puts the weights into a fresh model of this trunk; random draws are torch's.

        The rows of its text ids are those of the language model, and `eos` and `bos` are its own. All new rows, such as
        those of image codes, begin near the mean of the text's: alike they would be read alike at first.

        Raises:
            UserError: the text tokenizer has more ids than the language model.
        """
        if not self.weights:
            return
        parts = self.trunk.parts
        rows = self.weights[f"{parts.embedding}.weight"]
        texts = model.text_tokenizer.size
        if texts > len(rows):
            raise UserError(
                f"the text tokenizer has {texts} ids, {self.name} knows {len(rows)}: give the tokenizer of this model"
            )
        state = model.state_dict()
        for ours, theirs in authors_names(self.trunk, state).items():
            state[ours].copy_(self.weights[theirs])
        tables = {"ids.embedding.weight": rows}
        if not self.trunk.tied_head:
            tables[HEAD] = self.weights[f"{HEAD_OF}weight"]
        if self.trunk.head_bias:
            tables["ids.head.bias"] = self.weights[f"{HEAD_OF}bias"]
        for name, old in tables.items():
            state[name].copy_(self._grown(old.float(), model))

    def alone(self, text_length: int) -> UniTok:
        """A model that reads and writes texts as the language model does. Its image tokenizer has not learned anything.

        Raises:
            UserError: a configuration without weights.
        """
        if self.texts is None:
            raise UserError(f"{self.name} holds sizes alone: give the folder of a language model, or a .gguf file")
        images = build_tokenizer(TOKENIZER_PRESETS["debug"]())
        spans = Vocabulary.of(self.texts.size, images.codebook_size).spans
        model = UniTok(ModelConfig(self.trunk, "next_token", spans, text_length), images, self.texts)
        self.fill(model)
        return model.eval()

    def _grown(self, old: Tensor, model: UniTok) -> Tensor:
        """Rows (V, ...) of all ids of a model, from those of the language model."""
        vocabulary = model.vocabulary
        known = old[: model.text_tokenizer.size]
        deviation, mean = torch.std_mean(known, 0)
        rows = mean + NOISE * deviation * torch.randn(vocabulary.size, *old.shape[1:])
        rows[vocabulary["text"]] = known
        ends, begins = (_token(self.trunk.read, f"{name}_token_id", len(old)) for name in ("eos", "bos"))
        for name, token in (("eos", ends), ("bos", begins if begins is not None else ends)):
            if token is not None:
                rows[vocabulary[name]] = old[token]
        return rows


def read_language_model(name: str) -> LanguageModel:
    """A language model, float32 on the CPU.

    Args:
        name: `hf:` and a folder with config.json, model.safetensors and tokenizer.json; a .gguf file; a config.json
            alone, for fresh weights; or the name of a model on the hub, which is fetched.

    Raises:
        UserError: files that are missing, foreign or damaged; a model of a type that is not known.
    """
    path = Path(name.removeprefix(HF))
    if path.suffix == GGUF:
        return _read_gguf(path)
    if path.suffix == ".json":
        return LanguageModel(str(path), _read_config(path))
    if not path.is_dir():
        path = _fetch(str(path))
    missing = [file for file in (CONFIG, WEIGHTS, TOKENIZER) if not (path / file).is_file()]
    if (path / INDEX).is_file():
        missing = [file for file in missing if file != WEIGHTS]
    if missing:
        raise UserError(
            f"{path} has no {' and no '.join(missing)}: give the folder of a whole language model, or its config.json "
            "alone for fresh weights"
        )
    trunk = _read_config(path / CONFIG)
    weights = _plain(read_weights(locate(str(path), (INDEX, WEIGHTS)), ()))
    return _checked(LanguageModel(str(path), trunk, load_text_tokenizer(path), weights))


def read_trunk(name: str) -> HFTrunk:
    """The sizes of a language model, without its weights; `name` as of `read_language_model`.

    Raises:
        UserError: no configuration there, or of a type that is not known.
    """
    path = Path(name.removeprefix(HF))
    if path.suffix == GGUF:
        raise UserError(f"{path} holds its sizes among its weights: give the config.json of the language model")
    if path.suffix == ".json":
        return _read_config(path)
    return _read_config((path if path.is_dir() else _fetch(str(path), [CONFIG])) / CONFIG)


def _read_config(path: Path) -> HFTrunk:
    if not path.is_file():
        raise UserError(f"no file {path}: give the config.json of a language model")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is {shown(values)}: expected the configuration of a language model")
    try:
        return HFTrunk.of(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_gguf(path: Path) -> LanguageModel:
    """A GGUF file with its tokenizer; quantised weights become float32."""
    if not path.is_file():
        raise UserError(f"no file {path}: give a GGUF file")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{path} is read by the package gguf: pip install unitok-vq[gguf]") from None
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    with from_hub(
        lambda error: f"{path} cannot be read ({' '.join(str(error).split())[:200]}): give another GGUF file"
    ):
        config = AutoConfig.from_pretrained(path.parent, **where)
        trunk = HFTrunk.of(config.to_dict())
        model = AutoModelForCausalLM.from_pretrained(path.parent, config=config, dtype=torch.float32, **where)
        texts = json.loads(AutoTokenizer.from_pretrained(path.parent, **where).backend_tokenizer.to_str())
        # transformers adds marks of its own, which this model has no rows for.
        texts["added_tokens"] = [mark for mark in texts["added_tokens"] if mark["id"] < trunk.read.vocab_size]
        tokenizer = TextTokenizer(Tokenizer.from_str(json.dumps(texts)), str(path))
        return _checked(LanguageModel(str(path), trunk, tokenizer, _plain(model.state_dict())))


def _fetch(name: str, files: Sequence[str] = (CONFIG, TOKENIZER, INDEX, "model*.safetensors")) -> Path:
    """The files of a model of the hub, in the user's cache."""
    if Path(name).is_absolute() or name.startswith(".") or len(Path(name).parts) > 2:
        raise UserError(f"no folder {name}: give the folder of a language model, or hf:owner/name to fetch one")
    from huggingface_hub import snapshot_download

    with from_hub(
        lambda error: (
            f"language model {name} is no local folder and could not be fetched "
            f"({why(error)}): check name and network, or give a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}"
        )
    ):
        return Path(snapshot_download(name, allow_patterns=list(files)))


def _plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the bare model, without what follows from the sizes."""
    found = {}
    for name, tensor in weights.items():
        if not name.endswith(COMPUTED):
            prefix = next((one for one in PREFIXES if name.startswith(one)), "")
            found[name.removeprefix(prefix)] = tensor
    return found


def _checked(read: LanguageModel) -> LanguageModel:
    """Raises UserError unless the weights are those of the configuration."""
    trunk, parts = read.trunk, read.trunk.parts
    weights = dict(read.weights)
    if trunk.tied_head:  # a file may hold it all the same
        weights.pop(f"{HEAD_OF}weight", None)
    with torch.device("meta"):
        state = {f"trunk.{name}": tensor for name, tensor in trunk.build().state_dict().items()}
    table = (trunk.read.vocab_size, trunk.width)
    shapes: dict[str, tuple[int, ...] | None] = {
        theirs: tuple(state[ours].shape) for ours, theirs in authors_names(trunk, state).items()
    }
    shapes[f"{parts.embedding}.weight"] = table
    if not trunk.tied_head:
        shapes[f"{HEAD_OF}weight"] = table
    if trunk.head_bias:
        shapes[f"{HEAD_OF}bias"] = table[:1]
    number, complaint = misfits(weights, shapes)
    if number:
        raise UserError(f"the weights of {read.name} are not those of its configuration: {complaint}; fetch it again")
    check_numbers(read.name, weights, weights.keys(), "language model")
    texts = 0 if read.texts is None else read.texts.size
    if texts > table[0]:
        raise UserError(
            f"the tokenizer of {read.name} has {texts} ids, its embedding {table[0]} rows: they are of different models"
        )
    return LanguageModel(read.name, trunk, read.texts, weights)


def authors_names(trunk: HFTrunk, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of every tensor of the trunk that the authors' model has -> theirs. Weights for pictures alone are no
    part of it."""
    parts: Parts = trunk.parts
    found = {}
    for name in (name for name in state if not part_of_fusion(name)):
        place, _, rest = name.removeprefix("trunk.").partition(".")
        if place == "blocks":
            number, _, rest = rest.partition(".layer.")
            found[name] = f"{parts.layers}.{number}.{rest}"
        elif name.startswith("trunk.") and place in ("norm", "positions"):
            found[name] = f"{parts.norm if place == 'norm' else parts.positions}.{rest}"
    return found


def _token(config: Any, name: str, rows: int) -> int | None:
    """The id of a special token, the first if there are several; None where there is none."""
    value = getattr(config, name, None)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < rows else None
