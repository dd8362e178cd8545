"""Ports: how positions become vectors, and how last states are scored.

`IdPort` holds the table of ids and the head; a trunk between them knows neither. What stands at a position beside its
id comes in through a port of its own, and is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.bitwise import to_bits

from .config import CODES, PortConfig
from .cross_entropy import PIECE, LinearCrossEntropy
from .device import compute_dtype, learns_on_cpu
from .reader.port import ReaderPort
from .sequence import Ids, States
from .trunk.base import Beside
from .trunk.native import RMSNorm
from .trunk.rule import Visibility, attend
from .vocabulary import Vocabulary

DEVIATION = 0.02
"""Of fresh weights."""
STATES = 120
"""Most states of a caption."""
ATTENDED = 512
"""Most states of a caption that positions attend to."""


class Alike(nn.Module):
    """What ids of a span have in common with those like them, in and out: linear maps of a vector that each has. A
    table alone would learn each id by itself.

    Args:
        span: the ids.
        vectors: (n, F) float32, of each id.
        width: C.
    """

    vectors: torch.Tensor
    """(n + 1, F): of each id, and zeros for what is none of them."""

    def __init__(self, span: slice, vectors: torch.Tensor, width: int) -> None:
        super().__init__()
        self.span = span
        self.register_buffer("vectors", torch.cat([vectors, torch.zeros_like(vectors[:1])]), persistent=False)
        self.read = nn.Linear(vectors.shape[1], width, bias=False)
        self.write = nn.Linear(width, vectors.shape[1], bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=DEVIATION)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to what is added to their vectors, (..., C)."""
        here = torch.where((ids >= self.span.start) & (ids < self.span.stop), ids - self.span.start, -1)
        added = self.read(self.vectors[here])
        if torch.is_grad_enabled():
            # A batch in which none of them is scored: every process of a run must have a gradient for every weight.
            added = added + 0.0 * self.write.weight.sum().to(added.dtype)
        return added

    def scores(self, hidden: torch.Tensor, ids: slice) -> torch.Tensor:
        """What is added to the logits of some of the ids, (..., n), from states (..., C)."""
        return F.linear(self.write(hidden), self._of(ids).to(hidden.dtype))

    def rows(self, ids: slice) -> torch.Tensor:
        """What is added to the rows of the head of some of the ids, (n, C): the same as matrices."""
        return self._of(ids) @ self.write.weight

    def _of(self, ids: slice) -> torch.Tensor:
        return self.vectors[ids.start - self.span.start : ids.stop - self.span.start]


