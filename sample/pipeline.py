"""From captions to pictures and from pictures to captions, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float, to_uint8
from unitok.device import Precision, autocast
from unitok.model import UniTok
from unitok.tasks import image_to_text_prompts, text_to_image_prompt

from . import masked_token, next_scale, next_token
from .config import SampleSettings
from .logits import finite
from .prompts import EncodedPrompts, encode_prompts

Decoder = Callable[..., torch.Tensor]
DECODERS: dict[str, Decoder] = {
    "next_token": next_token.decode,
    "masked_token": masked_token.decode,
    "next_scale": next_scale.decode,
}
"""The decoder of each objective, under the objective's name."""


def settings_for(model: UniTok, given: Mapping[str, Any] | None = None) -> SampleSettings:
    """What is given, else the model's own settings, else the defaults.

    Raises:
        UserError: a list that does not have a value for each scale, or more scales asked for than the model has.
    """
    settings = SampleSettings.of(model.config, given)
    settings.at_scale(scales=len(model.layout.scales) if model.config.objective == "next_scale" else 1)
    return settings


@torch.inference_mode()
def draw_codes(
    model: UniTok,
    captions: list[str],
    settings: SampleSettings,
    seeds: list[int],
    text_ids: Callable[[str], list[int]] | None = None,
) -> torch.Tensor:
    """Codes (N, L) of one picture per caption, or of its first `settings.scales` scales. All rows are decoded together;
    no row depends on the others. For `text_ids` see `draw`."""
    assert len(captions) == len(seeds)
    text_ids = text_ids or model.text_ids
    prompts = [text_to_image_prompt(text_ids(caption), model.vocabulary) for caption in captions]
    if settings.guidance != 1:
        prompts += [text_to_image_prompt([], model.vocabulary) for _ in captions]
    encoded = encode_prompts(model, prompts, room=model.layout.length)
    return DECODERS[model.config.objective](model, encoded, seeds, settings)


@torch.inference_mode()
def draw(
    model: UniTok,
    captions: list[str],
    settings: SampleSettings | None = None,
    seeds: list[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
) -> torch.Tensor:
    """Pictures (N, 3, H, W) uint8, one for each caption.

    Args:
        model: draws.
        captions: what is asked for.
        settings: how codes are chosen; default: as the model likes it.
        seeds: default 0, 1, ... They fix each picture: the same model, caption, settings and seed give the same
            picture, alone or in any batch.
        batch_size: pictures drawn at a time; changes the speed, not the pictures.
        precision: see `unitok.device`.
        text_ids: turns captions into ids: `unitok.text.CaptionEncoder` cuts long ones, as is done with data; the
            default, the model's own, refuses them.

    Raises:
        UserError: a caption that is too long, or logits that are not finite.
    """
    settings = settings or SampleSettings.of(model.config)
    seeds = list(range(len(captions))) if seeds is None else seeds
    text_ids = text_ids or model.text_ids
    for caption in captions:
        text_ids(caption)  # a caption that is too long is refused before anything is drawn
    pictures = []
    for part in _parts(len(captions), batch_size):
        with autocast(model.device, precision):
            codes = draw_codes(model, captions[part], settings, seeds[part], text_ids)
        pictures.append(to_uint8(model.image_tokenizer.decode(codes, up_to_scale=settings.scales or None)).cpu())
    return torch.cat(pictures)


@torch.inference_mode()
def draw_progress(
    model: UniTok, captions: list[str], settings: SampleSettings, seeds: list[int], *, precision: Precision = "fp32"
) -> torch.Tensor:
    """Pictures (N, K, 3, H, W) uint8 of a next-scale model: each as it is known after 1, 2, ... K scales. The last are
    those of `draw`."""
    with autocast(model.device, precision):
        codes = draw_codes(model, captions, settings, seeds)
    scales = range(1, 1 + (settings.scales or len(model.layout.scales)))
    pictures = [to_uint8(model.image_tokenizer.decode(codes, up_to_scale=scale)) for scale in scales]
    return torch.stack(pictures, 1).cpu()


@torch.inference_mode()
def caption_codes(model: UniTok, codes: torch.Tensor) -> list[str]:
    """Captions of pictures given as codes (N, L): the most likely token each time, until the end of the text."""
    transformer, vocabulary = model.transformer, model.vocabulary
    prompts = image_to_text_prompts(codes.to(model.device), model.layout, vocabulary, model.objective)
    encoded: EncodedPrompts = encode_prompts(model, prompts, room=model.config.text_length + 1)
    rows = len(prompts)
    ids = torch.full((rows, 1), vocabulary.bos, device=model.device)
    written = torch.full((rows, model.config.text_length), vocabulary.eos)
    ended = torch.zeros(rows, dtype=torch.bool)
    for position in range(model.config.text_length):
        place = torch.zeros(rows, 1, 3, dtype=torch.int64, device=model.device)
        place[:, 0, 0] = encoded.orders + position
        seen = encoded.cache.extend((encoded.groups + position)[:, None], whole=True)
        hidden = transformer.hidden(ids, place, seen, encoded.cache)
        ids = finite(transformer.logits(hidden, vocabulary.text_range)).argmax(-1)
        chosen = ids[:, 0].cpu()
        written[:, position] = torch.where(ended, vocabulary.eos, chosen)
        ended |= chosen == vocabulary.eos
        if ended.all():
            break
    texts = []
    for row in written.tolist():
        end = row.index(vocabulary.eos) if vocabulary.eos in row else len(row)
        texts.append(model.text_tokenizer.decode(row[:end]))
    return texts


@torch.inference_mode()
def caption(model: UniTok, pictures: torch.Tensor, *, batch_size: int = 32, precision: Precision = "fp32") -> list[str]:
    """Captions of pictures (N, 3, H, W) uint8 of the model's size."""
    height, width = model.image_tokenizer.image_size
    if pictures.shape[1:] != (3, height, width):
        raise UserError(
            f"pictures are {tuple(pictures.shape[1:])}, this model reads (3, {height}, {width}): resize them"
        )
    texts: list[str] = []
    for part in _parts(len(pictures), batch_size):
        codes = model.image_tokenizer.encode(to_float(pictures[part]).to(model.device))
        with autocast(model.device, precision):
            texts += caption_codes(model, codes)
    return texts


def _parts(number: int, size: int) -> Iterator[slice]:
    for start in range(0, number, size):
        yield slice(start, min(start + size, number))
