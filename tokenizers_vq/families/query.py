"""The query tokenizer: a picture as one row of codes, the important first (SEED, arXiv 2307.08041).

image -> features -> causal Q-Former -> quantizer -> codes -> vectors -> reverse Q-Former -> grid -> decoder -> image

Features are those of the convolutional encoder, or of a frozen vision model; then the codes must also give them back,
and, where asked, tell the picture's caption from others.

B = images, N = codes of an image, P = features of an image, C = width, D = width of a code vector, h, w = grid,
T = width of a caption's vector
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..base import ImageTokenizer, TokenizerOutput
from ..errors import UserError
from ..layout import Layout
from ..losses.contrast import FIRST_SCALE, LARGEST_SCALE, CaptionFeatures, contrastive_loss
from ..networks.conv import Decoder, Encoder
from ..networks.vision import VisionTower, build_vision, load_vision
from ..quantizers.single_scale import make_quantizer
from .query_config import QueryVQConfig

WHERE = "tokenizer.vision_model"


class Attention(nn.Module):
    """Heads of attention from x (B, n, C) to y (B, m, C), over normed queries and keys."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.full((heads, 1, 1), math.sqrt(width / heads)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:  # (B, n, C) -> (B, heads, n, C / heads)
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = (split(part) for part in self.key_value(y).chunk(2, dim=-1))
        q = F.normalize(split(self.query(x)), dim=-1).to(v.dtype) * self.scale.to(v.dtype)
        k = F.normalize(k, dim=-1).to(v.dtype)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=1.0)
        return self.out(h.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Queries look at each other, then at the sources, then think."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among = Attention(width, heads, causal)
        self.across = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, sources: Tensor) -> Tensor:
        h = self.norms[0](x)
        x = x + self.among(h, h)
        x = x + self.across(self.norms[1](x), sources)
        return x + self.mlp(self.norms[2](x))


