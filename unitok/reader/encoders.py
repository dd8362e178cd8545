"""Encoders: from pictures to features at places.

Each takes float pictures (B, 3, H, W) in [-1, 1] of any size that its file allows, and gives (B, n, F) float32; n is
that of `grid`, row by row, and F is `width`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.networks.embedded import EncoderConfig, ImageTower, fit_to, load_picture_tower
from tokenizers_vq.networks.vision import VisionTower, build_vision, load_vision
from tokenizers_vq.storage.weights import check_finite

from .config import HF, ReaderConfig, ReaderSettings

OPTION = "reader.encoder"


class Encoder(nn.Module):
    """What all encoders promise."""

    grid: tuple[int, int]
    width: int

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Latents(Encoder):
    """What the image tokenizer of the model has before it chooses codes. It is the model's own, and is never trained
    here."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self._held = (tokenizer,)  # no part of this module: the model has it, and its weights are in their own file
        self.grid, self.size = tokenizer.layout.grid, tokenizer.image_size
        black = torch.zeros(1, 3, *self.size, device=next(tokenizer.parameters()).device)
        self.width = tokenizer.continuous(black).shape[2]

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.size:  # a tile
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return self._held[0].continuous(images)


class Embedded(Encoder):
    """The picture tower of this repository's dual encoder, before its mean: it has seen rendered scenes and emoji."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower
        self.size = tower.config.image_size
        self.grid, self.width = (self.size // 16, self.size // 16), tower.config.image_width

    def forward(self, images: Tensor) -> Tensor:
        return self.tower.places(fit_to(images.float(), self.size)).float()


class Hub(Encoder):
    """A vision model of transformers: the states of its patches."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.grid, self.width = tower.grid, tower.width

    def forward(self, images: Tensor) -> Tensor:
        states: Tensor = self.tower(images)
        return states[:, states.shape[1] - self.length :]


def _hub(config: ReaderConfig, tokenizer: ImageTokenizer) -> Encoder:
    assert config.vision is not None, "checked"
    return Hub(build_vision(config.vision, "reader.vision"))


ENCODERS: dict[str, Callable[[ReaderConfig, ImageTokenizer], Encoder]] = {
    "latents": lambda config, tokenizer: Latents(tokenizer),
    "embedded": lambda config, tokenizer: Embedded(ImageTower(EncoderConfig())),
    "hf": _hub,
}
"""Kind -> an encoder as a model has it; its weights follow."""


def read_encoder(settings: ReaderSettings, tokenizer: ImageTokenizer) -> tuple[ReaderConfig, Encoder]:
    """The encoder that settings name, with the weights that it has learned, and what a model says of it.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    name = settings.encoder
    assert name is not None, "there is one to be read"
    kind = "hf" if name.startswith(HF) else name
    config = ReaderConfig(
        encoder=kind,  # type: ignore[arg-type]
        connector=settings.connector,
        queries=settings.queries,
        depth=settings.depth,
        tiles=settings.tiles,
        fusion=settings.fusion,
        every=settings.every,
        vision={} if kind == "hf" else None,
    )
    found, encoder = READ[kind](config, name.removeprefix(HF), tokenizer)
    check_finite(encoder.state_dict(), f"{OPTION} {name} holds weights that see nothing", "give another")
    return found, encoder


def _read_hub(config: ReaderConfig, name: str, tokenizer: ImageTokenizer) -> tuple[ReaderConfig, Encoder]:
    from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE

    path = Path(name)
    needed = ["config.json", "preprocessor_config.json"]
    needed += [] if (path / SAFETENSORS_INDEX_FILE).is_file() else [SAFETENSORS_SINGLE_FILE]
    lacking = [file for file in needed if not (path / file).is_file()]
    if path.is_dir() and lacking:
        raise UserError(f"{OPTION} {HF}{name} has no {' and no '.join(lacking)}: give the folder of a vision model")
    if path.suffix == ".json" and not path.is_file():
        raise UserError(f"{OPTION} {HF}{name} is not there: give the config.json of a vision model")
    tower = load_vision(name, OPTION)
    return replace(config, vision=tower.description), Hub(tower)


READ: dict[str, Callable[[ReaderConfig, str, ImageTokenizer], tuple[ReaderConfig, Encoder]]] = {
    "latents": lambda config, name, tokenizer: (config, Latents(tokenizer)),
    "embedded": lambda config, name, tokenizer: (config, Embedded(load_picture_tower())),
    "hf": _read_hub,
}
"""Kind -> how an encoder comes with the weights that it has learned."""
