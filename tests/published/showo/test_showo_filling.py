"""Show-o fills holes and draws around pictures as its authors' code does: codes and pictures of their arithmetic,
written from a description of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float, to_uint8
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.sample.inpainting import Sides, canvas_of, extend_all, inpaint, inpaint_each, known_codes, window_seed
from unitok.sampling import SampleSettings

from ..foreign import SIDE
from .showo_model import CAPTIONS, passes

STEPS, SCALE = 5, 1.75
SETTINGS = SampleSettings(guidance=1 + SCALE, steps=STEPS)
PIXELS = 16
TAPS = torch.tensor([-0.09375, 0.59375, 0.59375, -0.09375])
"""Weights of the four pixels around the middle of a code, by bicubic interpolation."""


def pictures(number: int) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randint(256, (number, 3, PIXELS, PIXELS), generator=random).to(torch.uint8)


def holes() -> Tensor:
    """Masks whose edges run through codes: over the middle of some, and beside that of others."""
    masks = torch.zeros(3, PIXELS, PIXELS, dtype=torch.bool)
    masks[0, 1:9, 3:11] = True
    masks[1, 3:, 5:] = True
    masks[2, 5:7, 5:7] = True
    return masks


def hidden(mask: Tensor) -> Tensor:
    """(L,) bool: the codes that the authors draw anew; the mask is (H, W)."""
    parts = mask.float().view(SIDE, 4, SIDE, 4)
    return (torch.einsum("aibj,i,j->ab", parts, TAPS, TAPS) >= 0.5).flatten()


@torch.inference_mode()
def test_holes_are_filled_as_the_authors_fill_them(theirs: tuple[Any, Path], model: UniTok) -> None:
    """Which codes are drawn anew, how many stay hidden after each pass, and which; all else stays."""
    given, masks = pictures(3), holes()
    captions, seeds = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]], [3, 4, 5]
    codes = model.image_tokenizer.encode(to_float(given))
    counts = [int(hidden(mask).sum()) for mask in masks]
    assert counts == [4, 9, 1], "they touch 9, 12 and 1"
    for one in inpaint_each(model, given, masks, captions, SETTINGS, seeds):
        row = one.place
        known = codes[row].masked_fill(hidden(masks[row]), -1)
        text = model.text_tokenizer.encode(captions[row])
        wanted = passes(theirs[0], text, SCALE, STEPS, seeds[row], known=known)
        assert torch.equal(one.written[-1], wanted), row
        assert torch.equal(wanted[known >= 0], known[known >= 0])
        decoded = to_uint8(model.image_tokenizer.decode(wanted[None]))[0]
        assert torch.equal(one.picture, torch.where(masks[row], decoded, given[row]))
    # There are as many passes as asked for, also for fewer codes, and the first fixes what the whole picture says.
    counted = SampleSettings(guidance=1.0, steps=12)
    whole = codes[0].masked_fill(hidden(masks[1]), -1)
    [[one]] = [[*inpaint_each(model, given[:1], masks[1:2], captions[:1], counted, [7])]]
    assert torch.equal(one.written[-1], passes(theirs[0], model.text_ids(captions[0]), 0.0, 12, 7, known=whole))


@torch.inference_mode()
def test_a_canvas_grows_as_the_authors_let_it_grow(theirs: tuple[Any, Path], model: UniTok) -> None:
    """By half a picture at a time, from the codes of the half beside; all codes are decoded as one picture."""
    (given,) = pictures(1)
    text, half = model.text_tokenizer.encode(CAPTIONS[0]), SIDE // 2
    grid = model.image_tokenizer.encode(to_float(given[None])).view(SIDE, SIDE)
    unknown = torch.full((SIDE, half), -1)

    def drawn(known: Tensor, number: int) -> Tensor:
        seed = window_seed(9, number)
        return passes(theirs[0], text, SCALE, STEPS, seed, known=known.flatten()).view(SIDE, SIDE)

    for number, side in enumerate(("left", "right", "left")):
        if side == "left":
            grid = torch.cat([drawn(torch.cat([unknown, grid[:, :half]], 1), number), grid[:, half:]], 1)
        else:
            grid = torch.cat([grid[:, :-half], drawn(torch.cat([grid[:, -half:], unknown], 1), number)], 1)
    sides = Sides(left=PIXELS, right=PIXELS // 2)
    (found,) = extend_all(model, given, sides, CAPTIONS[0], SETTINGS, [9])
    layout = model.image_tokenizer.layout_for(PIXELS, PIXELS * 5 // 2)
    wanted = to_uint8(model.image_tokenizer.decode(grid.reshape(1, -1), layout))[0]
    wanted[..., PIXELS : 2 * PIXELS] = given
    assert torch.equal(found, wanted)
    (alone, beside) = extend_all(model, given, sides, CAPTIONS[0], SETTINGS, [8, 9])
    assert torch.equal(beside, found) and not torch.equal(alone, found)


@torch.inference_mode()
def test_a_picture_of_any_size_grows_on_its_own_grid(model: UniTok) -> None:
    """The last codes of such a picture stand half in it: they are drawn where their middle is not in it."""
    wide = pictures(2).permute(1, 2, 0, 3).reshape(3, PIXELS, 2 * PIXELS)[..., :29]
    sides = Sides(top=7, right=2)
    canvas = canvas_of(model, wide, sides)
    known = [canvas.known(number) for number in range(len(canvas.windows))]
    assert all((one < 0).any() and (one >= 0).any() for one in known)
    (found,) = extend_all(model, wide, sides, CAPTIONS[0], SETTINGS, [0])
    assert found.shape == (3, PIXELS + 7, 29 + 2) and torch.equal(found[:, 7:, :29], wide)
    (same,) = extend_all(model, wide, Sides(right=1), CAPTIONS[0], SETTINGS, [0])
    assert same.shape == (3, PIXELS, 30) and torch.equal(same[..., :29], wide)


def test_what_covers_no_code_is_told(model: UniTok) -> None:
    mask = torch.zeros(1, PIXELS, PIXELS, dtype=torch.bool)
    mask[0, :, 3:5] = True
    with pytest.raises(
        UserError, match="the mask covers the middle of no code, so there is nothing to draw: mark more"
    ):
        inpaint(model, pictures(1), mask, CAPTIONS[:1])
    mask[0, :, 3:7] = True
    assert (known_codes(model, pictures(1), mask) < 0).sum() == SIDE


def test_commands_fill_and_extend(model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    given = tmp_path / "given.png"
    Image.fromarray(pictures(1)[0].permute(1, 2, 0).numpy()).save(given)
    words = [str(given), "--model", str(tmp_path / "model"), "--caption", CAPTIONS[0], "--n", "1"]
    assert main(["inpaint", *words, "--box", "3,1,11,9", "--out", str(tmp_path / "filled")]) == 0
    (filled,) = (tmp_path / "filled" / "pictures").glob("*.png")
    settings = SampleSettings.of(model.config)
    assert settings.guidance == 2.75 and settings.steps == 18
    (wanted,) = inpaint(model, pictures(1), holes()[:1], CAPTIONS[:1], settings, [0])
    assert np.array_equal(np.asarray(Image.open(filled)), wanted.permute(1, 2, 0).numpy())
    assert main(["extend", *words, "--left", "8", "--out", str(tmp_path / "extended")]) == 0
    (extended,) = (tmp_path / "extended" / "pictures").glob("*.png")
    (larger,) = extend_all(model, pictures(1)[0], Sides(left=8), CAPTIONS[0], settings, [0])
    assert np.array_equal(np.asarray(Image.open(extended)), larger.permute(1, 2, 0).numpy())
    capsys.readouterr()
    assert main(["inpaint", *words, "--box", "3,0,5,16", "--out", str(tmp_path / "none")]) == 2
    assert "covers the middle of no code" in capsys.readouterr().err and not (tmp_path / "none").exists()
