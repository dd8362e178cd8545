"""Where a model looks: the attention from each code of a picture to the words of its caption.

L = codes of a picture, T = positions, H = heads, G = key heads, D = head size
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from ..sequence import IGNORE, Segment, document, lay_out
from .native import Attention, Transformer, Turns
from .rule import Visibility, attend

if TYPE_CHECKING:
    from ..model import UniTok


@torch.inference_mode()
def attention_to_words(
    model: UniTok, caption: str, codes: torch.Tensor, behind: Sequence[Segment] = ()
) -> list[tuple[str, torch.Tensor]] | None:
    """Each word of a caption, and the share of its attention (L,) that the position which predicts a code gives to it:
    the mean over all heads of all layers. What is left of 1 goes to codes, marks and spaces.

    It says where the model looks, not what that is worth to it.

    Args:
        model: whose codes stand behind its captions.
        caption: at most as long as the model reads.
        codes: (L,) of one picture.
        behind: what stands between them, such as boxes.

    Returns:
        None where the trunk is not our own, or does not read the caption as a text.
    """
    if not isinstance(model.trunk, Transformer) or model.config.trunk.captions == "class":
        return None
    text = model.modalities()["text"].given([caption])[0]
    image = model.objective.forced(codes[None].to(model.device), model.layout, model.vocabulary)[0]
    batch = lay_out([[document([text, *behind, image])]], pad=model.vocabulary.pad)
    before = len(text) + sum(map(len, behind))
    with watched(model.trunk) as seen:
        model.states(batch.to(model.device))
    assert image.target is not None
    here = (image.target != IGNORE).nonzero()[:, 0]
    shares = torch.stack(seen).mean(0)[0][before + here.to(seen[0].device)].cpu()  # (L, T)

    places = model.layout.coordinates()
    places[:, 0] += len(model.objective.frames.drawn[0])
    place = {tuple(one): number for number, one in enumerate(places.tolist())}
    order = torch.tensor([place[tuple(one)] for one in image.places[here].tolist()])
    spread = torch.zeros(len(codes), shares.shape[1]).index_copy_(0, order, shares)

    read = model.text_tokenizer.tokenizer.encode(caption, add_special_tokens=False)
    first = _where(read.ids, text.ids.tolist())
    found = []
    for word in re.finditer(r"\S+", caption):
        own = [first + at for at, (_, end) in enumerate(read.offsets) if word.start() < end <= word.end()]
        found.append((word[0], spread[:, own].sum(1)))
    return found


def _where(part: list[int], whole: list[int]) -> int:
    """Where a row of ids stands in another, which holds it."""
    return next(at for at in range(len(whole) + 1) if whole[at : at + len(part)] == part)


@contextmanager
def watched(trunk: Transformer) -> Iterator[list[torch.Tensor]]:
    """Inside, each layer of a pass adds its attention to the list: (B, T, T) float32, from and to a position, the mean
    over the heads. It is computed once more, beside the pass, which stays as it is."""
    seen: list[torch.Tensor] = []
    layers = [module for module in trunk.modules() if isinstance(module, Attention)]
    hooks = [layer.register_forward_pre_hook(partial(_note, seen)) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _note(seen: list[torch.Tensor], layer: nn.Module, given: tuple[torch.Tensor, Turns, Visibility]) -> None:
    assert isinstance(layer, Attention)
    q, k, _ = layer.project(given[0], given[1])
    batch, groups, length, size = k.shape
    # The weights are what attention makes of a value of 1 at one position: so the rule of who sees whom stands once.
    values = F.pad(torch.eye(length, dtype=k.dtype, device=k.device), (0, -length % size))
    parts = [
        attend(q, k, some.expand(batch, groups, length, size).contiguous(), given[2]).float().mean(1)
        for some in values.split(size, -1)
    ]
    seen.append(torch.cat(parts, -1)[..., :length])
