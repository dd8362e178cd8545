"""The tokenizer of SEED-2 (arXiv 2310.01218, 2307.08041): pictures -> codes -> image embeddings.

A vision transformer (EVA-CLIP g, arXiv 2211.07636) reads the picture. Learned queries read what it saw (Q-Former, arXiv
2301.12597), each the queries before it too, and become one row of codes. Blocks behind the codes make the image
embedding of unCLIP (arXiv 2204.06125) of them. A diffusion model draws pixels from that. It is not part of this
package, so the tokenizer has `embed` and no pixels.

B = images, N = codes of an image, P = patches and the class token, C = channels, E = length of the embedding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import ImageTokenizer, TokenizerOutput, without_tf32
from ..errors import UserError
from ..layout import Layout
from ..quantizers.base import check_codes
from ..quantizers.single_scale import make_quantizer
from .seed_config import SeedConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of pixels from 0 to 1."""
NARROW = (256, 128, 32)
"""Channels by which each token becomes its part of the embedding."""


class Attention(nn.Module):
    """Heads of attention from x (B, n, C) to y (B, m, D)."""

    def __init__(self, width: int, heads: int, sources: int | None = None, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(sources or width, width, bias=key_bias)
        self.value = nn.Linear(sources or width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, causal: bool = False) -> Tensor:
        def split(t: Tensor) -> Tensor:  # (B, n, C) -> (B, heads, n, C / heads)
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(y)), split(self.value(y))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, then two layers on each place, norms in front; each plus its input."""

    def __init__(self, width: int, heads: int, inner: int, key_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, key_bias=key_bias)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vision(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, P, C), the class token first."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        width, (height, length) = config.vision_width, config.size
        places = 1 + (height // config.patch) * (length // config.patch)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.patches = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, places, width))
        self.blocks = nn.ModuleList(
            Block(width, config.vision_heads, config.vision_inner, key_bias=False) for _ in range(config.vision_depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) / 2 - self.mean) / self.deviation
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Layer(nn.Module):
    """Queries look at those before them, then maybe at the picture, then think; norms behind each (BERT's layers)."""

    def __init__(self, config: SeedConfig, looks: bool) -> None:
        super().__init__()
        width = config.width
        self.among = Attention(width, config.heads)
        self.among_norm = nn.LayerNorm(width, eps=1e-12)
        self.across = Attention(width, config.heads, config.vision_width) if looks else None
        self.across_norm = nn.LayerNorm(width, eps=1e-12) if looks else None
        self.up = nn.Linear(width, config.inner)
        self.down = nn.Linear(config.inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.among_norm(x + self.among(x, x, causal=True))
        if self.across is not None and self.across_norm is not None:
            x = self.across_norm(x + self.across(x, seen))
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Reader(nn.Module):
    """Causal queries: what the vision transformer saw (B, P, D) -> (B, N, C)."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(config, at % config.look_every == 0) for at in range(config.depth))

    def forward(self, seen: Tensor) -> Tensor:
        x = self.norm(self.queries).expand(len(seen), -1, -1)
        for layer in self.layers:
            x = layer(x, seen)
        return x


class Decoder(nn.Module):
    """Code vectors (B, N, D) -> the image embedding (B, E)."""

    def __init__(self, config: SeedConfig, code_width: int) -> None:
        super().__init__()
        width = config.width
        self.from_code = nn.Sequential(nn.Linear(code_width, code_width), nn.Tanh(), nn.Linear(code_width, width))
        self.places = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.heads, 4 * width, key_bias=True) for _ in range(config.decoder_depth)
        )
        first, second, last = NARROW
        self.narrow = nn.Sequential(
            nn.Linear(width, first, bias=False),
            nn.ReLU(),
            nn.Linear(first, second, bias=False),
            nn.ReLU(),
            nn.Linear(second, last, bias=False),
        )
        self.out = nn.Linear(config.tokens * last, config.embedding)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.from_code(vectors) + self.places
        for block in self.blocks:
            x = block(x)
        return self.out(self.narrow(x).flatten(1))


class SeedTokenizer(ImageTokenizer):
    """One row of codes, each depending on the picture and on the queries before it; pictures of one size."""

    config: SeedConfig
    no_pixels = (
        "the SEED tokenizer makes an image embedding of codes, no pixels: a diffusion model (stable-diffusion-2-1-"
        "unclip), which is not part of unitok, draws from it; docs/published.md shows how, with tokenizer.embed"
    )

    def __init__(self, config: SeedConfig) -> None:
        super().__init__(config)
        self.vision = Vision(config)
        self.reader = Reader(config)
        self.quantizer = make_quantizer(config.quantizer)
        code_width = self.quantizer.width
        self.to_code = nn.Sequential(
            nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, code_width)
        )
        self.decoder = Decoder(config, code_width)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.out.weight

    def code_vectors(self) -> Tensor:
        return self.quantizer.table()

    @torch.no_grad()
    def embed(self, codes: Tensor) -> Tensor:
        """The image embedding (B, E) float32 of codes (B, N): what its unCLIP decoder is given.

        Raises:
            UserError: not (B, N), or ids outside the codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != self.config.tokens:
            raise UserError(f"codes have shape {tuple(codes.shape)}: give (images, {self.config.tokens})")
        check_codes(codes, self.codebook_size)
        with torch.autocast(codes.device.type, enabled=False), without_tf32():
            vectors = self.quantizer.vectors(codes, (1, self.config.tokens))  # (B, D, 1, N)
            return self.decoder(vectors[:, :, 0].transpose(1, 2))

    def forward(self, images: Tensor, accumulate: bool = False) -> TokenizerOutput:
        raise UserError(self.no_pixels)  # the loss is one of pixels

    def _continuous(self, images: Tensor) -> Tensor:
        latents = self.to_code(self.reader(self.vision(images)))  # (B, N, D)
        return latents.transpose(1, 2)[:, :, None]

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self._continuous(images))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        raise UserError(self.no_pixels)
