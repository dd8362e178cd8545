"""The four commands on tiny models and folders, and what bad input gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.data.shapes.dataset import ShapesDataset
from unitok.eval.commands import eval_clipscore, eval_compare, eval_fid, eval_generator, eval_statistics
from unitok.eval.metrics.clipscore import cosine_scores
from unitok.eval.metrics.frechet import frechet_distance
from unitok.eval.report import Number
from unitok.eval.reports.output import read_items
from unitok.eval.tokenizer_commands import eval_tokenizer
from unitok.model import UniTok
from unitok.sampling import GivenSettings


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    dataset = ShapesDataset(split="val")
    for index in range(12):
        record = dataset[index]
        assert record.image is not None and record.caption is not None
        save_png(folder / f"{index:02}.png", record.image)
        (folder / f"{index:02}.txt").write_text(record.caption)
    return folder


def test_eval_fid(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval_fid(str(pictures), str(pictures), out=tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["fid"]["fid"] == pytest.approx(0, abs=1e-5)
    origin = data["provenance"]["fid.fid"]
    assert "not Inception" in origin["label"] and len(origin["features_sha256"]) == 64
    assert origin["pictures"] == origin["reference pictures"] == 12
    assert "12 pictures with 160-dimensional features" in data["warnings"][0]
    printed = capsys.readouterr()
    assert "not Inception" in " ".join(printed.out.split()) and str(tmp_path / "report.html") in printed.out


def test_eval_clipscore_prefers_right_captions(pictures: Path, tmp_path: Path) -> None:
    eval_clipscore(str(pictures), out=tmp_path / "right")
    files = sorted(pictures.glob("*.png"))
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for number, file in enumerate(files):
        (wrong / file.name).write_bytes(file.read_bytes())
        other = files[(number + 5) % len(files)].with_suffix(".txt")
        (wrong / file.with_suffix(".txt").name).write_text(other.read_text())
    eval_clipscore(str(wrong), out=tmp_path / "report")
    right, mixed = (
        json.loads((tmp_path / name / "report.json").read_text())["pairs"]["clipscore"] for name in ("right", "report")
    )
    assert right > mixed + 10


def test_eval_tokenizer(make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path) -> None:
    make_model().image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    eval_tokenizer(tmp_path / "tokenizer", str(pictures), tmp_path / "report", lpips="none", batch_size=5)
    first = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"psnr", "ssim", "rfid", "codebook_use", "perplexity"} == first["tokenizer"].keys()
    assert 0 < first["tokenizer"]["psnr"] < 40 and 0 < first["tokenizer"]["codebook_use"] <= 1
    origin = first["provenance"]["tokenizer.psnr"]
    assert origin["pictures"] == 12 and len(origin["reference_sha256"]) == 64
    eval_tokenizer(tmp_path / "tokenizer", str(pictures), tmp_path / "again", lpips="none", batch_size=12)
    second = json.loads((tmp_path / "again" / "report.json").read_text())
    assert second["tokenizer"]["psnr"] == pytest.approx(first["tokenizer"]["psnr"], rel=1e-4)
    assert second["tokenizer"]["rfid"] == pytest.approx(first["tokenizer"]["rfid"], rel=1e-2)


def test_one_picture_has_all_numbers_but_those_of_sets(
    make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path
) -> None:
    make_model().image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    eval_tokenizer(tmp_path / "tokenizer", f"{pictures}?limit=1", tmp_path / "report", lpips="none")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"psnr", "ssim", "codebook_use", "perplexity"} == report["tokenizer"].keys()
    assert report["warnings"] == ["rFID is left out: it compares sets, and needs two pictures or more"]


def test_lpips_is_fetched_when_asked_for_alone(
    make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(url: str, *rest: object, **options: object) -> None:
        asked.append(url)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    tokenizer = tmp_path / "tokenizer"
    make_model().image_tokenizer.save_pretrained(tokenizer)
    eval_tokenizer(tokenizer, f"{pictures}?limit=2", tmp_path / "report")
    (warning, *_) = [
        w for w in json.loads((tmp_path / "report" / "report.json").read_text())["warnings"] if "LPIPS" in w
    ]
    assert "LPIPS is left out: its weights alexnet-owt-7be5be79.pth are not in" in warning
    assert "--lpips alex fetches them, and --lpips_weights FILE takes them from elsewhere" in warning
    assert not asked
    with pytest.raises(UserError, match=r"LPIPS needs torchvision's weights alexnet.*no route"):
        eval_tokenizer(tokenizer, f"{pictures}?limit=2", tmp_path / "other", lpips="alex")
    assert len(asked) == 1


def test_captions_longer_than_the_model_reads_are_cut_and_counted(
    make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    for name in ("03.txt", "05.txt"):
        (data / name).write_text("word " * 99)
    eval_generator(
        tmp_path / "model", str(data), tmp_path / "report", sampling=GivenSettings(guidance=1.0), captioning=False
    )
    warnings = json.loads((tmp_path / "report" / "report.json").read_text())["warnings"]
    (warning,) = [text for text in warnings if "tokens" in text]
    assert warning.startswith(
        "captions longer than the 48 tokens that the model reads (text_length): 2; it draws their"
    )


def test_numbers_that_are_none_are_refused() -> None:
    for value in (float("nan"), float("inf"), {"a": 1.0, "b": float("nan")}):
        with pytest.raises(UserError, match=r"^PSNR came out as .*: the weights of the model or of the network that"):
            Number("PSNR", value)
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [float("nan"), 0, 0]])
    for images, texts in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match=r"1 of 2 .*not finite"):
            cosine_scores(images, texts)


def test_eval_tokenizer_with_scales(make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path) -> None:
    """Each map's own use, and pictures after each map."""
    make_model("next_scale").image_tokenizer.save_pretrained(tmp_path / "scaled")
    eval_tokenizer(tmp_path / "scaled", str(pictures), out=tmp_path / "report")
    use = json.loads((tmp_path / "report" / "report.json").read_text())["tokenizer"]["scale_use"]
    assert list(use) == ["1x1", "2x2", "4x4", "8x8"]
    assert all(0 < share <= 1 for share in use.values()) and use["1x1"] >= 1 / 12, "12 codes are no more than 12"
    assert "After 1, 5, 21, 85 codes, and the original" in (tmp_path / "report" / "report.html").read_text()