def waves(n: int, number: int) -> torch.Tensor:
    """(n, F) float32: vectors of n steps of a scale, alike where steps are near. F cosines and sines, `number` or one
    fewer, with half a wave to F / 4 waves on the whole scale."""
    turns = (torch.arange(n)[:, None] + 0.5) / n * math.pi * torch.arange(1, number // 2 + 1)  # (n, F / 2)
    return torch.cat([turns.cos(), turns.sin()], 1)


def standard(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (n, F) shifted and scaled to mean 0 and deviation 1 in each dimension."""
    centred = vectors - vectors.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-6)


def vectors_of_codes(
    ports: Mapping[str, PortConfig], vocabulary: Vocabulary, image_tokenizer: ImageTokenizer
) -> tuple[slice, torch.Tensor] | None:
    """The ids of codes and the vectors (codes, D) that their tokenizer has for them; None: they have nothing in common.

    Raises:
        UserError: a tokenizer with other vectors than those that the ports are for.
    """
    wanted = next((port.size for port in ports.values() if port.kind == CODES), None)
    if wanted is None:
        return None
    vectors = image_tokenizer.code_features().cpu()
    if vectors.shape[1] != wanted:  # models from before have the vectors themselves
        vectors = image_tokenizer.code_vectors().detach().flatten(0, 1).float().cpu()
    if vectors.shape != (vocabulary.codebook_size, wanted):
        raise UserError(
            f"the model takes {vocabulary.codebook_size} code vectors of {wanted} numbers, its image tokenizer has "
            f"{len(vectors)} of {vectors.shape[1]}: use the tokenizer it was trained with"
        )
    return vocabulary.image_range, vectors


class Deep(nn.Module):
    """A hidden layer between the last states and the rows of the head of some ids (Janus, arXiv:2410.13848)."""

    def __init__(self, span: slice, width: int) -> None:
        super().__init__()
        self.span = span
        self.layer = nn.Linear(width, width)
        nn.init.normal_(self.layer.weight, std=DEVIATION)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """States (..., C) to states (..., C)."""
        return F.gelu(self.layer(hidden))


class IdPort(nn.Module):
    """Ids in and out: a table of vectors, and a head, which may be the same table. `waves_of`: ids of spans that are
    steps of a scale, and their numbers of waves, by name. `deep`: ids that are scored behind a hidden layer. `bits`:
    ids that are the values 0 and 1 of each bit of a code, which is chosen bit by bit; its target is the first of them
    and the code (Infinity, arXiv:2412.04431). `codes`: ids of codes, and the vectors that their tokenizer has for
    them."""

    def __init__(
        self,
        size: int,
        width: int,
        tied: bool,
        bias: bool = False,
        waves_of: Mapping[str, tuple[slice, int]] = MappingProxyType({}),
        deep: slice | None = None,
        bits: slice | None = None,
        codes: tuple[slice, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.embedding = nn.Embedding(size, width)
        self.head = nn.Linear(width, size, bias=bias)
        nn.init.normal_(self.embedding.weight, std=DEVIATION)
        nn.init.normal_(self.head.weight, std=DEVIATION)
        if tied:
            self.head.weight = self.embedding.weight
        self.waves = nn.ModuleDict(
            {
                name: Alike(span, waves(span.stop - span.start, number), width)
                for name, (span, number) in waves_of.items()
            }
        )
        self.codes = None if codes is None else Alike(codes[0], standard(codes[1]), width)
        self.deep = None if deep is None else Deep(deep, width)
        self.pack: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]] | None = None
        """Makes what multiplies by rows of the head, of a model that is prepared for drawing."""
        self._packed: dict[tuple[int, int], Callable[[torch.Tensor], torch.Tensor]] = {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids (...) to vectors (..., C)."""
        x = self.embedding(ids)
        for alike in self.alike:
            x = x + alike(ids)
        if self.deep is not None and torch.is_grad_enabled():
            # A batch in which none of its ids is scored: see `Alike`.
            x = x + 0.0 * sum(weight.sum() for weight in self.deep.parameters())
        return x

    def scores(self, hidden: torch.Tensor, ids: slice, before: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Logits (..., n) float32 of the n ids of a span alone, from states (..., C). For `before` see
        `SubTokenPort`: here it is empty."""
        if self.deep is not None and _inside(ids, self.deep.span):
            hidden = self.deep(hidden)
        bias = None if self.head.bias is None else self.head.bias[ids]
        if self.pack is None:
            found = F.linear(hidden, self.head.weight[ids], bias).float()
        else:
            span = ids.start, ids.stop
            if span not in self._packed:
                self._packed[span] = self.pack(self._rows(ids).detach())
            found = self._packed[span](hidden)
            return found if bias is None else found + bias
        for alike in self._alike_of(ids):
            found = found + alike.scores(hidden, ids).float()
        return found

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor, ids: Ids) -> torch.Tensor:
        """Cross-entropies (N,) float32 over the ids that can stand there, from states (N, C) and targets (N,) among
        them. Of a code of bits, the mean over its bits."""
        n = len(targets)
        if learns_on_cpu(hidden) and (more := -n % 64):  # few different shapes, see `sequence.pack`
            hidden = F.pad(hidden, (0, 0, 0, more))
            targets = F.pad(targets, (0, more), value=(ids[0] if isinstance(ids, tuple) else ids).start)
        return self._losses(hidden, targets, ids)[:n]

    def _losses(self, hidden: torch.Tensor, targets: torch.Tensor, ids: Ids) -> torch.Tensor:
        if ids == self.bits:
            scores = self.scores(hidden, self.bits).unflatten(-1, (-1, 2))  # (N, bits, 2)
            bits = to_bits(targets - self.bits.start, scores.shape[1])
            return F.cross_entropy(scores.transpose(1, 2), bits, reduction="none").mean(-1)
        spans = ids if isinstance(ids, tuple) else (ids,)
        places, before = torch.zeros_like(targets), 0
        for span in spans:
            here = (targets >= span.start) & (targets < span.stop)
            places = torch.where(here, targets - span.start + before, places)
            before += span.stop - span.start
        bias: torch.Tensor | None = self.head.bias
        plain = bias is None and self.deep is None
        if plain and learns_on_cpu(hidden) and len(hidden) * before > PIECE:
            weight = torch.cat([self._rows(span) for span in spans])
            return LinearCrossEntropy.apply(hidden, weight, places, compute_dtype(hidden))
        scores = [self.scores(hidden, span) for span in spans]
        return F.cross_entropy(torch.cat(scores, -1) if len(scores) > 1 else scores[0], places, reduction="none")

    def forced(self, hidden: torch.Tensor, targets: torch.Tensor, ids: slice) -> torch.Tensor:
        """Logits (N, *shape) float32 by which targets (N,) are scored, from states (N, C)."""
        return self.scores(hidden, ids).unflatten(-1, self.shape(ids))

    def shape(self, ids: slice) -> tuple[int, ...]:
        """Of the logits of one position; of bits (D, 2)."""
        number = ids.stop - ids.start
        return (number // 2, 2) if ids == self.bits else (number,)

    @property
    def alike(self) -> list[Alike]:
        found = [cast("Alike", module) for module in self.waves.values()]
        return found if self.codes is None else [*found, self.codes]

    def _alike_of(self, ids: slice) -> list[Alike]:
        """Those whose span these ids lie in."""
        return [alike for alike in self.alike if _inside(ids, alike.span)]

    def _rows(self, ids: slice) -> torch.Tensor:
        """(n, C): the rows of the head that score some ids, with what they have in common."""
        rows = self.head.weight[ids]
        for alike in self._alike_of(ids):
            rows = rows + alike.rows(ids)
        return rows


def _inside(ids: slice, span: slice) -> bool:
    return span.start <= ids.start and ids.stop <= span.stop


class Added(nn.Module):
    """A port of what is added to the vectors of ids."""

    replaces: ClassVar[bool] = False

    def nothing(self) -> torch.Tensor:
        """One value that adds nothing."""
        raise NotImplementedError

    def idle(self) -> torch.Tensor:
        """0, by all weights that are trained."""
        return 0.0 * self(self.nothing()).sum()


class LinearPort(Added):
    """Vectors (M, F) through a linear map."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(size, width, bias=False)
        nn.init.normal_(self.projection.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.projection(values.to(self.projection.weight.dtype))

    def nothing(self) -> torch.Tensor:
        """One value that adds nothing, (1, F)."""
        return self.projection.weight.new_zeros(1, self.projection.in_features)


class TablePort(Added):
    """Numbers (M,) below a size, each with a learned vector."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, width)
        nn.init.normal_(self.table.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.table(values)

    def nothing(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self.table.weight.device)


class StatesPort(Added):
    """States (M, F) of a caption through two layers (LlamaGen, arXiv:2406.06525), with those that stand for a caption
    that is left out."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size, width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        self.left_out: torch.Tensor
        self.register_buffer("left_out", torch.randn(STATES, size) / size**0.5)
        """(STATES, F); the authors never train it."""
        for layer in (self.enter, self.leave):
            nn.init.normal_(layer.weight, std=DEVIATION)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.leave(F.gelu(self.enter(values.to(self.enter.weight.dtype)), approximate="tanh"))

    def nothing(self) -> torch.Tensor:
        return self.enter.weight.new_zeros(1, self.enter.in_features)


def pool_heads(size: int, width: int) -> int:
    """Heads of the one query over states of a size, as Infinity's authors count them."""
    return max(1, size // (64 if width > 4096 else 128))


class AttendedPort(nn.Module):
    """States of captions, normed: a vector of each caption, by the attention of one learned query, and keys and values
    for the positions, through two layers (Infinity, arXiv:2412.04431)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.heads = pool_heads(size, width)
        self.norm = RMSNorm(size)
        self.query = nn.Parameter(torch.randn(width) / (3 * width) ** 0.5)
        self.keys_values = nn.Linear(size, 2 * width, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(width))
        self.pooled = nn.Linear(width, width)
        self.enter = nn.Linear(size, width)
        self.leave = nn.Linear(width, width)
        self.left_out = nn.Parameter(torch.randn(ATTENDED, size) / size**0.5)
        """In place of a caption that is left out, as many as it has states, from the first on."""
        for layer in (self.keys_values, self.pooled, self.enter, self.leave):
            nn.init.normal_(layer.weight, std=DEVIATION)

    def forward(self, states: States) -> Beside:
        count = states.values.shape[1]
        left_out = self.left_out[:count].expand_as(states.values)
        values = self.norm(torch.where(states.left_out[:, None, None], left_out, states.values.to(left_out.dtype)))
        bias = torch.cat([torch.zeros_like(self.value_bias), self.value_bias])
        keys_values = self.keys_values(values) + bias
        k, v = keys_values.view(len(values), count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (R, H, S, D) each
        q = self.query.view(1, self.heads, 1, -1).expand(len(values), -1, -1, -1).to(k.dtype)
        pooled = attend(q, k, v, Visibility("sdpa", mask=states.shown[:, None, None])).flatten(1)[:, None]
        entered = self.leave(F.gelu(self.enter(values), approximate="tanh"))
        return Beside(self.pooled(pooled), entered, states.shown)


Port = LinearPort | TablePort | StatesPort | ReaderPort
PORTS: dict[str, Callable[[int, int], Port | AttendedPort]] = {
    "linear": LinearPort,
    "table": TablePort,
    "states": StatesPort,
    "attended": AttendedPort,
}


def build_ports(ports: Mapping[str, PortConfig], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: PORTS[port.kind](port.size, width) for name, port in ports.items()})


def add_features(
    x: torch.Tensor, ports: nn.ModuleDict, features: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Vectors (R, T, C) with what stands beside the ids added, or in place of them; `features` as in `PackedBatch`."""
    for name, module in ports.items():
        if isinstance(module, AttendedPort):  # adds nothing, and reads the caption of every document
            continue
        port = cast("Port", module)
        if name in features:
            at, values = features[name]
            found = port(values).to(x.dtype)
            flat = x.flatten(0, 1)
            x = (flat.index_copy(0, at, found) if port.replaces else flat.index_add(0, at, found)).view_as(x)
        elif torch.is_grad_enabled():
            # A batch without such features: every process of a run must have a gradient for every weight.
            x = x + port.idle().to(x.dtype)
    return x


def said(ports: Mapping[str, PortConfig]) -> str:
    """Ports for a message."""
    return ", ".join(f"{name} ({port.kind} {port.size})" for name, port in ports.items()) or "nothing"
