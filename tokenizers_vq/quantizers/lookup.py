"""Nearest rows of a codebook without a distance table in memory.

N = vectors, K = codes, D = width of a code vector
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**22
"""Scores held at once (16 MiB of float32)."""


@torch.no_grad()
def nearest_rows(vectors: Tensor, codebook: Tensor, cosine: bool = False) -> Tensor:
    """Index of the nearest codebook row of every vector.

    |v - e|^2 = |v|^2 - 2 v.e + |e|^2, and |v|^2 does not change which row is nearest. In chunks this needs no memory to
    speak of, and it is 2 to 12 times faster than the quantizers' own search. All chunks share one table of scores: a
    table for each left the heap so broken up that the next did not fit, 1 GB for 16,384 vectors among 16,384 codes.

    Args:
        vectors: (N, D) float32.
        codebook: (K, D) float32.
        cosine: by largest inner product instead (for rows of unit length).

    Returns:
        (N,) int64; the lowest index where rows are equally near.
    """
    bias = codebook.new_zeros(len(codebook)) if cosine else codebook.square().sum(dim=1)
    scale = -1.0 if cosine else -2.0
    if torch.compiler.is_exporting():  # a graph has neither a loop over chunks nor a table that they share
        return torch.addmm(bias, vectors, codebook.t(), alpha=scale).argmin(dim=1)
    rows = max(1, min(len(vectors), CHUNK // len(codebook)))
    scores = codebook.new_empty(rows, len(codebook))
    codes = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    for chunk, part in zip(vectors.split(rows), codes.split(rows), strict=True):
        some = torch.addmm(bias, chunk, codebook.t(), alpha=scale, out=scores[: len(chunk)])
        torch.argmin(some, dim=1, out=part)
    return codes
