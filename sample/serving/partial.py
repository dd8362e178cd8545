"""Pictures of codes, and of which only some codes are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.images import to_uint8

from ..masks import GREY, has_places


@torch.inference_mode()
def decode_one(tokenizer: ImageTokenizer, codes: torch.Tensor) -> torch.Tensor:
    """The picture (3, H, W) uint8 of codes (n,): alone, so that it does not depend on others."""
    with torch.autocast(codes.device.type, enabled=False):
        return to_uint8(tokenizer.decode(codes[None]))[0].cpu()


class Partial:
    """Shows pictures that are being drawn.

    Whole scales, or what else the tokenizer decodes from its first codes, are decoded. Else, where each code has its
    place, what is not known is mid grey. Where nothing can be shown, all is grey.
    """

    @torch.inference_mode()
    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self.tokenizer = tokenizer
        self.enough = tokenizer.known_after(tokenizer.layout)
        self.grey: torch.Tensor | None = None
        """(L,) codes of a grey picture, where each has a place: known places so keep clear of unknown ones."""
        if len(tokenizer.layout.scales) == 1 and has_places(tokenizer):
            height, width = tokenizer.image_size
            self.grey = tokenizer.encode(torch.zeros(1, 3, height, width, device=tokenizer.last_layer.device))[0]

    @torch.inference_mode()
    def picture(self, codes: torch.Tensor) -> torch.Tensor:
        """(3, H, W) uint8 of codes (L,) int64, -1 for those that are not known."""
        known = codes >= 0
        first = int(known.long().cumprod(0).sum())
        whole = [number for number in self.enough if number <= first]
        if whole:
            return decode_one(self.tokenizer, codes[: whole[-1]])
        size = self.tokenizer.image_size
        if self.grey is None:
            return torch.full((3, *size), GREY, dtype=torch.uint8)
        picture = decode_one(self.tokenizer, torch.where(known, codes, self.grey))
        places = known.float().view(1, 1, *self.tokenizer.layout.grid).cpu()
        return picture.masked_fill(F.interpolate(places, size, mode="nearest")[0] == 0, GREY)
