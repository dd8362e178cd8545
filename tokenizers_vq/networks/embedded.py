"""A small network that has learned to see rendered scenes and emoji: the picture tower of the embedded dual encoder.

`eval/networks/encoder/` has the other half, says how both were trained, and measures by them. Here it stands as a
vision encoder that needs no hub (`unitok/reader/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import UserError
from ..storage.files import parse_json
from ..storage.schema import read_dataclass
from ..storage.weights import check_finite

WEIGHTS = Path(__file__).parent / "unitok-embedded-v1.safetensors"
PICTURES = "image."
"""How the names of the picture tower's weights begin."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the dual encoder; the defaults are version 1."""

    image_size: int = 64
    image_width: int = 160
    """Also the dimension of the pooled feature that FID uses."""
    image_layers: int = 1
    """Attention blocks over the 4x4 positions that the convolutions leave."""
    text_buckets: int = 4096
    """Rows of the table that the hashes of words and letter triples point into."""
    text_width: int = 128
    text_layers: int = 2
    words: int = 64
    """Words read of a caption; the rest is ignored."""
    pieces: int = 12
    """Pieces read of one word."""
    heads: int = 4
    embedding: int = 128


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, C); mask (B, 1, 1, N), True where a position may be looked at."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) * (width // self.heads) ** -0.5  # (B, heads, N, N)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        seen = (
            scores.softmax(dim=-1).to(qkv.dtype) @ qkv[2]
        )  # written out: SDPA's backward takes thrice as long on CPUs
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ResidualConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def down(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class ImageTower(nn.Module):
    """Pictures to one pooled vector each."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.image_width, config.image_size // 16
        shallow = (down(3, 32), down(32, 64), ResidualConv(64), down(64, 128), ResidualConv(128))
        self.stem = nn.Sequential(*shallow, down(128, width), ResidualConv(width))
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.image_layers))
        self.norm = nn.LayerNorm(width)

    def places(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [-1, 1] -> (B, N, C): a vector for each of S/16 x S/16 places."""
        x = self.stem(images).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.norm(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [-1, 1] -> (B, C)."""
        return self.places(images).mean(dim=1)


def fit_to(images: Tensor, size: int) -> Tensor:
    """float (B, 3, H, W) of any size -> (B, 3, S, S); antialiased bilinear."""
    if tuple(images.shape[-2:]) != (size, size):
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return images.contiguous(memory_format=torch.channels_last)


def load_picture_tower(path: Path = WEIGHTS) -> ImageTower:
    """The picture tower in evaluation mode, float32 on the CPU; its weights are frozen.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("config", "null")
            names = [name for name in file.keys() if name.startswith(PICTURES)]  # noqa: SIM118
            weights = {name.removeprefix(PICTURES): file.get_tensor(name).float() for name in names}
        tower = ImageTower(read_dataclass(EncoderConfig, parse_json(text, "config"), "config"))
        check_finite(weights, "it holds weights that see nothing", "reinstall unitok")
        tower.load_state_dict(weights)
    except FileNotFoundError:
        raise UserError(f"the embedded encoder's weights {path} are missing: reinstall unitok") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold an embedded encoder ({reason}): reinstall unitok") from error
    return tower.eval().requires_grad_(False)
