"""The group rule and its backends.

    position q may attend to position k  <=>  same document, k is not padding, and group[k] <= group[q] <= until[k]

`until` has no end but for private copies: nothing behind a masked or noised copy of an image sees it. Text opens a
group per token (causal); an image that is filled in by confidence is one group (full attention inside); an image drawn
code by code opens a group per code; an image given as context is one group (prefix attention). No other mask is
written anywhere. `visibility` turns groups and documents into what a backend wants, `attend` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tokenizers_vq.errors import UserError

FOREVER = 2**40
"""`until` of what all later groups see."""


class Looks(NamedTuple):
    """The pictures of a pass, for weights that a trunk has for pictures alone (`fusion.py`)."""

    at: torch.Tensor | None
    """(M,) int64: their flat positions in this pass; None: they were in passes before."""
    vectors: torch.Tensor | None = None
    """(M, C): as they came in."""
    seen: Visibility | None = None
    """Who sees which of them; who sees none, sees all there is."""
    sees: torch.Tensor | None = None
    """(B, T or 1, 1) bool: who sees any."""


@dataclass
class Visibility:
    """Who sees whom, in a backend's own form."""

    backend: str
    causal: bool = False
    """Plain causal attention of equally many queries and keys; then `mask` is None."""
    mask: Any = None
    """None: everyone sees everyone. sdpa, xformers: (B, 1, Q, K) bool, True = may attend. flex: a BlockMask."""
    bias: torch.Tensor | None = None
    """What is added to the scores, made of the mask by the first layer and used by all: of `_products` (B * H, Q, K),
    on a GPU (B, 1, Q, K)."""
    looks: Looks | None = None
    """Of a trunk with weights for pictures alone; None: there are none to be seen."""
    first: torch.Tensor | None = None
    """() int64 on the host: only the first so many keys may be seen at all. A compiled pass reads no others, and is the
    same for any number."""


def allowed(
    query_groups: torch.Tensor,
    query_documents: torch.Tensor,
    key_groups: torch.Tensor,
    key_documents: torch.Tensor,
    until: torch.Tensor | None = None,
) -> torch.Tensor:
    """The rule itself: (B, Q) queries and (B, K) keys give (B, 1, Q, K) bool. Documents of -1 are padding; without
    `until` (B, K) no key is private."""
    same = query_documents[:, :, None] == key_documents[:, None, :]
    seen = key_groups[:, None, :] <= query_groups[:, :, None]
    if until is not None:
        seen &= query_groups[:, :, None] <= until[:, None, :]
    return (same & seen & (key_documents >= 0)[:, None, :])[:, None]


def visibility(
    groups: torch.Tensor,
    documents: torch.Tensor,
    until: torch.Tensor | None = None,
    *,
    causal: bool = False,
    backend: str = "sdpa",
) -> Visibility:
    """Who sees whom among positions with these groups, documents and ends, (B, T) each, in the form that `backend`
    wants.

    `causal` says that the rule is known to reduce to plain causal attention: one document to a row, each position a
    group of its own, nothing private, padding only at the end.
    """
    if backend == "flex":
        return Visibility(backend, mask=_block_mask(groups, documents, until))
    if causal and backend == "sdpa":
        return Visibility(backend, causal=True)
    return Visibility(backend, mask=allowed(groups, documents, groups, documents, until))


def narrowed(seen: Visibility, by: torch.Tensor) -> Visibility:
    """Of what is seen, what a mask (B, 1, Q, K) lets through as well; sdpa and xformers."""
    if seen.causal:
        keys = by.shape[-1]
        by = by & torch.ones(keys, keys, dtype=torch.bool, device=by.device).tril()
    elif seen.mask is not None:
        by = by & seen.mask
    return replace(seen, causal=False, mask=by, bias=None)


