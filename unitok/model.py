"""A model: the transformer with its image tokenizer, its text tokenizer and the vocabulary that joins them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from tokenizers_vq.base import CONFIG_FILE, ImageTokenizer, load_tokenizer
from tokenizers_vq.digests import check_digest, check_own, take_digests, with_digests
from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.files import part, read_json, read_stable, replace_parts, write_json
from tokenizers_vq.layout import Layout
from tokenizers_vq.weights import build_empty, read_weights, write_weights

from .config import ModelConfig
from .objectives import Objective, get_objective
from .text import FILE as TEXT_FILE
from .text import TextTokenizer, load_text_tokenizer
from .transformer import Transformer
from .vocabulary import Vocabulary

CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGE_TOKENIZER, TEXT_TOKENIZER = "image_tokenizer", "text_tokenizer"
PROVEN = (WEIGHTS, f"{IMAGE_TOKENIZER}/{CONFIG_FILE}", f"{TEXT_TOKENIZER}/{TEXT_FILE}")
"""Files whose digests stand in `config.json`; that of the image tokenizer has those of its weights."""


class UniTok(nn.Module):
    """What a model folder holds.

    `config.json`, `model.safetensors` (the transformer), `image_tokenizer/` and `text_tokenizer/`. `save_pretrained`
    and `from_pretrained` are inverse to the bit.
    """

    def __init__(self, config: ModelConfig, image_tokenizer: ImageTokenizer, text_tokenizer: TextTokenizer) -> None:
        super().__init__()
        problems = Problems()
        problems.check(
            config.codebook_size == image_tokenizer.codebook_size,
            f"the model knows {config.codebook_size} image codes, its tokenizer has {image_tokenizer.codebook_size}: "
            "use the tokenizer it was trained with",
        )
        problems.check(
            config.text_size == text_tokenizer.size,
            f"the model knows {config.text_size} text ids, its text tokenizer has {text_tokenizer.size}: "
            "use the text tokenizer it was trained with",
        )
        problems.raise_if_any()
        self.objective: Objective = get_objective(config.objective, image_tokenizer)
        if config.features != self.objective.features:
            raise UserError(
                f"the model takes features of length {config.features}, its objective and tokenizer make "
                f"{self.objective.features}: use the tokenizer it was trained with"
            )
        self.config = config
        self.vocabulary = Vocabulary(config.text_size, config.codebook_size)
        self.text_tokenizer = text_tokenizer
        self.transformer = Transformer(config.trunk, self.vocabulary.size, config.features)
        self.image_tokenizer = image_tokenizer.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.transformer.embedding.weight.device

    @property
    def layout(self) -> Layout:
        """Layout of the pictures that the model draws."""
        return self.image_tokenizer.layout

    def text_ids(self, caption: str) -> list[int]:
        """Ids of a caption. Raises UserError when it is too long for the model."""
        ids = self.text_tokenizer.encode(caption)
        if len(ids) > self.config.text_length:
            start = caption if len(caption) < 40 else caption[:37] + "..."
            raise UserError(
                f"the caption {start!r} has {len(ids)} tokens, this model takes {self.config.text_length}: shorten it"
            )
        return ids

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights and the configuration; names the model in the records of its pictures."""
        digest = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self.transformer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model folder: all its parts are replaced or none, whenever the process is killed.

        Other files in the folder stay.

        Raises:
            UserError: a weight is not finite, or the folder cannot be written.
        """
        replace_parts(Path(folder), self._write_parts)

    def _write_parts(self, folder: Path) -> None:
        self.image_tokenizer.write_parts(folder / IMAGE_TOKENIZER)
        self.text_tokenizer.save(folder / TEXT_TOKENIZER)
        write_weights(self._state(), folder / WEIGHTS)
        write_json(folder / CONFIG, with_digests(self.config.to_json(), folder, CONFIG, *PROVEN))

    def _state(self) -> dict[str, torch.Tensor]:
        """The tensors of the transformer as its file holds them: a tied head is the embedding, and not there."""
        state = self.transformer.state_dict()
        if self.config.trunk.tied_head:
            del state["head.weight"]
        return state

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu") -> UniTok:
        """Reads a model folder, or `hf:owner/name` from the hub.

        Raises:
            UserError: files that are missing, foreign or damaged.
        """
        folder = _fetch(str(name)) if str(name).startswith("hf:") else Path(name)
        problems = Problems()
        problems.check(folder.is_dir(), f"model folder {folder} does not exist")
        problems.raise_if_any()
        for name_of_part in (CONFIG, WEIGHTS, IMAGE_TOKENIZER, TEXT_TOKENIZER):
            problems.check(
                part(folder, name_of_part).exists(),
                f"model folder {folder} has no {name_of_part}: is it a finished generator?",
            )
        problems.raise_if_any()
        return read_stable(part(folder, CONFIG), lambda: cls._load(folder)).to(device)

    @classmethod
    def _load(cls, folder: Path) -> UniTok:
        where = part(folder, CONFIG)
        data = read_json(where)
        if not isinstance(data, dict):
            raise UserError(f"{where} holds a {type(data).__name__}, not a configuration: restore the file")
        files = take_digests(data, where)
        config = ModelConfig.from_json(data, str(where))
        check_own(data, files, where)
        for file in PROVEN:
            check_digest(folder, file, files, "restore the model folder")
        images, texts = load_tokenizer(part(folder, IMAGE_TOKENIZER)), load_text_tokenizer(part(folder, TEXT_TOKENIZER))
        found = images.fingerprint()
        if config.image_tokenizer and found != config.image_tokenizer:
            raise UserError(
                f"{folder / IMAGE_TOKENIZER} is not the tokenizer this model was trained with "
                f"(fingerprint {found[:12]}, expected {config.image_tokenizer[:12]}): put the right one back"
            )
        model = build_empty(lambda: cls(config, images, texts), str(where))
        advice = "weights and configuration are of different models, or damaged: restore both"
        model.transformer.load_state_dict(
            read_weights(part(folder, WEIGHTS), model._state(), advice), strict=not config.trunk.tied_head
        )
        return model.eval()


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix("hf:")))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model {name} could not be fetched ({reason}): check the name, or give a local folder"
        ) from None
