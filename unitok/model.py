"""A model: the transformer with its image tokenizer, its text tokenizer and the vocabulary that joins them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tokenizers_vq.base import ImageTokenizer, load_tokenizer
from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.layout import Layout

from .config import ModelConfig
from .objectives import Objective, get_objective
from .text import TextTokenizer, load_text_tokenizer
from .transformer import Transformer
from .vocabulary import Vocabulary

CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGE_TOKENIZER, TEXT_TOKENIZER = "image_tokenizer", "text_tokenizer"


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
        """Writes the model folder; what an interrupted save leaves behind is never mistaken for a model.

        Other files in the folder stay.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            draft = Path(name)
            self.image_tokenizer.save_pretrained(draft / IMAGE_TOKENIZER)
            self.text_tokenizer.save(draft / TEXT_TOKENIZER)
            state = {k: v.detach().contiguous() for k, v in self.transformer.state_dict().items()}
            if self.config.trunk.tied_head:
                del state["head.weight"]  # the embedding; a file holds every tensor once
            save_file(state, draft / WEIGHTS)
            (draft / CONFIG).write_text(json.dumps(self.config.to_json(), indent=2) + "\n")
            for part in (IMAGE_TOKENIZER, TEXT_TOKENIZER, WEIGHTS, CONFIG):
                if (folder / part).is_dir():
                    shutil.rmtree(folder / part)
                os.replace(draft / part, folder / part)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str = "cpu") -> UniTok:
        """Reads a model folder, or `hf:owner/name` from the hub. Raises UserError for missing or foreign files."""
        folder = _fetch(str(name)) if str(name).startswith("hf:") else Path(name)
        problems = Problems()
        problems.check(folder.is_dir(), f"model folder {folder} does not exist")
        problems.raise_if_any()
        for part in (CONFIG, WEIGHTS, IMAGE_TOKENIZER, TEXT_TOKENIZER):
            problems.check(
                (folder / part).exists(), f"model folder {folder} has no {part}: is it a finished generator?"
            )
        problems.raise_if_any()
        try:
            data = json.loads((folder / CONFIG).read_text())
        except (ValueError, OSError) as error:
            raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
        config = ModelConfig.from_json(data, str(folder / CONFIG))
        model = cls(config, load_tokenizer(folder / IMAGE_TOKENIZER), load_text_tokenizer(folder / TEXT_TOKENIZER))
        found = model.image_tokenizer.fingerprint()
        if config.image_tokenizer and found != config.image_tokenizer:
            raise UserError(
                f"{folder / IMAGE_TOKENIZER} is not the tokenizer this model was trained with "
                f"(fingerprint {found[:12]}, expected {config.image_tokenizer[:12]}): put the right one back"
            )
        load_transformer(model.transformer, folder / WEIGHTS)
        return model.eval().to(device)


def load_transformer(transformer: Transformer, path: Path) -> None:
    """Weights of a safetensors file into a transformer. Raises UserError that lists what does not fit."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    wanted = transformer.state_dict()
    if transformer.config.tied_head:
        del wanted["head.weight"]
    problems = Problems()
    missing, foreign = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    problems.check(not missing, f"{path} lacks {len(missing)} tensors: {', '.join(missing[:5])}")
    problems.check(not foreign, f"{path} has {len(foreign)} foreign tensors: {', '.join(foreign[:5])}")
    for name in sorted(wanted.keys() & state.keys()):
        problems.check(
            wanted[name].shape == state[name].shape,
            f"{path}: {name} has shape {tuple(state[name].shape)}, the configuration says {tuple(wanted[name].shape)}",
        )
    problems.raise_if_any()
    transformer.load_state_dict(state, strict=not transformer.config.tied_head)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name.removeprefix("hf:")))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model {name} could not be fetched ({reason}): check the name, or give a local folder"
        ) from None
