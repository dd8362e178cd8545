"""Pictures of other sizes than the tokenizer's: through it and back, encoded, and learned by a generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokenizers_vq import load_tokenizer
from tokenizers_vq.images import save_png
from tokenizers_vq.tiles import Tiles
from unitok.cli.main import main
from unitok.data.codes.shards import CodesDataset
from unitok.eval.metrics.reconstruction import psnr, reconstruct, reconstruct_whole
from unitok.model import UniTok
from unitok.sample.pictures import read_picture


def picture(height: int, width: int) -> torch.Tensor:
    rough = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")
    return (smooth[0] * 255).to(torch.uint8)


def test_pictures_come_back_in_their_own_sizes(
    tmp_path: Path, tiny_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a.png", (45, 70)), ("b.png", (32, 32))):
        save_png(tmp_path / name, picture(*size))
    words = ["reconstruct", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--tokenizer", str(tiny_tokenizer_folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:3] for line in lines] == [["45x70", "216 codes of 64"], ["32x32", "64 codes of 64"]]
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    assert read_picture(tmp_path / "out" / "a.png").shape == (3, 45, 70)
    back = read_picture(tmp_path / "out" / "b.png")
    assert torch.equal(back, reconstruct(tokenizer, picture(32, 32)[None])[0][0])
    assert lines[1][3] == f"PSNR {float(psnr(back[None], picture(32, 32)[None])):.2f} dB"
    tokenizer.tiles = Tiles(whole=0, side=32, overlap=16)
    tiled, codes, decibels = reconstruct_whole(tokenizer, picture(90, 61))
    assert tiled.shape == (3, 90, 61) and codes == 23 * 16 and 0 < decibels < 100


def test_what_reconstruct_refuses(
    tmp_path: Path, tiny_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    for place in ("a.png", "other/a.png"):
        save_png(tmp_path / place, picture(8, 8))
    (tmp_path / "torn.png").write_bytes(b"no picture")
    for words, message in (
        ([], "nothing to reconstruct: give picture files"),
        (["a.png", "gone.png"], "gone.png is not a file"),
        (["a.png", "other/a.png"], "several pictures would be written as 'a.png': rename them"),
        (["torn.png"], "torn.png cannot be read as a picture"),
    ):
        paths = [str(tmp_path / word) for word in words]
        out = tmp_path / "out"
        assert main(["reconstruct", *paths, "--tokenizer", str(tiny_tokenizer_folder), "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("objective", ["next_token", "next_scale"])
def test_a_generator_of_another_size(
    tmp_path: Path,
    objective: str,
    tiny_tokenizer_folder: Path,
    scaled_tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = scaled_tokenizer_folder if objective == "next_scale" else tiny_tokenizer_folder
    tokenizer, data, size = ["--image_tokenizer", str(folder)], "shapes@val?limit=8", ["--image_size", "48"]
    assert main(["encode", "--data", data, *tokenizer, "--out", str(tmp_path / "codes"), *size]) == 0
    codes = CodesDataset(tmp_path / "codes")
    assert codes.image_size == (48, 48) and codes.layout == load_tokenizer(folder).layout_for(48, 48)
    words = ["train", "generator", "--data", str(tmp_path / "codes"), *tokenizer, "--preset", "debug"]
    words += ["--objective", objective, "--run.steps", "1", "--run.batch_size", "4", "--text_vocabulary", "300"]
    words += ["--run.device", "cpu", "--out", str(tmp_path / "model")]
    capsys.readouterr()
    assert main(words) == 2
    assert (
        "holds codes of 48x48 pictures, but 32x32 are wanted: encode the data at that size" in capsys.readouterr().err
    )
    assert main([*words, *size]) == 0
    model = UniTok.from_pretrained(tmp_path / "model")
    assert model.image_tokenizer.image_size == (48, 48)
    drawing = [
        "sample",
        "a red circle",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "drawn"),
        "--n",
        "1",
    ]
    assert main(drawing) == 0
    (drawn,) = (tmp_path / "drawn" / "pictures").glob("*.png")
    assert read_picture(drawn).shape == (3, 48, 48)
    capsys.readouterr()
    again = ["train", "generator", "--data", data, "--init", str(tmp_path / "model"), *size]
    assert main([*again, "--out", str(tmp_path / "other")]) == 2
    assert "--image_size is that of the model in --init: leave it out" in capsys.readouterr().err
