"""The tokenizer of Emu3 (arXiv 2409.18869), which is one of videos, as it sees single pictures.

image -> encoder -> the same frame four times -> one frame -> conv -> nearest code -> conv -> decoder -> image

The network is VQGAN's, with norms in the decoder whose scale and shift come from the code vectors of the place (MoVQ,
arXiv 2209.09002). Beside it, convolutions over time join frames that are alike, and part them again. They look back
alone, so of a picture the first frame says all: no frame stands before it.

B = images, C = channels, D = width of a code vector, H, W = pixels, h, w = grid
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import ImageTokenizer, TokenizerOutput
from ..config import Emu3Config
from ..layout import Layout
from ..networks.conv import Encoder as ConvEncoder
from ..networks.conv import Upsample, fast_memory, group_norm
from ..quantizers.single_scale import make_quantizer

BEFORE = 2
"""Empty frames that a convolution over time has before the first."""


class TimeConv(nn.Module):
    """A convolution over time and place, (frames, side, side), as it acts on pictures: its own is one of frames."""

    def __init__(self, channels_in: int, channels_out: int, frames: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, frames, side, side))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        nn.init.normal_(self.weight, std=(channels_in * frames * side**2) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The first frame (B, C, h, w), from the first frame."""
        return F.conv2d(x, self.weight[:, :, BEFORE], self.bias, padding=self.weight.shape[-1] // 2)

    def halved(self, frames: list[Tensor]) -> list[Tensor]:
        """Half as many frames, each from those that end with its second."""
        found = []
        for end in range(2, len(frames) + 1, 2):
            taps = range(max(0, self.weight.shape[2] - end), self.weight.shape[2])
            seen = [frames[end - self.weight.shape[2] + tap] for tap in taps]
            weight = torch.cat([self.weight[:, :, tap] for tap in taps], 1)
            found.append(F.conv2d(torch.cat(seen, 1), weight, self.bias, padding=self.weight.shape[-1] // 2))
        return found


class FixedNorm(nn.Module):
    """Batch norm whose means and variances stay as they are."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class TimeBlock(nn.Module):
    """norm, SiLU, convolution, twice, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = FixedNorm(channels), FixedNorm(channels)
        self.conv1, self.conv2 = (TimeConv(channels, channels, 3, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Encoder(ConvEncoder):
    """(B, 3, H, W) -> (B, latent_dim, h, w)."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config)
        width = config.latent_dim
        self.time_conv = nn.ModuleList(TimeConv(width, width, 4, 3) for _ in range(config.halvings))
        self.time_res_stack = nn.ModuleList(TimeBlock(width) for _ in range(config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        frames = [super().forward(x)] * 2 ** len(self.time_conv)
        for conv in self.time_conv:
            assert isinstance(conv, TimeConv)
            frames = [F.silu(frame) for frame in conv.halved(frames)]
        (x,) = frames
        for block in self.time_res_stack:
            x = block(x)
        return x


class SpatialNorm(nn.Module):
    """Group norm with a scale and a shift at each place, from the code vectors there."""

    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(channels)
        self.conv_y = nn.Conv2d(code_width, channels, 1)
        self.conv_b = nn.Conv2d(code_width, channels, 1)

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        """x is (B, C, any size), vectors (B, D, h, w)."""
        vectors = F.interpolate(vectors, size=x.shape[-2:], mode="nearest")
        return self.norm_layer(x) * self.conv_y(vectors) + self.conv_b(vectors)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus the input (through a 1x1 when the channel count changes)."""

    def __init__(self, channels_in: int, channels_out: int, code_width: int) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(channels_in, code_width)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = SpatialNorm(channels_out, code_width)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, vectors)))
        h = self.conv2(F.silu(self.norm2(h, vectors)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """One head of self-attention over all positions, plus the input."""

    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.norm = SpatialNorm(channels, code_width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        h = self.norm(x, vectors)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))  # (B, 1, h*w, C)
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(h.reshape(x.shape))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the level has it, and the change of resolution."""

    def __init__(self, block: list[ResidualBlock], attn: list[AttentionBlock], upsample: Upsample | None) -> None:
        super().__init__()
        self.block, self.attn = nn.ModuleList(block), nn.ModuleList(attn)
        self.upsample = upsample

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x, vectors)
            if self.attn:
                x = self.attn[index](x, vectors)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    def __init__(self, channels: int, code_width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, code_width)
        self.attn_1 = AttentionBlock(channels, code_width)
        self.block_2 = ResidualBlock(channels, channels, code_width)

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, vectors), vectors), vectors)


class Decoder(nn.Module):
    """Latents (B, D, h, w) and the code vectors that they were made of -> (B, 3, H, W), not clamped."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        latent, levels = config.latent_dim, config.decoder_levels
        self.time_res_stack = nn.ModuleList(TimeBlock(latent) for _ in range(config.blocks))
        self.time_conv = nn.ModuleList(TimeConv(latent, latent, 3, 3) for _ in range(config.halvings))
        width = levels[-1][0]
        self.conv_in = nn.Conv2d(latent, width, 3, padding=1)
        self.mid = Middle(width, latent)
        up = []
        for index, (width_out, number) in reversed(list(enumerate(levels))):
            widths = [width] + [width_out] * (number - 1)
            attends = index in config.attention_levels or (config.attention == "lowest" and index == len(levels) - 1)
            up.append(
                Level(
                    [ResidualBlock(one, width_out, latent) for one in widths],
                    [AttentionBlock(width_out, latent) for _ in range(number if attends else 0)],
                    Upsample(width_out) if index > 0 else None,
                )
            )
            width = width_out
        # As published, up[0] is the full resolution and runs last.
        self.up = nn.ModuleList(reversed(up))
        self.norm_out = SpatialNorm(width, latent)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor, vectors: Tensor) -> Tensor:
        both = torch.cat([z, vectors])  # the vectors go through time as latents do
        for block in self.time_res_stack:
            both = block(both)
        for conv in self.time_conv:
            both = F.silu(conv(both))
        z, vectors = both.chunk(2)
        x = self.mid(self.conv_in(fast_memory(z)), vectors)
        for level in reversed(self.up):
            x = level(x, vectors)
        return self.conv_out(F.silu(self.norm_out(x, vectors)))


class Emu3Tokenizer(ImageTokenizer):
    """One grid of codes, any image size that the stride divides."""

    decoding = ("post_quant_conv.", "decoder.")

    def __init__(self, config: Emu3Config) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantizer = make_quantizer(config.quantizer)
        self.quant_conv = TimeConv(config.latent_dim, self.quantizer.width, 3, 1)
        self.post_quant_conv = TimeConv(self.quantizer.width, config.latent_dim, 3, 1)
        self.decoder = Decoder(config)

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def code_vectors(self) -> Tensor:
        return self.quantizer.table()

    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w), before quantization."""
        return self.quant_conv(self.encoder(images))

    def forward(self, images: Tensor, accumulate: bool = False) -> TokenizerOutput:
        self.check_images(images)
        quantized = self.quantizer(self.latents(images), accumulate)
        return TokenizerOutput(self._picture(quantized.latents).float(), quantized.codes, quantized.losses)

    def _picture(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors), vectors)

    def _continuous(self, images: Tensor) -> Tensor:
        return self.latents(images)

    def _encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self.latents(images))

    def _decode(self, codes: Tensor, layout: Layout) -> Tensor:
        return self._picture(self.quantizer.vectors(codes, layout.grid))
