"""Models go to the hub with their card, and come back to the bit. The hub here is a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects

from tokenizers_vq import load_tokenizer
from tokenizers_vq.base import find_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.eval.report import Number, Report, Section
from unitok.model import UniTok

NAME = "me/tiny-painter"


class Hub:
    """What the hub's client does, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[tuple[str, bool]] = []
        self.messages: list[str] = []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.made.append((name, private))
        return f"https://hub/{name}"

    def create_commit(self, name: str, operations: Iterable[Any], *, commit_message: str) -> None:
        self.messages.append(commit_message)
        for one in operations:
            place = self.folder / name / one.path_in_repo
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(one.path_or_fileobj, place)

    def snapshot_download(self, name: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        if not (self.folder / name).is_dir():
            raise OSError(f"no repository {name}")
        fetched = self.folder / "fetched" / name
        names = [
            str(file.relative_to(self.folder / name)) for file in (self.folder / name).rglob("*") if file.is_file()
        ]
        for file in filter_repo_objects(names, allow_patterns=allow_patterns):
            (fetched / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name / file, fetched / file)
        return str(fetched)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    return made


@pytest.fixture
def model(make_model: Callable[..., UniTok], tmp_path: Path) -> UniTok:
    """A model in the folder of its training."""
    made = make_model()
    made.config.tasks = ("text_to_image", "image_to_text")
    folder = tmp_path / "home/runs/painter"
    made.save_pretrained(folder)
    settings = {
        "data": [{"data": "/home/me/cats@train"}, {"data": "shapes"}],
        "pictures": 1234,
        "data_sha256": "ab" * 32,
    }
    (folder / "run.json").write_text(json.dumps({"settings": settings, "steps": 50, "command": ["/home/me/unitok"]}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/state.safetensors").write_bytes(b"not for others")
    for step in ("00000010", "00000050"):
        save_png(folder / f"samples/step-{step}.png", torch.full((3, 8, 8), int(step), dtype=torch.uint8))
    return made


def report(folder: Path, fingerprint: str, fid: float, seed: int = 0) -> None:
    facts: dict[str, Any] = {"features": "embedded", "pictures": 64, "data": "/home/me/cats@val", "seed": seed}
    numbers = {
        "fid": Number("FID (embedded)", fid, "", "lower", {**facts, "model_sha256": fingerprint}),
        "right": Number("right", {"one": 0.5, "two": 0.25}, "%", "higher", {**facts, "model_sha256": fingerprint}),
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(Report("a", [Section("drawing", "Drawing", numbers)]).to_json()))


def push(folder: Path, *words: str) -> int:
    return main(["push", str(folder), NAME, "--licence", "cc-by-4.0", *words])


def test_a_model_comes_back_to_the_bit(
    hub: Hub, model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "home/runs/painter"
    report(folder / "eval", model.fingerprint(), 12.345, seed=1)
    report(tmp_path / "elsewhere", model.fingerprint(), 2.5)
    report(folder / "older", "0" * 64, 99.0)
    assert push(folder, "--private", "true", "--reports", f'["{tmp_path / "elsewhere"}"]') == 0
    told = capsys.readouterr()
    assert told.out == f"https://hub/{NAME}\n" and f"left out: {folder / 'older'}" in told.err
    assert hub.made == [(NAME, True)] and len(hub.messages) == 1

    sent = hub.folder / NAME
    names = {str(file.relative_to(sent)) for file in sent.rglob("*") if file.is_file()}
    own = {"config.json", "model.safetensors", "image_tokenizer/config.json", "image_tokenizer/model.safetensors"}
    assert names == own | {"text_tokenizer/tokenizer.json", "README.md", "sample.png"}
    assert (sent / "sample.png").read_bytes() == (folder / "samples/step-00000050.png").read_bytes()

    text = (sent / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "cc-by-4.0" and head["pipeline_tag"] == "text-to-image"
    assert "| FID (embedded) | 12.35 | 2 |" in text and "| FID (embedded) | 2.5 | 1 |" in text
    assert "| right: two | 25.0 % | 2 |" in text and "| 99 |" not in text
    assert "\n2. features embedded, pictures 64, data cats@val, seed 1, versions python" in text
    assert "\n1. features embedded, pictures 64, data cats@val, seed 0, versions python" in text
    assert "Trained on `cats@train`, `shapes`, 1,234 pictures (SHA-256 `abab" in text and "for 50 steps" in text
    assert f"unitok sample --model hf:{NAME}" in text and "![Pictures](sample.png)" in text
    assert model.fingerprint() in text and str(tmp_path) not in text and "/home/me" not in text

    assert UniTok.from_pretrained(f"hf:{NAME}").fingerprint() == model.fingerprint()
    images = model.image_tokenizer.fingerprint()
    assert find_tokenizer(f"hf:{NAME}").fingerprint() == images
    assert load_tokenizer(Path(f"hf:{NAME}/image_tokenizer")).fingerprint() == images
    fetched = {file.name for file in (hub.folder / "fetched").rglob("*") if file.is_file()}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_tokenizer_comes_back_to_the_bit(hub: Hub, model: UniTok, tmp_path: Path) -> None:
    model.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_png(tmp_path / "two.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    words = ["--picture", str(tmp_path / "two.png"), "--data", "Ten drawings of mine.", "--about", "Reads drawings."]
    assert push(tmp_path / "tokenizer", *words) == 0
    assert load_tokenizer(f"hf:{NAME}").fingerprint() == model.image_tokenizer.fingerprint()
    text = (hub.folder / NAME / "README.md").read_text()
    assert "Ten drawings of mine." in text and "Reads drawings." in text and "None are recorded." in text
    assert f"--image_tokenizer hf:{NAME}" in text and (hub.folder / NAME / "sample.png").is_file()
    out = str(tmp_path / "codes")
    words = ["encode", "--data", "shapes?limit=3", "--image_tokenizer", f"hf:{NAME}", "--out", out, "--workers", "0"]
    assert main(words) == 0


def test_a_dry_run_sends_nothing_and_an_edited_card_stays(
    hub: Hub, model: UniTok, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "home/runs/painter"
    for _ in range(2):  # a card that unitok wrote is written anew
        assert push(folder, "--dry_run", "true") == 0
        told = capsys.readouterr()
        assert "model.safetensors" in told.out and "nothing was sent" in told.out and told.err == ""
    assert hub.made == [] and not hub.folder.exists()
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Use", "It is best at cats.\n\n## Use"))
    assert push(folder) == 0
    assert f"{card} was written by hand: it is sent as it is" in capsys.readouterr().err
    assert "It is best at cats." in (hub.folder / NAME / "README.md").read_text()


def test_bad_requests_are_told_in_a_line(
    hub: Hub,
    model: UniTok,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "home/runs/painter"

    def refused(*words: object) -> str:
        assert main(["push", *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and not (folder / "README.md").exists()
        return said

    mit = ("--licence", "mit")
    assert "the name is 'tiny': give owner/name" in refused(folder, "tiny", *mit)
    assert "the name is 'me/a b': give owner/name" in refused(folder, "me/a b", *mit)
    assert "--licence is 'My own': give a licence as the hub names it" in refused(folder, NAME, "--licence", "My own")
    assert "--licence missing" in refused(folder, NAME)
    assert "is no PNG or JPEG file" in refused(folder, NAME, *mit, "--picture", tmp_path / "none.png")
    assert "is on the hub already" in refused("hf:me/other", NAME, *mit)
    assert "no image tokenizer at" in refused(tmp_path / "none", NAME, *mit)
    report(tmp_path / "other", "0" * 64, 1.0)
    assert "measured no" in refused(folder, NAME, *mit, "--reports", f'["{tmp_path / "other"}"]')
    assert "is no report of unitok eval" in refused(folder, NAME, *mit, "--reports", f'["{folder / "run.json"}"]')
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter.safetensors").touch()
    assert "join both with unitok merge" in refused(tmp_path / "adapter", NAME, *mit)

    def closed(*_: Any, **__: Any) -> None:
        raise OSError("401 Client Error: no token\nfor url: https://hub")

    monkeypatch.setattr(hub, "create_repo", closed)
    assert push(folder) == 2
    assert "could not be sent (401 Client Error: no token): check name, network and token" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^hf:me/none could not be fetched \(no repository me/none\): check name"):
        load_tokenizer("hf:me/none")
    with pytest.raises(UserError, match=r"^hf:none names no repository: write hf:owner/name"):
        UniTok.from_pretrained("hf:none")
