"""Figures of a tokenizer: where pictures differ, and how often codes occur."""

from __future__ import annotations

import torch

from tokenizers_vq.usage import CodebookUsage
from unitok.eval.reports.figures import codebook_figure, colour, error_range, errors, sheet, with_errors


def test_error_maps_are_black_where_equal_and_brightest_at_the_stated_scale() -> None:
    original = torch.zeros(3, 4, 4, dtype=torch.uint8)
    back = original.clone()
    back[:, 0, 0] = torch.tensor([30, 60, 90], dtype=torch.uint8)
    assert errors(original, back)[0, 0] == 60 and errors(original, back).sum() == 60
    assert error_range([errors(original, back)]) == 64
    figure = with_errors("title", [""], [(original, [back], "text")], "file.png")
    picture = figure.items[0].pictures[2].sum(dim=0)
    assert figure.labels == ("original", "reconstruction", "error")
    assert picture[0, 0] > 500 and picture[1:, 1:].max() < 10
    bright = colour(torch.linspace(0, 1, 9)[None]).float().mean(dim=0)[0]
    assert (bright[1:] > bright[:-1]).all(), "the scale rises"
    assert error_range([torch.zeros(4, 4)]) == 8 and error_range([torch.full((4, 4), 255.0)]) == 255


def test_codebook_figure_shows_codes_that_never_occur() -> None:
    even, skewed = CodebookUsage(100), CodebookUsage(100)
    even.update(torch.arange(100))
    skewed.update(torch.arange(10))
    pictures = [sheet(codebook_figure({"codes": usage}, "codebook.png")) for usage in (even, skewed)]
    filled = [(picture[2].int() - picture[0].int() > 20).float().mean() for picture in pictures]  # blue
    assert filled[0] > 4 * filled[1] > 0
