"""The decoder-only transformer: vectors in, vectors out. It knows no ids.

Pre-norm RMSNorm, QK-norm, SwiGLU, optional grouped-query heads, rotary positions over (order, row, column).

Letters: B rows, T positions, C width, H heads, G key heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..config import TrunkConfig
from .base import Beside, Trunk
from .cache import KVCache
from .compiled import packs
from .rule import Visibility, attend

ORDER_BASE = 10_000.0
GRID_BASE = 100.0
"""Rotary bases. Rows and columns count to some dozens, so their slowest wave is shorter than that of the order."""


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=self.eps)


class Rotary(nn.Module):
    """Rotary embedding (arXiv:2104.09864) over three axes: half of a head turns with the order, a quarter each with
    row and column. Text stands at row 0, column 0, so an image position reads its absolute place off any text
    token."""

    frequencies: torch.Tensor

    def __init__(self, head_size: int) -> None:
        super().__init__()
        pairs = head_size // 2
        parts = [(pairs // 2, ORDER_BASE), (pairs // 4, GRID_BASE), (pairs // 4, GRID_BASE)]
        table = torch.zeros(3, pairs)  # (axis, pair)
        start = 0
        for axis, (count, base) in enumerate(parts):
            table[axis, start : start + count] = base ** -(torch.arange(count) / count)
            start += count
        self.register_buffer("frequencies", table, persistent=False)
        self.wide = False
        """Whether a turn is one for `rotate` in fewer operations, in a model that is prepared."""

    def forward(self, places: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Places (B, T, 3) to cosine and sine, each (B, 1, T, D/2); a wide turn is (B, 1, T, D), and its first half of
        the sine negative."""
        # Multiply and add in float32 whatever the autocast: bf16 cannot count to 300.
        angles = (places.float()[..., None] * self.frequencies).sum(-2)[:, None]
        cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
        wide = self.wide and not packs(cosine)
        return (torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)) if wide else (cosine, sine)


Turns = tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(cosine, sine) of queries, and of keys."""


def rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turns x (B, H, T, D); pair i is (x[i], x[i + D/2])."""
    cosine, sine = turn
    if cosine.shape[-1] == x.shape[-1]:
        return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def rotate_neighbours(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turns x (B, H, T, D) in float32 by cosines and sines (B, 1, T, D/2, 2); pair i is (x[2i], x[2i + 1])."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turn.unbind(-1)
    return torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_size = config.heads, config.key_heads, config.head_size
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.key_heads) * self.head_size, bias=False)
        self.query_norm = RMSNorm(self.head_size)
        self.key_norm = RMSNorm(self.head_size)
        self.out = nn.Linear(self.heads * self.head_size, config.width, bias=False)
        self.norm: Callable[[torch.Tensor], torch.Tensor] | None = None
        """Norms queries and keys (B, H + G, T, D) at once, in a model that is prepared."""

    def norm_weights(self) -> torch.Tensor:
        """(H + G, 1, D): those of queries, then of keys."""
        queries, keys = self.query_norm.weight.detach(), self.key_norm.weight.detach()
        return torch.stack([queries] * self.heads + [keys] * self.key_heads)[:, None]

    def forward(
        self,
        x: torch.Tensor,
        turns: Turns,
        seen: Visibility,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x, turns)
        if cache is not None:
            k, v = cache.store(layer, k, v)
            q = q.to(k.dtype)
        out = attend(q, k, v, seen)  # (B, H, T, D)
        return self.out(out.transpose(1, 2).reshape(batch, length, -1))

    def project(self, x: torch.Tensor, turns: Turns) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, H, T, D), keys and values (B, G, T, D) of x (B, T, C), at their places."""
        qkv = self.qkv(x).view(*x.shape[:2], -1, self.head_size).transpose(1, 2)  # (B, H + 2G, T, D)
        if self.norm is None or packs(x):
            q, k, v = qkv.split([self.heads, self.key_heads, self.key_heads], 1)
            return rotate(self.query_norm(q), turns[0]), rotate(self.key_norm(k), turns[1]), v
        both, v = qkv.split([self.heads + self.key_heads, self.key_heads], 1)
        both = self.norm(both)
        if turns[0] is turns[1]:
            q, k = rotate(both, turns[0]).to(v.dtype).split([self.heads, self.key_heads], 1)
            return q, k, v
        q, k = both.split([self.heads, self.key_heads], 1)
        return rotate(q, turns[0]).to(v.dtype), rotate(k, turns[1]).to(v.dtype), v


class Dropout(nn.Dropout):
    """Dropout whose random numbers are bytes on a CPU, eight for the price of one: there they take longer than what
    they are for. So the share is one of 256ths, the nearest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        least = round(256 * self.p)
        if not self.training or x.is_cuda or least in (0, 256):
            return super().forward(x)
        eights = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = eights.view(torch.uint8)[: x.numel()].view(x.shape) >= least
        return x * kept * (256 / (256 - least))


class SwiGLU(nn.Module):
    """Gated linear unit (arXiv:2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.inner)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: torch.Tensor,
        turns: Turns,
        seen: Visibility,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), turns, seen, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(Trunk):
    """The trunk of our own models."""

    mixes = True

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        self.rotary = Rotary(config.head_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        """Normal with deviation 0.02; what is added to the residual stream is smaller, by the number of additions."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if residual else 0.02)

    def forward(
        self,
        x: torch.Tensor,
        places: torch.Tensor,
        seen: Visibility,
        cache: KVCache | None = None,
        stands: torch.Tensor | None = None,
        condition: Beside | None = None,
    ) -> torch.Tensor:
        dtype = self.precision(x.dtype, x.device)
        turn = self.rotary(places, dtype)
        turns = (turn, turn if stands is None else self.rotary(stands, dtype))
        return self.norm(self.run(x, turns, seen, cache))
