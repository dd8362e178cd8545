"""Codes that are nearly right, as a generator draws them: what pFID disturbs.

pFID (RobustTok, Qiu et al. 2025, arXiv:2503.08354) is the FID of pictures decoded after a share `alpha` of each
picture's codes was replaced, each by a random one of the `delta` codes nearest to it, itself included. A tokenizer may
give pictures back well and yet show every slip of the model that draws its codes; pFID tells these apart. It depends on
both numbers, so they stand in its label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from unitok.seeding import keyed_generator

CHUNK = 256
"""Codes whose neighbours are looked for at a time."""


class Perturbation:
    """Replaces codes by near ones. The picture's number is the whole random state, so batches change nothing.

    Args:
        tokenizer: whose codes, on its own device.
        share: alpha, of each picture's codes; above 0, at most 1.
        among: delta, nearest codes to choose from; 2 or more.

    Raises:
        UserError: values out of range, or a codebook with fewer codes.
    """

    def __init__(self, tokenizer: ImageTokenizer, share: float, among: int) -> None:
        self.tables = tokenizer.code_vectors()
        size = self.tables.shape[1]
        if not 0 < share <= 1:
            raise UserError(f"--pfid is {share}: choose a share of the codes, above 0 and at most 1")
        if not 2 <= among <= size:
            raise UserError(f"--pfid_among is {among}: choose from 2 to {size}, the codes of this tokenizer's codebook")
        self.share, self.among = share, among
        # Filled as codes occur: most of a large codebook never does.
        self._near = torch.full((self.tables.shape[0] * size, among), -1, dtype=torch.int32)

    def __call__(self, codes: Tensor, first: int) -> Tensor:
        """Codes (B, L) on the CPU, of which the first belongs to picture number `first` -> (B, L)."""
        length = codes.shape[1]
        count = max(1, round(self.share * length))
        draws = []
        for number in range(first, first + len(codes)):
            generator = keyed_generator("pfid", number)
            hit = torch.zeros(length, dtype=torch.bool)
            hit[torch.randperm(length, generator=generator)[:count]] = True
            draws.append((hit, torch.randint(self.among, (length,), generator=generator)))
        hits, choices = (torch.stack(column) for column in zip(*draws, strict=True))
        near = self._neighbours(codes).gather(2, choices[:, :, None])[:, :, 0]
        return torch.where(hits, near, codes)

    def _neighbours(self, codes: Tensor) -> Tensor:
        """(B, L) -> (B, L, delta) codes of the same codebook, the nearest first."""
        used = codes.unique()
        new = used[self._near[used, 0] < 0]
        for book, table in enumerate(self.tables):
            offset = book * len(table)
            for some in new[(new >= offset) & (new < offset + len(table))].split(CHUNK):
                own = (some - offset).to(table.device)
                distance = torch.cdist(table[own], table)
                distance[torch.arange(len(own)), own] = -1  # a code comes first, also before its equal
                self._near[some] = offset + distance.topk(self.among, largest=False).indices.int().cpu()
        return self._near[codes].long()
