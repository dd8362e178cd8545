"""Pictures in and out, contact sheets, and codebook statistics."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_grid, save_png, to_float, to_uint8, wrap
from tokenizers_vq.usage import CodebookUsage


def test_uint8_survives_the_way_through_float() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    images = to_float(values)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_uint8(images), values)


def test_to_uint8_rounds_and_clamps() -> None:
    images = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    assert to_uint8(images).tolist() == [0, 0, 128, 255, 255, 100, 101]


def test_png_is_lossless(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(tmp_path / "new" / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image.permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_grid_places_pictures_row_by_row(tmp_path: Path) -> None:
    images = torch.stack([torch.full((3, 4, 6), value, dtype=torch.uint8) for value in (10, 20, 30)])
    save_grid(tmp_path / "grid.png", images, columns=2, scale=3, margin=1)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert sheet.shape == (2 * (4 * 3 + 2), 2 * (6 * 3 + 2), 3)
    assert sheet[5, 5, 0] == 10
    assert sheet[5, 25, 0] == 20
    assert sheet[20, 5, 0] == 30
    assert sheet[20, 25, 0] == 255
    assert sheet[0, 0, 0] == 255


def test_grid_labels_take_room_and_leave_the_pictures_alone(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 32, dtype=torch.uint8)
    save_grid(tmp_path / "plain.png", images, columns=2)
    save_grid(tmp_path / "labels.png", images, columns=2, labels=["a small red circle above a square", "x"])
    plain, labels = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "labels.png"))
    assert labels.shape[0] > plain.shape[0] + 30
    assert np.array_equal(labels[: plain.shape[0]], plain)
    assert (labels[plain.shape[0] :, :36] < 128).any()


def test_labels_wrap_at_spaces_and_inside_long_words() -> None:
    font = ImageFont.load_default()
    lines = wrap("one two incomprehensibilities", font, 50)
    assert "".join(lines).replace(" ", "") == "onetwoincomprehensibilities"
    assert len(lines) > 2
    assert all(font.getlength(line) <= 50 for line in lines)
    assert wrap("", font, 50) == []


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/a.png: .*; choose another folder or free space"):
        save_png(tmp_path / "file" / "a.png", torch.zeros(3, 2, 2, dtype=torch.uint8))


def test_usage_by_hand() -> None:
    usage = CodebookUsage(8)
    assert (usage.use, usage.perplexity) == (0.0, 0.0)
    usage.update(torch.tensor([[0, 0, 1], [2, 2, 1]]))
    assert usage.use == pytest.approx(3 / 8)
    assert usage.perplexity == pytest.approx(3.0)
    usage.update(torch.tensor([7, 7]))
    # shares 1/4 each
    assert usage.use == pytest.approx(4 / 8)
    assert usage.perplexity == pytest.approx(4.0)
    usage.update(torch.zeros(8, dtype=torch.int64))
    # shares 10/16, 2/16 three times
    entropy = -(10 / 16) * math.log(10 / 16) - 3 * (2 / 16) * math.log(2 / 16)
    assert usage.perplexity == pytest.approx(math.exp(entropy))


def test_usage_merges_like_one_count() -> None:
    codes = torch.randint(0, 50, (4, 30), generator=torch.Generator().manual_seed(0))
    whole, first, second = CodebookUsage(50), CodebookUsage(50), CodebookUsage(50)
    whole.update(codes)
    first.update(codes[:1])
    second.update(codes[1:])
    first.merge(second)
    first.merge_ranks()  # a single process: nothing to add
    assert torch.equal(first.counts, whole.counts)
