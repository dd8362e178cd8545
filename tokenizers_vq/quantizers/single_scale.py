"""Quantizers behind one small interface: latents (B, D, h, w) <-> codes (B, h*w) int64.

The learning parts (k-means start, smoothing, revival of dead codes, rotation trick, level arithmetic) are those of
vector-quantize-pytorch. What this wrapper adds: one signature, float32 inside whatever the ambient autocast, our own
search, no change of the codebook outside of training with gradients, and the same codebook on every rank.

B = images, D = width of a code vector, h, w = grid, N = B*h*w vectors, K = codes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..errors import UserError
from .base import Quantizer, entropy_loss, pass_gradient, ranks
from .config import BSQ, FSQ, IBQ, LFQ, QUANTIZERS, VQ, Cosine, Gumbel, MultiVQ, QuantizerConfig, SimVQ
from .library import library, library_vq
from .lookup import nearest_rows


class MovingAverage(Quantizer):
    """`vq` and `cosine`: a codebook that follows the latents, with k-means start and revival of dead codes."""

    config: VQ

    def __init__(self, config: VQ) -> None:
        super().__init__(config)
        self.cosine = isinstance(config, Cosine)
        self.library = library.VectorQuantize(
            dim=config.dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            kmeans_init=config.kmeans_init,
            use_cosine_sim=self.cosine,
            threshold_ema_dead_code=1,  # set to the wanted share at every step, below
            sync_codebook=False,  # decided at every step, below: the library asks once, possibly before ranks exist
        )
        # The library's start is all zeros until k-means has run, and far too small without: spread it over the sphere.
        start = F.normalize(torch.randn(1, config.codebook_size, config.dim), dim=-1)
        self._book.embed.data.copy_(start)
        self._book.embed_avg.data.copy_(start)
        if config.learned:
            embed = self._book._buffers.pop("embed")
            assert embed is not None
            self._book.embed = nn.Parameter(embed)
        self._pending: tuple[Tensor, Tensor] | None = None

    @property
    def _book(self) -> library_vq.Codebook:
        return self.library._codebook

    @property
    def codebook(self) -> Tensor:
        """(K, D) float32; of unit length for `cosine`, also after the rows were averaged over time."""
        return self._directions(self._book.embed[0])

    def _directions(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1) if self.cosine else rows

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        learn = self.training and torch.is_grad_enabled()
        rows = self._directions(rows)
        if learn:
            self.start(rows.detach())
        codebook = self.codebook
        codes = nearest_rows(rows.detach(), codebook, self.cosine)
        target = codebook[codes]
        value = target.detach()
        losses = {"commitment": self.config.commitment_weight * F.mse_loss(rows, value)}
        if self.config.learned:
            losses["codebook"] = F.mse_loss(target, rows.detach())
        if learn:
            self.follow(rows.detach(), codes, accumulate)
        return pass_gradient(rows, value, self.config.rotation_trick), codes, losses

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(self._directions(rows), self.codebook, self.cosine)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]

    def start(self, rows: Tensor) -> None:
        """k-means over the first batch of all ranks, once."""
        if not self.training:  # frozen inside a quantizer that is not
            return
        book = self._book
        together = ranks() > 1
        sample = library_vq.sample_vectors_distributed if together else library_vq.batched_sample_vectors
        book.use_ddp = together
        book.sample_fn = book.replace_sample_fn = sample
        book.kmeans_all_reduce_fn = distributed.all_reduce if together else library_vq.noop
        library_vq.logger.disable(library.__name__)  # fewer vectors than codes are no news: revival supplies the rest
        book.init_embed_(rows[None])
        library_vq.logger.enable(library.__name__)

    @torch.no_grad()
    def follow(self, rows: Tensor, codes: Tensor, accumulate: bool, weights: Tensor | None = None) -> None:
        """Moves the codebook towards the latents that chose it.

        The library's own update makes an (N, K) one-hot table, several times the cost of everything else here; counts
        and sums are the same numbers.
        """
        if not self.training:
            return
        book, size = self._book, self.codebook_size
        counts = torch.bincount(codes, weights, minlength=size).float()
        weighted = rows if weights is None else rows * weights[:, None]
        sums = rows.new_zeros(size, self.width).index_add_(0, codes, weighted)
        if self._pending is not None:
            counts, sums = counts + self._pending[0], sums + self._pending[1]
        self._pending = (counts, sums) if accumulate else None
        if accumulate:
            return
        if ranks() > 1:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        book.cluster_size[0].lerp_(counts, 1 - self.config.decay)
        book.embed_avg[0].lerp_(sums, 1 - self.config.decay)
        if not self.config.learned:
            book.update_ema()
        if self.config.revive_below > 0:
            mean_use = float(counts.sum()) / size
            book.threshold_ema_dead_code = self.config.revive_below * mean_use
            book.reset_cluster_size = mean_use  # time to prove itself before it counts as dead again
            if weights is not None:  # new codes are drawn from latents in proportion to their weight
                rows = rows[torch.multinomial(weights, len(rows), replacement=True)]
            book.expire_codes_(rows[None])


class Codebooks(Quantizer):
    """`multi_vq`: a codebook for each chunk of the latent. Code k of codebook g has the id g * codebook_size + k."""

    config: MultiVQ
    firsts: Tensor
    """(G,): the first id of each codebook."""

    def __init__(self, config: MultiVQ) -> None:
        super().__init__(config)
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(VQ)}
        self.books = nn.ModuleList(MovingAverage(VQ(**shared)) for _ in range(config.codebooks))
        self.register_buffer("firsts", torch.arange(config.codebooks) * config.codebook_size, persistent=False)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parts = [book._quantize(chunk, accumulate) for book, chunk in self._chunks(rows)]
        vectors, codes, losses = zip(*parts, strict=True)
        means = {name: torch.stack([of_book[name] for of_book in losses]).mean() for name in losses[0]}
        return torch.cat(vectors, 1), torch.stack(codes, 1) + self.firsts, means

    def _nearest(self, rows: Tensor) -> Tensor:
        return torch.stack([book._nearest(chunk) for book, chunk in self._chunks(rows)], 1) + self.firsts

    def _vectors(self, codes: Tensor) -> Tensor:
        """Codebooks whose codes are missing give the mean of their rows."""
        numbers = codes.reshape(codes.shape[0], -1)
        numbers = numbers - self.firsts[: numbers.shape[1]]
        books = cast("list[MovingAverage]", list(self.books))
        known = [book._vectors(column) for book, column in zip(books, numbers.T, strict=False)]
        means = [book.codebook.mean(0).expand(codes.shape[0], -1) for book in books[len(known) :]]
        return torch.cat([*known, *means], 1)

    def _chunks(self, rows: Tensor) -> Iterator[tuple[MovingAverage, Tensor]]:
        """(codebook, (N, D/G)) of every chunk of latents (N, D)."""
        books = cast("list[MovingAverage]", list(self.books))
        return zip(books, rows.chunk(self.config.codebooks, 1), strict=True)


class Linear(Quantizer):
    """`simvq`: a frozen codebook behind a learned linear map."""

    def __init__(self, config: SimVQ) -> None:
        super().__init__(config)
        self.library = library.SimVQ(
            dim=config.dim,
            codebook_size=config.codebook_size,
            rotation_trick=config.rotation_trick,
            input_to_quantize_commit_loss_weight=config.commitment_weight,
        )

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes, loss = self.library(rows[None])
        return quantized[0], codes[0], {"commitment": loss}

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(rows, self.library.codebook)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.codebook[codes]


class Levels(Quantizer):
    """`fsq`: every channel rounded to its levels."""

    def __init__(self, config: FSQ) -> None:
        super().__init__(config)
        # The published bound has no place for channels of two levels; the symmetric one has.
        self.library = library.FSQ(list(config.levels), preserve_symmetry=min(config.levels) == 2)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantized, codes = self.library(rows[None])
        return quantized[0], codes[0].long(), {}

    def _nearest(self, rows: Tensor) -> Tensor:
        return self.library(rows[None])[1][0].long()

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.indices_to_codes(codes)


class Signs(Quantizer):
    """`lfq`: every channel gives its sign.

    The losses are written here: the library's batch entropy divides by the number of ranks without adding them up.
    """

    config: LFQ

    def __init__(self, config: LFQ) -> None:
        super().__init__(config)
        self.library = library.LFQ(codebook_size=config.codebook_size)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        target = torch.where(rows > 0, 1.0, -1.0)
        losses = {"commitment": config.commitment_weight * F.mse_loss(rows, target)}
        if config.entropy_weight > 0:
            losses["entropy"] = config.entropy_weight * self._entropy(rows)
        return pass_gradient(rows, target, rotate=False), self._nearest(rows), losses

    def _entropy(self, rows: Tensor) -> Tensor:
        """Mean entropy of each latent's soft choice, minus that of this rank's mean choice (eq. 5 of the paper)."""
        probabilities = (200.0 * rows @ self.library.codebook.t()).softmax(dim=-1)  # (N, K); 2 v.e at temperature 0.01
        return entropy_loss(probabilities, self.config.diversity)

    def _nearest(self, rows: Tensor) -> Tensor:
        return ((rows > 0) * self.library.mask).sum(dim=-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.library.indices_to_codes(codes)


class SphereSigns(Quantizer):
    """`bsq`: every channel of a unit vector gives its sign. Written here: the library makes a table of all codes."""

    config: BSQ
    bits: Tensor

    def __init__(self, config: BSQ) -> None:
        super().__init__(config)
        self.register_buffer("bits", 1 << torch.arange(self.width - 1, -1, -1), persistent=False)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config, codes = self.config, self._nearest(rows)
        rows, target = F.normalize(rows, dim=-1), self._vectors(codes)
        losses = {"commitment": config.commitment_weight * F.mse_loss(rows, target)}
        if config.entropy_weight > 0:
            losses["entropy"] = config.entropy_weight * self._entropy(rows)
        return pass_gradient(rows, target, rotate=False), codes, losses

    def _entropy(self, rows: Tensor) -> Tensor:
        """As that of `lfq`, with chances exp(100 v.e) of the codes e. On the sphere's cube they are products of chances
        of the bits, so that entropies are sums over bits: exactly for each latent, an upper bound for the mean choice
        (section 3.2 of the paper)."""
        ones = (200.0 / self.width**0.5 * rows).sigmoid()  # (N, D)
        return entropy_loss(torch.stack([ones, 1 - ones], dim=-1), self.config.diversity).sum()

    def _nearest(self, rows: Tensor) -> Tensor:
        return ((rows > 0) * self.bits).sum(dim=-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        signs = (codes[:, None] & self.bits != 0).float() * 2 - 1
        return signs / self.width**0.5


class IndexGradient(Quantizer):
    """`ibq`: a codebook that learns by gradient. The choice is a softmax over all codes in the backward pass, and the
    best code alone in the forward pass."""

    config: IBQ

    def __init__(self, config: IBQ) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)  # lengths of about 1

    @property
    def codebook(self) -> Tensor:
        """(K, D)."""
        return self.embedding.weight

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config, codes = self.config, self._nearest(rows)
        scores = rows @ self.codebook.t()  # (N, K)
        choice = scores.softmax(dim=-1)
        best = self.codebook[codes]
        chosen = best + (choice - choice.detach()) @ self.codebook  # the value of `best`; the choice has a gradient too
        # The double quantization loss of the paper: through the choice, and past it, each side towards the other.
        pulls = F.mse_loss(chosen, rows) + F.mse_loss(rows, best.detach()) + 0.25 * F.mse_loss(best, rows.detach())
        losses = {"commitment": config.commitment_weight * pulls}
        if config.entropy_weight > 0:
            losses["entropy"] = config.entropy_weight * entropy_loss((100.0 * scores).softmax(-1), config.diversity)
        return chosen, codes, losses

    def _nearest(self, rows: Tensor) -> Tensor:
        return nearest_rows(rows, self.codebook.detach(), cosine=True)

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.codebook[codes]


class Scores(Quantizer):
    """`gumbel`: a linear map scores the codes; in training the code vectors are mixed by a noisy soft choice."""

    config: Gumbel

    def __init__(self, config: Gumbel) -> None:
        super().__init__(config)
        self.proj = nn.Linear(config.dim, config.codebook_size)
        self.embedding = nn.Embedding(config.codebook_size, config.dim)

    def _quantize(self, rows: Tensor, accumulate: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        scores = self.proj(rows)  # (N, K)
        p = scores.softmax(dim=-1)
        kl = (p * (p * self.codebook_size).clamp(min=1e-10).log()).sum(dim=-1).mean()
        if self.training and torch.is_grad_enabled():
            mixed = F.gumbel_softmax(scores, self.config.temperature, dim=-1) @ self.embedding.weight
        else:
            mixed = self.embedding(scores.argmax(dim=-1))
        return mixed, scores.detach().argmax(dim=-1), {"kl": self.config.kl_weight * kl}

    def _nearest(self, rows: Tensor) -> Tensor:
        return torch.cat([self.proj(part).argmax(dim=-1) for part in rows.split(512)])

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.embedding(codes)


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a configuration; its `width` is the number of latent channels that it takes."""
    match config:
        case MultiVQ():
            return Codebooks(config)
        case VQ():
            return MovingAverage(config)
        case SimVQ():
            return Linear(config)
        case FSQ():
            return Levels(config)
        case BSQ():
            return SphereSigns(config)
        case IBQ():
            return IndexGradient(config)
        case LFQ():
            return Signs(config)
        case Gumbel():
            return Scores(config)
    raise UserError(f"quantizer is {type(config).__name__}: choose one of {', '.join(QUANTIZERS)}")