def test_eval_tokenizer_of_queries(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_tokenizer(replace(TOKENIZER_PRESETS["shapes_query"](), tokens=6, width=32)).save_pretrained(
        tmp_path / "query"
    )
    eval_tokenizer(tmp_path / "query", str(pictures), out=tmp_path / "report")
    assert "After 1, 2, 4, 6 codes, and the original" in (tmp_path / "report" / "report.html").read_text()


def test_eval_generator_on_shapes(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    eval_generator(tmp_path / "model", "shapes@val", tmp_path / "report", limit=6, sampling=GivenSettings(guidance=1.0))
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"fid", "kid", "clipscore", "attribute_accuracy", "scene_accuracy"} <= data["generation"].keys()
    assert {"exact", "true", "bleu", "cider", "clipscore"} <= data["captioning"].keys()
    assert data["generation"]["scene_accuracy"] < 0.5, "the model was never trained"
    assert data["generation"]["clipscore_real"] > data["generation"]["clipscore"]
    assert data["provenance"]["generation.fid"]["seed"] == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<img") == 6 * 2 + 6


def test_eval_generator_against_saved_statistics_with_values_per_picture(
    make_model: Callable[..., UniTok], tmp_path: Path
) -> None:
    """The model draws, FID compares with a file; values of single pictures stand beside the report."""
    make_model().save_pretrained(tmp_path / "model")
    eval_statistics("shapes@train?limit=60", tmp_path / "train.npz")
    out = tmp_path / "report"
    reference = tmp_path / "train.npz"
    eval_generator(
        tmp_path / "model", "shapes@val", out, limit=8, sampling=GivenSettings(guidance=1.0), reference=reference
    )
    data = json.loads((out / "report.json").read_text())
    origin = data["provenance"]["generation.fid"]
    assert origin["reference pictures"] == 60 and origin["pictures"] == 8 and origin["seed"] == 0
    assert origin["model_sha256"] and origin["captions_sha256"] and "kid" not in data["generation"]
    assert {"clipscore", "r_precision", "cmmd", "geneval"} <= data["generation"].keys()
    assert data["provenance"]["generation.r_precision"]["R"] <= 8
    lines, captions = read_items(out, "generation"), read_items(out, "captioning")
    assert len(lines) == len(captions) == 8 and lines[3]["seed"] == 3
    assert [line["item"] for line in lines] == [line["item"] for line in captions], "so that they can be joined"
    for key in ("clipscore", "clipscore_real", "r_precision"):
        mean = sum(float(line[key] or 0) for line in lines) / 8
        assert max(0, mean) == pytest.approx(data["generation"][key], abs=1e-4)
    assert sum(float(line["cider"] or 0) for line in captions) / 8 == pytest.approx(data["captioning"]["cider"])
    with pytest.raises(UserError, match="measure again"):
        read_items(tmp_path, "generation")
    with pytest.raises(UserError, match=r"--reference .* is not an \.npz file"):
        eval_generator(tmp_path / "model", "shapes@val", tmp_path / "other", reference=tmp_path)
    with pytest.raises(UserError, match=r"knows mean and covariance, .*: give the pictures, or leave --save_features"):
        eval_generator(tmp_path / "model", "shapes@val", tmp_path / "o", reference=reference, save_features=True)


def test_saved_features_are_what_fid_is_made_of(
    make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the reference, not of the data, where there is one; and `eval compare` then has an interval."""
    make_model().save_pretrained(tmp_path / "model")
    images = torch.stack([decode(file.read_bytes()) for file in sorted(pictures.glob("*.png"))])
    np.savez(tmp_path / "pictures.npz", images.permute(0, 2, 3, 1).numpy())
    reference = tmp_path / "pictures.npz"
    eval_generator(
        tmp_path / "model", "shapes@train", tmp_path / "drawn", limit=5, captioning=False, reference=reference,
        save_features=True,
    )  # fmt: skip
    eval_fid("shapes@train?limit=9", str(reference), tmp_path / "a", save_features=True)
    eval_fid("shapes@train?limit=9&seed=1", str(reference), tmp_path / "b", save_features=True)
    for out, section, count in (("drawn", "generation", 5), ("a", "fid", 9), ("b", "fid", 9)):
        features = load_file(tmp_path / out / "features.safetensors")
        drawn, real = features[f"{section}.drawn"], features[f"{section}.real"]
        assert drawn.shape == (count, 160) and real.shape == (12, 160)
        reported = json.loads((tmp_path / out / "report.json").read_text())[section]["fid"]
        assert frechet_distance(drawn, real) == pytest.approx(reported, rel=1e-6)
    eval_compare([tmp_path / "a", tmp_path / "b"], resamples=100, out=tmp_path / "compare")
    found = json.loads((tmp_path / "compare" / "report.json").read_text())["differences_1"]["fid.fid"]
    assert found["from"] < found["to"]
    eval_statistics(str(pictures), tmp_path / "statistics.npz")
    for argv, message in (
        ([str(pictures), str(tmp_path / "statistics.npz"), "--out", str(tmp_path / "c")], "knows mean and covariance"),
        ([str(pictures), str(pictures)], "--save_features needs a folder to write to: give --out FOLDER"),
    ):
        assert main(["eval", "fid", *argv, "--save_features", "true"]) == 2
        assert message in capsys.readouterr().err


def test_eval_generator_with_a_gallery(make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path) -> None:
    make_model("masked_token").save_pretrained(tmp_path / "model")
    eval_generator(
        tmp_path / "model",
        str(pictures),
        tmp_path / "report",
        sampling=GivenSettings(steps=2),
        captioning=False,
        gallery=str(pictures),
        label="caption",
    )
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert data["generation"]["retrieval_real"] == {"top1": 1.0, "top5": 1.0}, "the pictures are in the gallery"
    assert data["generation"]["retrieval_drawn"]["top1"] < 1
    assert data["generation"]["naming_real"]["top1"] > 0.5 > data["generation"]["naming_drawn"]["top1"]
    assert "captioning" not in data
    assert data["provenance"]["generation.fid"]["data"] == str(pictures), "a label makes no other data"
    with pytest.raises(UserError, match="shapes takes no 'label', only size, seed, limit"):
        eval_generator(tmp_path / "model", "shapes@val", tmp_path / "other", gallery=str(pictures), label="caption")


def test_bad_input(make_model: Callable[..., UniTok], pictures: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="empty"):
        eval_fid(str(empty), str(pictures))
    with pytest.raises(UserError, match=r"--batch_size is 0.*\n.*--limit is 0"):
        eval_fid(str(pictures), str(pictures), batch_size=0, limit=0)
    with pytest.raises(UserError, match="--guidance is -1"):
        eval_generator(tmp_path, "shapes@val", sampling=GivenSettings(guidance=-1))
    with pytest.raises(UserError, match="--gallery and --label go together"):
        eval_generator(tmp_path, "shapes@val", gallery="shapes@val")
    with pytest.raises(UserError, match="no image tokenizer at"):
        eval_tokenizer(tmp_path / "none", str(pictures))
    with pytest.raises(UserError, match=r"has no config\.json"):
        eval_generator(empty, "shapes@val")
    tokenizer = tmp_path / "tokenizer"
    make_model().image_tokenizer.save_pretrained(tokenizer)
    with pytest.raises(UserError, match=r"--lpips_weights .* is not a file"):
        eval_tokenizer(tokenizer, str(pictures), tmp_path / "out", lpips_weights=tmp_path / "none.pth")
    assert not (tmp_path / "out").exists(), "nothing is half-written"


def test_bad_input_ends_with_one_line_and_exit_code_2(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    save_png(mixed / "0.png", torch.zeros(3, 32, 32, dtype=torch.uint8))
    save_png(mixed / "1.png", torch.zeros(3, 24, 32, dtype=torch.uint8))
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    for argv, message in {
        (str(tmp_path / "empty"), str(pictures)): "no pictures",
        (f"{pictures}?limit=1", str(pictures)): "1 picture(s) are too few",
        (str(pictures), str(tmp_path / "inception.npz")): "made with another network",
        (str(mixed), str(pictures)): "has pictures of 32x32 and of 32x24, and a set is measured at one size",
        (str(pictures), str(mixed)): "scale and crop them first, as --image_size N does",
        (str(pictures), str(tmp_path / "none.npz")): "there is no file",
        (str(pictures), str(pictures), "--features", "inception"): "pass --feature_weights FILE",
        (str(pictures), str(pictures), "--features", f"dinov2:{tmp_path}"): "--features dinov2:FOLDER",
    }.items():
        assert main(["eval", "fid", *argv]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert lines[-1].startswith("error: ") and message in lines[-1]
        assert sum("error" in line for line in lines) == 1


def test_broken_pictures_stop_the_measurement_or_are_left_out(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for file in pictures.glob("*.png"):
        Image.open(file).resize((40, 24 if file.name < "05" else 40)).save(tmp_path / file.name)
    with pytest.raises(UserError, match=r"1 of 13 pictures cannot be used.*broken\.png"):
        eval_fid(str(tmp_path), str(pictures))
    (tmp_path / "broken.png").unlink()
    eval_fid(str(tmp_path), str(pictures), image_size=32)  # pictures of two sizes


def test_commands_are_free_of_torch_until_they_run() -> None:
    code = "import sys, unitok.eval.commands; print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
