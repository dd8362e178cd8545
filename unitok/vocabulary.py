"""One id space for text, special tokens and image codes: the only place that adds or subtracts an offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenizers_vq.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """Text ids, then special ids, then image codes.

    >>> v = Vocabulary(text_size=100, codebook_size=16)
    >>> v.size, v.image_ids(torch.tensor([0])).item()
    (121, 105)
    """

    text_size: int
    codebook_size: int

    SPECIALS = ("eos", "bos", "boi", "mask", "pad")

    @property
    def eos(self) -> int:
        """Ends a text. It follows the text ids, so that "text or end" is one range."""
        return self.text_size

    @property
    def bos(self) -> int:
        """Begins a text."""
        return self.text_size + 1

    @property
    def boi(self) -> int:
        """Begins an image that is drawn code by code."""
        return self.text_size + 2

    @property
    def mask(self) -> int:
        """Stands for a code that is not known yet."""
        return self.text_size + 3

    @property
    def pad(self) -> int:
        """Fills rows."""
        return self.text_size + 4

    @property
    def image_start(self) -> int:
        return self.text_size + len(self.SPECIALS)

    @property
    def size(self) -> int:
        return self.image_start + self.codebook_size

    @property
    def text_range(self) -> slice:
        """Ids that may be written in a text: the text ids and the end."""
        return slice(0, self.eos + 1)

    @property
    def image_range(self) -> slice:
        """Ids of image codes."""
        return slice(self.image_start, self.size)

    def image_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Ids of image codes. Raises UserError for codes outside the codebook."""
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            raise UserError(
                f"image codes from {int(codes.min())} to {int(codes.max())} do not fit a codebook of "
                f"{self.codebook_size}: encode the pictures with the tokenizer of this model"
            )
        return codes + self.image_start
