"""Text encoders of transformers: from captions to the states that a generator reads.

A caption is run alone, so its states do not depend on others. Authors pad captions and hide the padding, which comes
to the same. States that were made are kept, so a caption that comes again costs nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import read_bytes
from tokenizers_vq.storage.hub import HUB, fetched, from_hub
from tokenizers_vq.storage.weights import check_finite

from ..conditions import TextStates
from ..text import FILE, LARGEST, TextTokenizer, load_text_tokenizer
from .cleaning import cleaned
from .config import TextEncoderConfig

logger = logging.getLogger(__name__)

CLASSES = {"t5": "T5EncoderModel"}
"""Model type of a configuration -> class of the encoder."""
CONFIG = "config.json"
FILES = (CONFIG, FILE, "model*.safetensors", "model.safetensors.index.json")
KEPT = 2**26
"""Numbers of states that are kept: 256 MiB."""
_reading = Lock()


class Encoder:
    """An encoder with its text tokenizer. Models that name the same one share it."""

    def __init__(self, model: Any, texts: TextTokenizer, words: str) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.texts, self.width, self.end = texts, int(model.config.d_model), int(model.config.eos_token_id)
        self._words = words
        """SHA-256 (hex) of the file of the text tokenizer."""
        self.told = False
        """Whether a caption was cut, and it was said."""
        self._lock = Lock()
        self._states: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._numbers = 0

    def ids(self, text: str) -> list[int]:
        """Those of a text and its end."""
        return [*self.texts.encode(text), self.end]

    def states(self, ids: Sequence[int], device: torch.device) -> torch.Tensor:
        """(n, F) float32, on the CPU."""
        key = tuple(ids)
        with self._lock:  # a server asks from several threads
            if key in self._states:
                self._states.move_to_end(key)
                return self._states[key]
            # What is kept may be used in training later, which takes nothing from an inference mode.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                given = torch.tensor([key], device=device)
                found: torch.Tensor = self.model.to(device)(input_ids=given).last_hidden_state[0].float().cpu()
            self._states[key] = found
            self._numbers += found.numel()
            while self._numbers > KEPT and len(self._states) > 1:
                self._numbers -= self._states.popitem(last=False)[1].numel()
            return found

    def digest(self) -> str:
        """See `TextEncoderConfig`."""
        parts = {self._words}  # a set: a later version of transformers may name a tensor in another way, or twice
        for tensor in self.model.state_dict().values():
            one = hashlib.sha256(repr(tuple(tensor.shape)).encode())
            one.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            parts.add(one.hexdigest())
        return hashlib.sha256(" ".join(sorted(parts)).encode()).hexdigest()


@dataclass(frozen=True)
class CaptionStates:
    """Turns captions into what a model reads of them. Holds nothing heavy: the encoder is read when it is first
    used."""

    config: TextEncoderConfig | None
    most: int
    """States of a caption; the authors cut longer ones."""
    width: int
    """Size of a state."""
    authors: str
    """The encoder of the model's authors, on the hub."""
    cleans: bool
    """Whether captions are cleaned before."""
    device: torch.device

    def __call__(self, caption: str) -> TextStates:
        """Raises UserError where the model names no encoder, or it cannot be had."""
        encoder = self.encoder()
        ids = self._ids(encoder, caption)
        if len(ids) > self.most:
            if not encoder.told:
                encoder.told = True
                logger.warning(
                    "a caption of %d tokens is cut to %d, as the model's authors do, longer ones will be too: %.60s...",
                    len(ids),
                    self.most,
                    caption,
                )
            ids = [*ids[: self.most - 1], encoder.end]
        return TextStates.of(encoder.states(ids, self.device))

    def too_long(self, caption: str) -> bool:
        """Whether the caption is cut."""
        return len(self._ids(self.encoder(), caption)) > self.most

    def _ids(self, encoder: Encoder, caption: str) -> list[int]:
        return encoder.ids(cleaned(caption) if self.cleans else caption)

    def encoder(self) -> Encoder:
        """Raises UserError as a call does."""
        if self.config is None:
            raise UserError(
                f"this model reads captions through {self.authors}, and its folder names no text encoder: import it "
                f"again with --text_encoder {HUB}{self.authors}, or a folder of it, or give "
                "unitok.conditions.TextStates from Python"
            )
        return open_encoder(self.config)

    def named(self, name: str) -> TextEncoderConfig:
        """What a model is to say of an encoder in a folder or on the hub.

        Raises:
            UserError: it cannot be read, or makes states of another size.
        """
        folder = _folder(name, None)
        encoder = _read(folder, name)
        if encoder.width != self.width:
            raise UserError(
                f"{name} makes states of {encoder.width} numbers, this model reads those of {self.width}: give the one "
                f"of its authors, {HUB}{self.authors}"
            )
        on_hub = name.startswith(HUB)
        place = name if on_hub else str(Path(name).resolve())
        return TextEncoderConfig(
            name=place, revision=_commit(folder, name) if on_hub else None, digest=encoder.digest()
        )


def open_encoder(config: TextEncoderConfig) -> Encoder:
    """The encoder that a model names, read once. Raises UserError where it is not there, or another one."""
    with _reading:
        return _opened(config)


@lru_cache(maxsize=4)
def _opened(config: TextEncoderConfig) -> Encoder:
    encoder = _read(_folder(config.name, config.revision), config.name)
    if encoder.digest() != config.digest:
        raise UserError(
            f"{config.name} is not the text encoder that the model names: bring that back, or name this one with "
            "unitok merge MODEL --text_encoder"
        )
    return encoder


def _commit(folder: Path, name: str) -> str:
    """Of a folder of the hub's cache, where `name` may go on behind the repository."""
    inside = name.count("/") - 1
    return folder.parents[inside - 1].name if inside else folder.name


def _folder(name: str, revision: str | None) -> Path:
    folder = fetched(name, FILES, revision) if name.startswith(HUB) else Path(name)
    lacking = [file for file in (CONFIG, FILE) if not (folder / file).is_file()]
    if lacking:
        raise UserError(
            f"text encoder {name} has no {' and no '.join(lacking)}: give the folder of one, such as T5, or name "
            "another with unitok merge MODEL --text_encoder"
        )
    return folder


def _read(folder: Path, name: str) -> Encoder:
    import transformers  # heavy, and only needed here

    transformers.utils.logging.disable_progress_bar()  # it comes in between what a command says
    texts = load_text_tokenizer(folder)
    with from_hub(
        lambda error: (
            f"text encoder {name} cannot be read ({' '.join(str(error).split())[:200] or type(error).__name__}): give "
            f"the folder of one with {CONFIG}, {FILE} and model.safetensors"
        )
    ):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type not in CLASSES:
            raise UserError(f"text encoder {name} is of type {config.model_type!r}: give one of {', '.join(CLASSES)}")
        kind = getattr(transformers, CLASSES[config.model_type])
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise UserError(f"text encoder {name} lacks {lacking[0]}: restore its files")
    if texts.size > model.config.vocab_size:
        raise UserError(
            f"text encoder {name} has {model.config.vocab_size} ids, its {FILE} {texts.size}: restore its files"
        )
    check_finite(model.state_dict(), f"text encoder {name} is damaged", "restore its files")
    return Encoder(model, texts, hashlib.sha256(read_bytes(folder / FILE, LARGEST)).hexdigest())
