"""A small image-text dual encoder, so that a machine without a network can measure something.

It has CLIP's form (Radford et al. 2021) at a hundredth of the size: a small residual network with attention at its end
for pictures, hashed word pieces with attention for captions, one shared space. It knows the `shapes` scenes and emoji,
nothing else; README.md beside this file says what was measured. Its numbers are not an Inception FID and not an OpenAI
CLIPScore.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.networks.embedded import WEIGHTS, Block, EncoderConfig, ImageTower, fit_to
from tokenizers_vq.storage.files import parse_json
from tokenizers_vq.storage.schema import read_dataclass
from tokenizers_vq.storage.weights import check_finite


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


@lru_cache(maxsize=65536)
def word_pieces(word: str, buckets: int, limit: int) -> tuple[int, ...]:
    """1-based rows for a word: two hashes of the whole word, then its letter triples. 0 is kept for padding."""
    marked = f"<{word}>"
    names = [f"1{marked}", f"2{marked}", *(marked[i : i + 3] for i in range(len(marked) - 2))]
    return tuple(1 + zlib.crc32(name.encode()) % buckets for name in names[:limit])


class TextTower(nn.Module):
    """Captions to one pooled vector each."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.text_buckets + 1, config.text_width, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(config.words, config.text_width))
        self.blocks = nn.ModuleList(Block(config.text_width, config.heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.text_width)

    def pieces(self, captions: list[str]) -> Tensor:
        """(B, T, K) rows of the table, 0 where there is no word or no piece."""
        config = self.config
        split = [split_words(caption)[: config.words] or ["."] for caption in captions]
        rows = np.zeros((len(split), max(map(len, split)), config.pieces), dtype=np.int64)
        for b, words in enumerate(split):
            for t, word in enumerate(words):
                found = word_pieces(word, config.text_buckets, config.pieces)
                rows[b, t, : len(found)] = found
        return torch.from_numpy(rows)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (B, T, K) -> (B, C)."""
        count = (rows > 0).sum(dim=-1, keepdim=True)  # (B, T, 1) pieces of each word
        seen = count > 0
        x = self.table(rows).sum(dim=2) / count.clamp(min=1).sqrt()
        x = x + self.position[: rows.shape[1]]
        for block in self.blocks:
            x = block(x, seen.transpose(1, 2)[:, None])
        return (self.norm(x) * seen).sum(dim=1) / seen.sum(dim=1)


class DualEncoder(nn.Module):
    """Pictures and captions in one space: the cosine of the two embeddings says how well they fit."""

    def __init__(self, config: EncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or EncoderConfig()
        self.image, self.text = ImageTower(self.config), TextTower(self.config)
        self.image_head = nn.Linear(self.config.image_width, self.config.embedding, bias=False)
        self.text_head = nn.Linear(self.config.text_width, self.config.embedding, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) of any size -> float (B, 3, S, S) in [-1, 1]; antialiased bilinear."""
        return fit_to(images.to(self.device).float() / 127.5 - 1, self.config.image_size)

    def image_embeddings(self, features: Tensor) -> Tensor:
        """Pooled image features (B, C) -> (B, E) of length 1."""
        return F.normalize(self.image_head(features).float(), dim=-1)

    def text_embeddings(self, captions: list[str]) -> Tensor:
        """Captions -> (B, E) of length 1."""
        features = self.text(self.text.pieces(captions).to(self.device))
        return F.normalize(self.text_head(features).float(), dim=-1)


def save_encoder(model: DualEncoder, path: Path, notes: dict[str, str]) -> None:
    """Safetensors (matrices in bf16) with the config and notes in the header; written whole or not at all."""
    weights = {
        name: value.detach().to(torch.bfloat16 if value.ndim > 1 else value.dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    temporary = path.with_name(path.name + ".part")
    save_file(weights, temporary, metadata={"format": "pt", "config": json.dumps(asdict(model.config)), **notes})
    temporary.replace(path)


def load_encoder(path: Path = WEIGHTS) -> DualEncoder:
    """The encoder in eval mode, float32 on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("config", "null")
        model = DualEncoder(read_dataclass(EncoderConfig, parse_json(text, "config"), "config"))
        weights = load_file(path)
        check_finite(weights, "it holds weights that measure nothing", "reinstall unitok")
        model.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"the embedded encoder's weights {path} are missing: reinstall unitok") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold an embedded encoder ({reason}): reinstall unitok") from error
    return model.eval().requires_grad_(False)


def file_hash(path: Path = WEIGHTS) -> str:
    """sha256 hex of the weights file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