class QFormer(nn.Module):
    """Learned queries that read sources (B, m, C) through cross-attention (Q-Former, arXiv 2301.12597).

    `causal`: query i sees queries 0 to i alone. All queries see all sources.
    """

    def __init__(self, queries: int, sources: int, width: int, depth: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.queries = nn.Embedding(queries, width)
        self.places = nn.Embedding(sources, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.checkpointing = False
        """Activation checkpointing: recompute a block in the backward pass instead of keeping its activations."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, sources: Tensor) -> Tensor:
        """(B, m, C) -> (B, queries, C)."""
        sources = self.norm_in(sources) + self.places.weight
        x = self.queries.weight.expand(sources.shape[0], -1, -1)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, sources, use_reentrant=False)
            else:
                x = block(x, sources)
        return self.norm_out(x)


class QueryVQTokenizer(ImageTokenizer):
    """One row of codes, each depending on the picture and on the codes before it alone; pictures of one size."""

    config: QueryVQConfig
    decoding = (
        "from_code.",
        "absent",
        "painter.",
        "to_latent.",
        "decoder.",
        "recaller.",
        "to_features.",
        "to_text.",
        "log_scale",
    )

    def __init__(self, config: QueryVQConfig) -> None:
        vision: VisionTower | None = None
        if config.vision is not None:
            described = config.vision_model
            vision = load_vision(config.vision) if described is None else build_vision(described, WHERE)
            config = dataclasses.replace(config, vision_model=vision.description)
        super().__init__(config)
        height, width = config.grid
        places, channels = (vision.length, vision.width) if vision else (height * width, config.latent_dim)
        shape = (config.width, config.depth, config.heads)
        self.vision = vision
        self.encoder = None if vision else Encoder(config)
        self.project = nn.Linear(channels, config.width)
        self.reader = QFormer(config.tokens, places, *shape, causal=True)
        self.quantizer = make_quantizer(config.quantizer)
        self.to_code = nn.Linear(config.width, self.quantizer.width)
        self.from_code = nn.Linear(self.quantizer.width, config.width)
        self.absent = nn.Parameter(torch.zeros(config.width))
        """Stands for the codes that are not known yet."""
        self.painter = QFormer(height * width, config.tokens, *shape, causal=False)
        self.to_latent = nn.Linear(config.width, config.latent_dim)
        self.decoder = Decoder(config)
        self.recaller: QFormer | None = None
        self.to_features: nn.Linear | None = None
        if vision and config.feature_weight > 0:
            self.recaller = QFormer(places, config.tokens, *shape, causal=False)
            self.to_features = nn.Linear(config.width, channels)
        self.to_text: nn.Linear | None = None
        if vision and config.contrastive_weight > 0:
            text_width = vision.description.get("text_width")
            if text_width is None:
                raise UserError(
                    f"tokenizer.contrastive_weight needs captions, but {config.vision} (tokenizer.vision) has no text "
                    "tower: choose a whole CLIP or SigLIP model, or leave contrastive_weight out"
                )
            self.to_text = nn.Linear(config.tokens * config.width, text_width)
            self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def code_vectors(self) -> Tensor:
        return self.quantizer.table()

    def known_after(self, layout: Layout) -> list[int]:
        return list(range(1, layout.length + 1)) if self.config.prefix_dropout > 0 else [layout.length]

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, F): what the queries read; without gradient those of a vision model."""
        if self.vision is not None:
            with torch.no_grad():
                return self.vision(images)
        assert self.encoder is not None
        return self.encoder(images).flatten(2).transpose(1, 2)

    def latents(self, features: Tensor) -> Tensor:
        """(B, P, F) -> (B, D, 1, N), before quantization."""
        return self.to_code(self.reader(self.project(features))).transpose(1, 2)[:, :, None]

    def _continuous(self, images: Tensor) -> Tensor:
        return self.latents(self.features(images))

    def tokens(self, vectors: Tensor, known: Tensor | None = None) -> Tensor:
        """Code vectors (B, D, 1, n) -> (B, N, C); those from `known` (B,) on, or from n on, are the absent ones."""
        tokens = self.from_code(vectors[:, :, 0].transpose(1, 2))
        tokens = F.pad(tokens, (0, 0, 0, self.config.tokens - tokens.shape[1]))
        if known is None:
            known = torch.full((tokens.shape[0],), vectors.shape[3], device=tokens.device)
        there = torch.arange(self.config.tokens, device=tokens.device) < known[:, None]  # (B, N)
        return torch.where(there[:, :, None], tokens, self.absent.to(tokens.dtype))

    def paint(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3, H, W)."""
        grid = self.to_latent(self.painter(tokens)).transpose(1, 2).unflatten(2, self.config.grid)
        return self.decoder(grid).float()

    def meaning(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, T): where the codes that are known place the picture among the vectors of captions.

        SEED projects the last query's state, which has seen the queries before it, and quantizes afterwards. Here it is
        the codes that must say it, all of them: the last alone holds a few bits and is the first to be cut. The map is
        linear, so that what they mean lies open in them.
        """
        assert self.to_text is not None, "a tokenizer with contrastive_weight"
        return self.to_text(tokens.flatten(1))

    def forward(
        self, images: Tensor, accumulate: bool = False, captions: CaptionFeatures | None = None
    ) -> TokenizerOutput:
        """With `captions`, those of the images, the losses have the contrastive one."""
        self.check_images(images)
        features = self.features(images)
        quantized = self.quantizer(self.latents(features), accumulate)
        known = self._drop_codes(len(images), images.device) if self.training else None
        tokens = self.tokens(quantized.latents, known)
        losses = dict(quantized.losses)
        if self.recaller is not None and self.to_features is not None:
            recalled = self.to_features(self.recaller(tokens))
            distance = 1 - F.cosine_similarity(recalled.float(), features.float(), dim=-1)
            losses["features"] = self.config.feature_weight * distance.mean()
        if self.to_text is not None and captions is not None:
            if self.training:
                # The weight itself, as CLIP does: a clamp in the graph would pass no gradient, and it could never fall.
                self.log_scale.data.clamp_(max=math.log(LARGEST_SCALE))
            loss = contrastive_loss(self.meaning(tokens), captions, self.log_scale.exp())
            losses["contrastive"] = self.config.contrastive_weight * loss
        return TokenizerOutput(self.paint(tokens), quantized.codes, losses)

    def _drop_codes(self, batch: int, device: torch.device) -> Tensor:
        """(B,) how many codes the decoder sees: all, or for a share of the pictures 1 to N - 1, few as often as many
        (evenly on a logarithmic scale)."""
        length = self.config.tokens
        dropped = torch.rand(batch, device=device) < self.config.prefix_dropout
        some = (length ** torch.rand(batch, device=device)).long()
        return some.where(dropped, length)

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self.latents(self.features(images)))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        return self.paint(self.tokens(self.quantizer.vectors(codes, (1, codes.shape[1]))))

    def train(self, mode: bool = True) -> QueryVQTokenizer:
        """The frozen vision model stays in evaluation mode."""
        super().train(mode)
        if self.vision is not None:
            self.vision.eval()
        return self
