"""The contract of every image tokenizer, and its folder on disk.

B = images, L = codes per image, H, W = pixels
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import config_from_dict, config_to_dict
from .config_base import TokenizerConfig
from .errors import UserError
from .layout import Layout
from .networks.conv import fast_weights
from .parts import Tunable
from .quantizers.base import check_codes
from .quantizers.config import MOST_CODES
from .storage.digests import check_digest, check_own, read_configuration, with_digests
from .storage.files import part, read_stable, replace_parts, write_json
from .storage.hub import local_folder
from .storage.weights import build_empty, read_weights, write_weights
from .tf32 import without_tf32
from .tiles import Tiles, run_in_windows

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
COUNTED_BITS = 16
"""See `ImageTokenizer.counted`."""

_CLASSES = {
    "conv_vq": ".families.vq:ConvVQTokenizer",
    "open_magvit2": ".families.open_magvit2:OpenMagvit2Tokenizer",
    "emu3_vq": ".families.emu3:Emu3Tokenizer",
    "query_vq": ".families.query:QueryVQTokenizer",
    "seed": ".families.seed:SeedTokenizer",
}
"""Family -> where its class lives; looked up when needed, because the classes build on this module."""


@dataclass
class TokenizerOutput:
    """What `forward` returns, in training and in evaluation alike."""

    reconstruction: Tensor
    """(B, 3, H, W) float32, about [-1, 1], not clamped."""
    codes: Tensor
    """(B, L) int64."""
    losses: dict[str, Tensor]
    """Scalars of the quantizer, already weighted: add them to the reconstruction loss."""


class ImageTokenizer(Tunable, ABC):
    """Pixels <-> codes.

    Images are float (B, 3, H, W) in [-1, 1]; codes are (B, L) int64, scale-major then row-major. Keep the parameters in
    float32 and use autocast for speed: `encode` switches it off, so the codes of a picture never depend on it.
    """

    decoding: ClassVar[tuple[str, ...]] = ("decoder.",)
    """How the names of those tensors begin that only turn codes into pictures."""
    no_pixels: ClassVar[str] = ""
    """Why `decode` makes no pictures, and what would; empty where it makes them."""

    tiles = Tiles()
    """Which pictures are encoded and decoded in parts, without gradients (`tokenizers_vq.tiles`)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size: int = config.quantizer.size
        self.stride: int = config.stride
        self.image_size: tuple[int, int] = config.size

    @property
    def counted(self) -> int:
        """How many codes the use of the codebook is counted by: all, or, of codes that no table holds, those that
        their first `COUNTED_BITS` bits make."""
        return self.codebook_size if self.codebook_size <= MOST_CODES else 2**COUNTED_BITS

    def countable(self, codes: Tensor) -> Tensor:
        """Codes of any shape as numbers below `counted`."""
        if self.codebook_size == self.counted:
            return codes
        return codes >> (self.codebook_size.bit_length() - 1 - COUNTED_BITS) & (self.counted - 1)

    @property
    def layout(self) -> Layout:
        """Layout of the default image size."""
        return self.layout_for(*self.image_size)

    def layout_for(self, height: int, width: int) -> Layout:
        """Layout of any image size that the stride divides; UserError for others."""
        return self.config.layout_for(height, width)

    @abstractmethod
    def code_vectors(self) -> Tensor:
        """(G, K, D) float32: of each of G codebooks the vectors of its K codes, in the order of their ids: which codes
        are near to each other."""

    def code_features(self) -> Tensor:
        """(G * K, F) float32: what codes have in common. Where the codes are all combinations of some levels (FSQ),
        which of the levels each number of their vectors is; else the vectors."""
        vectors = self.code_vectors().detach().flatten(0, 1).float()
        found = [numbers.unique(return_inverse=True) for numbers in vectors.unbind(1)]
        counts = [len(levels) for levels, _ in found]
        if len(counts) == 1 or max(counts) == 2 or math.prod(counts) != len(vectors):
            return vectors  # also of bits: of two levels the numbers themselves say as much
        return torch.cat([F.one_hot(which, len(levels)) for levels, which in found], 1).float()

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight that makes the pixels, or what stands for them, for losses that balance themselves by its
        gradient."""

    @abstractmethod
    def forward(self, images: Tensor, accumulate: bool = False) -> TokenizerOutput:
        """Reconstructs. `accumulate=True` on all but the last micro-batch of a step puts off the codebook's move."""

    @abstractmethod
    def _encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) checked float32 -> (B, L)."""

    @abstractmethod
    def _continuous(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) checked float32 -> (B, D, h, w): what the quantizer gets, on the finest grid of the layout."""

    @abstractmethod
    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        """(B, n) checked, n of `known_after`, -> (B, 3, H, W)."""

    def _paint(self, latents: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, H, W), of a family whose codes add up to latents."""
        raise UserError("this image tokenizer decodes codes alone: draw without --smooth")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, L) int64. Never changes the tokenizer, whatever its mode; float32 whatever the autocast, and not
        TF32, so that codes do not depend on the hardware.

        Raises:
            UserError: not (B, 3, H, W) float, or a size that the stride does not divide.
        """
        self.check_images(images)
        with torch.autocast(images.device.type, enabled=False), without_tf32():
            return self._encode(images.float())

    @torch.no_grad()
    def continuous(self, images: Tensor) -> Tensor:
        """(B, n, D) float32: what stands at the n places of the finest grid before codes are chosen; otherwise as
        `encode`."""
        self.check_images(images)
        with torch.autocast(images.device.type, enabled=False), without_tf32():
            return self._continuous(images.float()).flatten(2).transpose(1, 2)

    def known_after(self, layout: Layout) -> list[int]:
        """Numbers of codes from which a picture can be decoded, all of them last: those of the first scales, or what
        else a family learns."""
        return list(accumulate(layout.lengths))

    def decode(self, codes: Tensor, layout: Layout | None = None, up_to_scale: int | None = None) -> Tensor:
        """Images (B, 3, H, W) float32, about [-1, 1]; `layout` is needed for other than the default image size.

        Latents (B, D, h, w) float may stand in place of codes, where a picture was drawn that no codes say.

        Codes (B, n) that are cut where `known_after` says so give the picture as known so far. `up_to_scale` cuts them
        after so many scales.

        Raises:
            UserError: not (B, n) with an n of `known_after`, ids outside the codebook, more scales than there are, or
                a tokenizer without pixels.
        """
        self.check_pixels()
        if codes.is_floating_point() and codes.ndim == 4:
            return torch.cat([self._paint(part).float() for part in codes.split(1)])
        layout = layout or self.layout
        scales = len(layout.scales) if up_to_scale is None else up_to_scale
        if not 1 <= scales <= len(layout.scales):
            raise UserError(
                f"up_to_scale is {scales}: this tokenizer has {len(layout.scales)} scales, choose a number from 1 to "
                f"{len(layout.scales)}"
            )
        length = sum(layout.lengths[:scales])
        allowed = self.known_after(layout)
        if up_to_scale is not None:
            allowed = [length, *(known for known in allowed if known > length)]
        if codes.ndim != 2 or codes.shape[1] not in allowed:
            fewer = f", or the first {_some(allowed[:-1])} codes" if up_to_scale is None and len(allowed) > 1 else ""
            raise UserError(
                f"codes have shape {tuple(codes.shape)}, but layout {_grids(layout)} takes (images, {length}){fewer}: "
                "pass the layout of the image size they were made from"
            )
        codes = codes[:, :length]
        check_codes(codes, self.codebook_size)
        for (first, size), part_of_grid in zip(layout.books, layout.split(codes), strict=False):
            check_codes(part_of_grid, first + size, first)
        # On a CPU, convolutions round differently in another batch, and a picture must not depend on its batch.
        parts = codes.long().split(1) if codes.device.type == "cpu" else [codes.long()]
        decoded = [self._decode(part, layout).float() for part in parts]
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)

    def _encoded(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w) by a network, in tiles where the pictures are large."""
        return self._in_tiles(network, images, self.stride, 1)

    def _decoded(self, network: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 3, H, W) by a network, in tiles where the pictures are large."""
        return self._in_tiles(network, vectors, 1, self.stride)

    def _in_tiles(self, network: Callable[[Tensor], Tensor], x: Tensor, per_input: int, per_output: int) -> Tensor:
        height, width = (side // per_input for side in x.shape[2:])
        if height * width * self.stride**2 <= self.tiles.whole:
            return network(x)
        rows, columns = (
            self.tiles.windows(length, own, self.stride)
            for length, own in zip((height, width), self.image_size, strict=True)
        )
        with torch.no_grad():  # or what each window needs for gradients would stay
            return run_in_windows(network, x, rows, columns, per_input, per_output)

    def embed(self, codes: Tensor) -> Tensor:
        """Of a tokenizer without pixels: the image embedding (B, E) float32 of codes (B, L), of which another program
        draws. Raises UserError where codes become pictures here."""
        raise UserError(f"codes of a {self.config.family} tokenizer become pictures, not embeddings: call decode")

    def check_pixels(self) -> None:
        """Raises UserError, which says what is missing, where codes become no pictures."""
        if self.no_pixels:
            raise UserError(self.no_pixels)

    def check_images(self, images: Tensor) -> None:
        """Raises UserError unless images are (B, 3, H, W) float of a size that the stride divides."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images have shape {tuple(images.shape)}: give (images, 3, height, width)")
        if not images.is_floating_point():
            raise UserError(f"images are {images.dtype}: convert them with tokenizers_vq.images.to_float first")
        self.layout_for(images.shape[2], images.shape[3])

    def fingerprint(self) -> str:
        """SHA-256 (hex) of configuration and weights: equal if and only if two tokenizers are the same to the bit."""
        digest = hashlib.sha256(json.dumps(config_to_dict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def same_codes(self, other: ImageTokenizer) -> bool:
        """Whether all that decides codes is that of another tokenizer, to the bit; they may decode otherwise."""
        mine, theirs = self._coding(), other._coding()
        return self.config == other.config and all(torch.equal(mine[name], theirs[name]) for name in mine)

    def _coding(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(self.decoding)}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`, both or none; inverse of `load_tokenizer`.

        Raises:
            UserError: a weight is not finite, or the folder cannot be written.
        """
        replace_parts(Path(folder), self.write_parts)

    def write_parts(self, folder: Path) -> None:
        """Writes the files of a tokenizer into an empty folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.state_dict(), folder / WEIGHTS_FILE)
        values = with_digests(config_to_dict(self.config), folder, CONFIG_FILE, WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, values)


def _some(numbers: list[int]) -> str:
    """
    >>> _some([1, 5, 14]), _some([1, 2, 3, 4])
    ('1, 5 or 14', '1 to 4')
    """
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(part for part in (", ".join(map(str, numbers[:-1])), str(numbers[-1])) if part)


def _grids(layout: Layout) -> str:
    return " + ".join(f"{height}x{width}" for height, width in layout.scales)


def build_tokenizer(config: TokenizerConfig) -> ImageTokenizer:
    """A tokenizer with fresh weights from torch's random state."""
    module, name = _CLASSES[config.family].split(":")
    return getattr(importlib.import_module(module, __package__), name)(config)


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", image_size: int | None = None
) -> ImageTokenizer:
    """The tokenizer that `save_pretrained` wrote, in evaluation mode. Leaves torch's random state as it was.
    `hf:owner/name`, or `hf:owner/name/folder`, is fetched from the hub.

    Args:
        path: its folder.
        device: where it shall compute.
        image_size: side of its pictures; None for the size that it was trained on. With another one it is another
            tokenizer, with another fingerprint.

    Raises:
        UserError: the folder is missing, foreign or damaged, or cannot be fetched, or the tokenizer knows no such
            pictures.
    """
    folder = local_folder(path)
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not part(folder, name).is_file()]
    if missing:
        what = f"lacks {' and '.join(missing)}" if folder.is_dir() else "is not a folder"
        raise UserError(
            f"no image tokenizer at {folder}: it {what}; expected {CONFIG_FILE} and {WEIGHTS_FILE}, "
            "as `unitok train tokenizer` writes them"
        )
    tokenizer = read_stable(part(folder, CONFIG_FILE), lambda: _load(folder, image_size))
    fast_weights(tokenizer)
    return tokenizer.to(device)


def find_tokenizer(path: str | Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """As `load_tokenizer`, also of the tokenizer inside the folder of a model."""
    folder = local_folder(path)
    inside = part(folder, "image_tokenizer")
    return load_tokenizer(inside if inside.is_dir() else folder, device)


def _load(folder: Path, image_size: int | None) -> ImageTokenizer:
    where = part(folder, CONFIG_FILE)
    values, files = read_configuration(where)
    config = config_from_dict(values, where=str(where))
    check_own(values, files, where)
    if image_size is not None and (image_size, image_size) != config.size:
        config = config.resized(image_size, image_size)
    check_digest(folder, WEIGHTS_FILE, files, "restore the file")
    tokenizer = build_empty(lambda: build_tokenizer(config), str(where))
    advice = "weights and configuration are of different tokenizers, or damaged: restore both"
    tokenizer.load_state_dict(read_weights(part(folder, WEIGHTS_FILE), tokenizer.state_dict(), advice))
    return tokenizer.eval()
