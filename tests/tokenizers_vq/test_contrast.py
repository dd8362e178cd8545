"""The contrastive loss between codes and captions: its value, who counts as a negative, what it makes of the codes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenizers_vq import build_tokenizer, load_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, config_from_dict, config_to_dict
from tokenizers_vq.errors import UserError
from tokenizers_vq.families.query import QueryVQTokenizer
from tokenizers_vq.families.query_config import QueryVQConfig
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.contrast import CaptionFeatures, contrastive_loss
from tokenizers_vq.losses.reconstruction import TokenizerLoss

SHAPES = TOKENIZER_PRESETS["shapes_query"]()
assert isinstance(SHAPES, QueryVQConfig)


def tiny(**changes: Any) -> QueryVQTokenizer:
    torch.manual_seed(0)
    small = {"channels": 16, "latent_dim": 16, "tokens": 4, "width": 32, "depth": 1, "heads": 2}
    tokenizer = build_tokenizer(dataclasses.replace(SHAPES, **{**small, **changes}))
    assert isinstance(tokenizer, QueryVQTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_vision: Any) -> str:
    return save_vision("clip", tmp_path_factory.mktemp("clip"))


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the loss -------------------------------------------------------------------------------------------------------


def slow_loss(pictures: Tensor, captions: CaptionFeatures, scale: float) -> float:
    """Pair by pair, in float64."""
    numbers = captions.numbers.tolist()
    some = [row for row, number in enumerate(numbers) if number >= 0]

    def score(picture: int, caption: int) -> float:
        p, c = pictures[picture].double(), captions.vectors[caption].double()
        return scale * float(p @ c) / math.sqrt(float(p @ p) * float(c @ c))

    total = 0.0
    for row in some:
        rows = [other for other in some if other == row or numbers[other] != numbers[row]]
        for scores in ([score(row, other) for other in rows], [score(other, row) for other in rows]):
            total += (math.log(math.fsum(map(math.exp, scores))) - score(row, row)) / 2
    return total / len(some)


@pytest.mark.parametrize(
    "numbers", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 0, 1], [0, -1, 1, 0, -1, 2], [3, -1, -1, 1, -1, -1]]
)
def test_the_loss_equals_a_slow_one(numbers: list[int]) -> None:
    captions = CaptionFeatures(vectors(6, 8, seed=1), torch.tensor(numbers))
    for scale in (1.0, 14.0, 100.0):
        loss = contrastive_loss(vectors(6, 8), captions, torch.tensor(scale))
        assert loss.item() == pytest.approx(slow_loss(vectors(6, 8), captions, scale), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(vectors(6, 8), captions, torch.tensor(100.0)), loss)


def test_equal_captions_are_no_negatives() -> None:
    pictures = vectors(4, 8).requires_grad_()
    captions = CaptionFeatures(vectors(1, 8, seed=1).expand(4, 8), torch.zeros(4, dtype=torch.int64))
    loss = contrastive_loss(pictures, captions, torch.tensor(10.0))
    loss.backward()
    assert loss == 0 and pictures.grad is not None and not pictures.grad.any()
    counted = CaptionFeatures(captions.vectors, torch.arange(4))
    assert contrastive_loss(pictures, counted, torch.tensor(10.0)) > 1


@pytest.mark.parametrize("numbers", [[4, -1, 2, -1], [-1, -1, -1, -1]])
def test_pictures_without_caption_take_no_part(numbers: list[int]) -> None:
    given = torch.tensor(numbers)
    pictures, has = vectors(4, 8).requires_grad_(), given >= 0
    texts = vectors(4, 8, seed=1).masked_fill(~has[:, None], 0)
    loss = contrastive_loss(pictures, CaptionFeatures(texts, given), torch.tensor(10.0))
    loss.backward()
    assert pictures.grad is not None and torch.equal(pictures.grad.any(1), has)
    alone = contrastive_loss(pictures[has], CaptionFeatures(texts[has], given[has]), torch.tensor(10.0))
    torch.testing.assert_close(loss, alone)


# --- the codes ------------------------------------------------------------------------------------------------------


def colours(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 32, 32) of eight colours with a stain each, and which colour they are of."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(count) % 8
    images = (which[:, None] // torch.tensor([1, 2, 4]) % 2 * 1.6 - 0.8)[:, :, None, None].repeat(1, 1, 32, 32)
    for image, (row, column) in zip(images, torch.randint(24, (count, 2), generator=generator).tolist(), strict=True):
        image[:, row : row + 8, column : column + 8] *= -1
    return images, which


@pytest.mark.parametrize("learns", [True, False])
def test_codes_find_the_captions_of_new_pictures(clip: str, learns: bool) -> None:
    """A share of 1/8 is chance; without the loss the same tokenizer stays there."""
    tokenizer, texts = tiny(vision=clip, contrastive_weight=1.0).train(), vectors(8, 16, seed=2)
    optimizer = torch.optim.AdamW([weight for weight in tokenizer.parameters() if weight.requires_grad], lr=4e-3)
    losses = TokenizerLoss(LossConfig())
    for step in range(40):
        images, which = colours(16, seed=step)
        _, parts = losses(images, tokenizer(images, captions=CaptionFeatures(texts[which], which)))
        assert parts.keys() == {"l2", "features", "contrastive"}
        optimizer.zero_grad()
        torch.stack([part for name, part in parts.items() if learns or name != "contrastive"]).sum().backward()
        optimizer.step()
    images, which = colours(64, seed=1000)
    codes = tokenizer.eval().encode(images)
    with torch.no_grad():
        meanings = tokenizer.meaning(tokenizer.tokens(tokenizer.quantizer.vectors(codes, (1, 4))))
    found = (torch.nn.functional.normalize(meanings, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T).argmax(1)
    share = (found == which).float().mean().item()
    assert share > 0.8 if learns else share < 0.3


def test_the_scale_of_the_cosines_stays_at_most_100_and_can_come_back(clip: str) -> None:
    tokenizer = tiny(vision=clip, contrastive_weight=1.0).train()
    images, which = colours(8, seed=0)
    assert tokenizer.log_scale.exp().item() == pytest.approx(1 / 0.07)
    tokenizer.log_scale.data.fill_(9.0)
    wrong = CaptionFeatures(vectors(8, 16), which)
    tokenizer(images, captions=wrong).losses["contrastive"].backward()
    assert tokenizer.log_scale.exp().item() == pytest.approx(100)
    assert tokenizer.log_scale.grad is not None and tokenizer.log_scale.grad > 0


def test_the_weight_scales_the_loss_and_without_captions_there_is_none(clip: str) -> None:
    images, which = colours(8, seed=0)
    captions = CaptionFeatures(vectors(8, 16), which)
    once, twice = (tiny(vision=clip, contrastive_weight=weight).eval() for weight in (1.0, 2.0))
    found = [tokenizer(images, captions=captions).losses["contrastive"] for tokenizer in (once, twice)]
    torch.testing.assert_close(found[1], 2 * found[0])
    assert once(images).losses.keys() == {"features"}
    off = tiny(vision=clip)
    assert off.to_text is None and off(images, captions=captions).losses.keys() == {"features"}


def test_the_folder_is_enough_by_itself(tmp_path: Path, save_vision: Any) -> None:
    source = save_vision("siglip", tmp_path / "vision")
    tokenizer = tiny(vision=source, contrastive_weight=0.5).eval()
    tokenizer.save_pretrained(tmp_path / "out")
    for path in (tmp_path / "vision").iterdir():
        path.unlink()
    loaded = load_tokenizer(tmp_path / "out")
    assert isinstance(loaded, QueryVQTokenizer) and loaded.fingerprint() == tokenizer.fingerprint()
    tokens = vectors(2, 4, 32)
    assert torch.equal(loaded.meaning(tokens), tokenizer.meaning(tokens)) and loaded.meaning(tokens).shape == (2, 32)


# --- configurations -------------------------------------------------------------------------------------------------


def test_older_files_load_unchanged(clip: str) -> None:
    written = config_to_dict(SHAPES)
    assert "contrastive_weight" not in written and config_from_dict(written) == SHAPES
    described = tiny(vision=clip).config.vision_model
    assert described is not None and described["text_width"] == 16
    older = {name: value for name, value in described.items() if name != "text_width"}
    assert tiny(vision=clip, vision_model=older).config.vision_model == older
    on = dataclasses.replace(SHAPES, vision="x", contrastive_weight=0.1)
    assert config_from_dict(config_to_dict(on)) == on
    assert SHAPES.text_tower is None and on.text_tower == "x" and TOKENIZER_PRESETS["debug"]().text_tower is None


def test_what_cannot_be_is_refused(tmp_path: Path, save_vision: Any) -> None:
    with pytest.raises(UserError, match=r"contrastive_weight is -1: choose 0 \(off\) or more"):
        tiny(contrastive_weight=-1)
    with pytest.raises(
        UserError, match=r"contrastive_weight is 1.0 without tokenizer.vision: give that a CLIP or SigLIP"
    ):
        tiny(contrastive_weight=1.0)
    source = save_vision("dinov2", tmp_path)
    with pytest.raises(
        UserError, match=r"\(tokenizer.vision\) has no text tower: choose a whole CLIP or SigLIP"
    ) as caught:
        tiny(vision=source, contrastive_weight=1.0)
    assert "\n" not in str(caught.value)
