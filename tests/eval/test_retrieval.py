"""`unitok eval retrieval`: the nearest picture's name is found, counted and shown, and what cannot be asked is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.eval.metrics.alignment import group_ranks, nearest_group
from unitok.eval.reports.output import read_items

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230), "white": (240, 240, 240)}


def folder(path: Path, names: dict[str, list[str]], seed: int) -> str:
    """A folder of noisy pictures of one colour; their captions are the names in turn."""
    generator = torch.Generator().manual_seed(seed)
    path.mkdir()
    for colour, said in names.items():
        for number, name in enumerate(said):
            noise = torch.randint(-20, 20, (3, 32, 32), generator=generator)
            image = (torch.tensor(COLOURS[colour])[:, None, None] + noise).clamp(0, 255).to(torch.uint8)
            save_png(path / f"{colour}-{number}.png", image)
            (path / f"{colour}-{number}.txt").write_text(name)
    return str(path)


def test_names_are_found_by_the_nearest_picture(tmp_path: Path) -> None:
    gallery = folder(tmp_path / "gallery", {colour: [colour] * 2 for colour in COLOURS}, seed=0)
    asked = folder(tmp_path / "asked", {"red": ["red"], "green": ["green"], "blue": ["blue"], "white": ["red"]}, seed=1)
    out = tmp_path / "out"
    assert main(["eval", "retrieval", asked, gallery, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["retrieval"]["retrieval"] == {"top1": 0.75, "top5": 1.0}, "white is called red, wrongly"
    facts = report["provenance"]["retrieval.retrieval"]
    assert facts["pictures"] == 4 and facts["gallery pictures"] == 8 and facts["names"] == 4
    assert "not Inception" in facts["label"] and facts["set_sha256"] != facts["gallery_sha256"]
    rows = {row["item"]: row["retrieval.top1"] for row in read_items(out, "retrieval")}
    assert len(rows) == 4 and sum(int(right or 0) for right in rows.values()) == 3
    page = (out / "report.html").read_text()
    assert "nearest: white" in page and "nearest: blue" in page


def test_a_name_that_the_gallery_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = folder(tmp_path / "gallery", {"red": ["red"]}, seed=0)
    asked = folder(tmp_path / "asked", {"blue": ["azure"]}, seed=1)
    assert main(["eval", "retrieval", asked, gallery, "--out", str(tmp_path / "out")]) == 2
    assert "not in the gallery, such as 'azure'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


def test_ranks_equal_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(7, 5, generator=generator), torch.randn(20, 5, generator=generator)
    groups = [f"g{number % 6}" for number in range(20)]
    right = [f"g{number % 6}" for number in range(7)]

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / a.norm() / b.norm())

    for query, name, rank in zip(queries, right, group_ranks(queries, right, gallery, groups).tolist(), strict=True):
        best = {
            group: max(cosine(query, one) for one, own in zip(gallery, groups, strict=True) if own == group)
            for group in set(groups)
        }
        assert rank == sum(value > best[name] for group, value in best.items() if group != name)
    shares = nearest_group(queries, right, gallery, groups, top=(1, 6))
    assert shares["top6"] == 1 and shares["top1"] < 1
