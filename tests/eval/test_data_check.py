"""`unitok data check`: what is planted in a folder is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from unitok.cli.main import main
from unitok.data import open_data
from unitok.eval.data.check import NEAR, Thumbnails, look, nearest


def scene(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Soft random colours, as a photograph has."""
    noise = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(seed))
    pixels = (noise.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
    for index in range(8):
        scene(index).save(root / "train" / f"{index}.png")
        (root / "train" / f"{index}.txt").write_text("a scene" if index < 3 else f"the scene of number {index}")
    (root / "train" / "5.txt").unlink()
    (root / "train" / "6.png").write_bytes((root / "train" / "6.png").read_bytes()[:200])
    scene(7).save(root / "train" / "again.jpg", quality=60)
    for index in range(20, 24):
        scene(index).save(root / "val" / f"{index}.png")
        (root / "val" / f"{index}.txt").write_text(f"held out {index}")
    scene(2).resize((45, 30)).save(root / "val" / "leak.jpg", quality=80)
    (root / "val" / "leak.txt").write_text("a scene")
    return root


def test_what_is_planted_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "check", str(folder), "--val_data", f"{folder}/@val", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    data = report["data"]
    counts = {"records": 9, "looked_at": 9, "usable": 8, "broken": 1, "left_out": 0, "pictures": 8}
    assert counts.items() <= data.items()
    assert (data["captions"], data["without_caption"], data["distinct_captions"]) == (6, 2, 4)
    assert data["repeated"] == {"a scene": 3} and data["near_duplicates"] == 1
    assert data["width"] == {"smallest": 90, "median": 90, "largest": 90} and data["height"]["median"] == 60
    assert data["words"] == {"smallest": 2, "median": 3, "largest": 5}
    assert report["val_data"]["width"] == {"smallest": 45, "median": 90, "largest": 90}
    assert report["leakage"] == {"near_duplicates": 1, "share": 0.2, "captions": 1}
    assert any(line.startswith("1 broken (train/6.png): cannot be decoded") for line in report["warnings"])
    assert "1 of 5 validation pictures are near-duplicates of training ones" in report["warnings"]
    page = (out / "report.html").read_text()
    assert (
        "val/leak.jpg = train/2.png" in page
        and "again.jpg = train/7.png" in page
        and page.count("<img") == 8 + 5 + 2 + 2
    )
    capsys.readouterr()
    assert main(["data", "check", str(folder), "--out", str(out)]) == 2
    assert "already holds a report" in capsys.readouterr().err


def thumbnail(picture: Image.Image) -> Tensor:
    return torch.as_tensor(list(picture.convert("RGB").resize((16, 16), Image.Resampling.BOX).tobytes())).to(
        torch.uint8
    )


def test_what_counts_as_a_near_duplicate() -> None:
    pictures = torch.stack([thumbnail(scene(seed)) for seed in range(40)])
    assert nearest(pictures) == []
    one = scene(17)
    copies = {
        "scaled": one.resize((40, 33)),
        "lightened": ImageEnhance.Brightness(one).enhance(1.03),
        "grey level": one.point(lambda value: min(255, value + 2)),
    }
    assert nearest(torch.stack([thumbnail(copy) for copy in copies.values()]), pictures) == [(0, 17), (1, 17), (2, 17)]
    others = [ImageOps.mirror(one), one.crop((9, 6, 90, 60)), ImageOps.invert(one), one.convert("L")]
    assert nearest(torch.stack([thumbnail(other) for other in others]), pictures) == []


def test_nearest_is_what_a_slow_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unitok.eval.data.check._BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (9, 48), generator=generator)
    a = base[torch.randint(0, 9, (31,), generator=generator)] + torch.randint(-9, 10, (31, 48), generator=generator)
    a = a.clamp(0, 255).to(torch.uint8)
    b = a[torch.randperm(31, generator=generator)[:20]] // 2 * 2

    def slow(left: Tensor, right: Tensor, below: bool) -> list[tuple[int, int]]:
        found = []
        for i, one in enumerate(left.double()):
            shares = []
            for other in right.double()[: i if below else None]:
                contrast = (one.var(correction=0) + other.var(correction=0)) / 2 + 1
                shares.append(float((one - other).square().mean() / contrast))
            if shares and min(shares) <= NEAR:
                found.append((i, shares.index(min(shares))))
        return found

    assert nearest(a, b) == slow(a, b, False) != []
    assert nearest(a) == slow(a, a, True) != []


def test_flat_pictures_are_duplicates_only_of_their_own_colour() -> None:
    flat = torch.stack([torch.full((768,), level, dtype=torch.uint8) for level in (255, 255, 250, 0)])
    assert nearest(flat) == [(1, 0)]


def test_a_part_is_spread_over_the_data_and_workers_change_nothing(folder: Path) -> None:
    assert [Thumbnails(open_data("shapes?limit=100"), 4).at(index) for index in range(4)] == [0, 25, 50, 75]
    dataset = open_data(str(folder), captions="optional")
    alone, helped = look(dataset, 5), look(dataset, 5, workers=2)
    assert len(alone.looks) == 5 and torch.equal(alone.thumbnails, helped.thumbnails)
    assert (alone.captions, alone.sizes, alone.broken) == (helped.captions, helped.sizes, helped.broken)


def test_a_part_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "shapes", "--limit", "7", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"]["looked_at"] == 7 and "records" not in report["data"]
    assert "7 looked at, the first of records without end: all numbers are of these" in report["warnings"][0]
    capsys.readouterr()
    assert main(["data", "check", "shapes", "--limit", "0", "--workers", "-1", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "--limit is 0: choose 1 or more" in error and "--workers is -1" in error and not (tmp_path / "x").exists()