def within(seen: Visibility, queries: torch.Tensor, keys: torch.Tensor, window: int) -> Visibility:
    """Of what is seen, what stands fewer than `window` steps of the order behind; orders (B, Q) and (B, K)."""
    return narrowed(seen, (queries[:, :, None] - keys[:, None, :] < window)[:, None])


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: Visibility) -> torch.Tensor:
    """Attention of q (B, H, Q, D) over k, v (B, G, K, D), where G divides H; gives (B, H, Q, D)."""
    if seen.backend == "flex":
        return _flex()(q, k, v, block_mask=seen.mask, enable_gqa=q.shape[1] != k.shape[1])
    if seen.backend == "xformers":
        return _xformers(q, k, v, seen.mask)
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled():
        return _products(q, k, v, seen)
    if seen.first is not None:
        return torch.ops.unitok.attend_to_first(q, k, v, once(seen, q.dtype), seen.first).transpose(1, 2)
    mask = seen.mask
    if mask is not None and q.is_cuda:
        mask = once(seen, q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=seen.causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def once(seen: Visibility, dtype: torch.dtype) -> torch.Tensor:
    """The mask as what is added to scores of a type, made once and not in every layer. Who sees nobody, as padding,
    sees everyone. Nobody reads what comes of it; but minus infinity throughout is NaN in some kernels (cuDNN's, which
    bf16 takes where lengths are multiples of 64), and spreads through the gradients of the others."""
    if seen.bias is None or seen.bias.dtype != dtype:
        nothing = torch.zeros(seen.mask.shape, dtype=dtype, device=seen.mask.device)
        seen.bias = nothing.masked_fill_(~seen.mask & seen.mask.any(-1, keepdim=True), float("-inf"))
    return seen.bias


_OPERATIONS = torch.library.Library("unitok", "DEF")
"""Of our own. A compiler calls them and does not look inside."""
_OPERATIONS.define("attend_to_first(Tensor q, Tensor k, Tensor v, Tensor bias, Tensor first) -> Tensor")


@torch.library.impl(_OPERATIONS, "attend_to_first", "CPU")
def _attend_to_first(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """`attend` to the first keys alone, (B, Q, H, D)."""
    n = int(first)
    out = F.scaled_dot_product_attention(
        q, k[:, :, :n], v[:, :, :n], attn_mask=bias[..., :n], enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).contiguous()


@torch.library.impl(_OPERATIONS, "attend_to_first", "Meta")
def _attend_to_first_shape(q: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])


def _products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: Visibility) -> torch.Tensor:
    """Attention as two matrix products, for training in bf16 on a CPU: there the backward pass of SDPA takes two to
    four times as long (docs/log.md, 2026-11-21)."""
    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    if heads != k.shape[1]:
        k, v = k.repeat_interleave(heads // k.shape[1], 1), v.repeat_interleave(heads // v.shape[1], 1)
    if seen.bias is None:
        seen.bias = torch.zeros(batch, heads, queries, keys, dtype=q.dtype)
        mask = torch.ones(queries, keys, dtype=torch.bool).tril() if seen.causal else seen.mask
        if mask is not None:
            # Not minus infinity: a row of padding sees nobody, and its NaN would spread through the gradients.
            seen.bias.masked_fill_(~mask, torch.finfo(q.dtype).min)
        seen.bias = seen.bias.flatten(0, 1)
    scores = torch.baddbmm(seen.bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=size**-0.5)
    return (scores.softmax(-1) @ v.flatten(0, 1)).view(batch, heads, queries, size)


def _block_mask(groups: torch.Tensor, documents: torch.Tensor, until: torch.Tensor | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen = (documents[b, q] == documents[b, k]) & (documents[b, k] >= 0) & (groups[b, k] <= groups[b, q])
        return seen if until is None else seen & (groups[b, q] <= until[b, k])

    batch, length = groups.shape
    return create_block_mask(rule, batch, None, length, length, device=str(groups.device))


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled FlexAttention materialises all scores; on a CPU the compiled form saves nothing.
    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise UserError(
            "trunk.attention is 'xformers' but xformers is not installed: pip install unitok-vq[xformers]"
        ) from None
    if not q.is_cuda:
        raise UserError("trunk.attention is 'xformers', which needs a CUDA device: choose sdpa")
    repeat = q.shape[1] // k.shape[1]
    if repeat > 1:
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    bias = None
    if mask is not None:
        # A row of padding sees nobody; minus infinity throughout would give NaN, so such a row sees everyone.
        mask = mask | ~mask.any(-1, keepdim=True)
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
        bias = bias.expand(-1, q.shape[1], -1, -1)
    try:
        out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias)
    except NotImplementedError:
        raise UserError(
            "trunk.attention is 'xformers', but this xformers has no kernel for this torch, GPU and head size "
            "(python -m xformers.info lists them): choose sdpa, or install the xformers built for this torch"
        ) from None
    return out.transpose(1, 2)
