"""`unitok compare-tokenizers` on tiny tokenizers, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.eval.compare_tokenizers import short_names
from unitok.eval.tokenizer_commands import compare_tokenizers, eval_tokenizer
from unitok.model import UniTok


@pytest.fixture
def folders(make_model: Callable[..., UniTok], tmp_path: Path) -> list[Path]:
    """A raster tokenizer inside a model's folder, and a multi-scale tokenizer."""
    make_model().save_pretrained(tmp_path / "raster")
    make_model("next_scale").image_tokenizer.save_pretrained(tmp_path / "scaled")
    return [tmp_path / "raster", tmp_path / "scaled"]


def test_side_by_side(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare-tokenizers", *map(str, folders), "--data", "shapes@val", "--out", str(tmp_path / "report")]
    assert main([*words, "--limit", "6", "--lpips", "none"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "raster" in table and "scaled" in table and "pictures/s" in table
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    values = found["tokenizers"]
    assert values["codes"] == {"raster": 64, "scaled": 1 + 4 + 16 + 64}
    assert values["bits"] == {"raster": 64 * 6, "scaled": 85 * 6}, "64 codes are 6 bits"
    assert all(speed > 0 for kind in ("encode", "decode") for speed in values[kind].values())
    assert "not Inception" in found["provenance"]["tokenizers.rfid"]["label"]
    assert found["provenance"]["tokenizers.encode"]["batch"] == 6
    for name in ("reconstructions.png", "codebook.png"):
        assert Image.open(tmp_path / "report" / name).width > 300
    alone = tmp_path / "alone"
    eval_tokenizer(folders[1], "shapes@val", alone, limit=6, lpips="none")
    single = json.loads((alone / "report.json").read_text())["tokenizer"]
    for key in ("psnr", "ssim", "codebook_use", "perplexity"):
        assert values[key]["scaled"] == pytest.approx(single[key]), "the same as measured alone"
    assert {"reconstructions.png", "known.png", "codebook.png"} <= {path.name for path in alone.iterdir()}


def test_what_cannot_be_compared(folders: list[Path], tmp_path: Path, without_digests: Callable[[Path], None]) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 tokenizer given: name two folders or more"):
        compare_tokenizers(folders[:1], "shapes@val", out)
    with pytest.raises(UserError, match="raster is named twice"):
        compare_tokenizers([folders[0], folders[0]], "shapes@val", out)
    with pytest.raises(UserError, match="tokenizer raster cannot take --image_size 33: "):
        compare_tokenizers(folders, "shapes@val", out, image_size=33)
    without_digests(folders[0])
    file = folders[0] / "image_tokenizer" / "config.json"
    values = {**json.loads(file.read_text()), "image_size": 64}
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"different image sizes \(raster 64x64, scaled 32x32\): give --image_size"):
        compare_tokenizers(folders, "shapes@val", out)
    assert not out.exists()


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert short_names([Path("a/tokenizer"), Path("b/tokenizer")]) == ["a/tokenizer", "b/tokenizer"]
