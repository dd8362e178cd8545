"""Training models that read pictures by an encoder, and what the commands do with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.sample.commands import printable
from unitok.sample.pipeline import caption
from unitok.train.log import read_log

SMALL: dict[str, Any] = {
    "trunk": {"width": 32, "depth": 2, "heads": 2},
    "text_vocabulary": 300,
    "text_length": 24,
    "optim": {"lr": 2e-3, "warmup_steps": 2},
    "run": {"steps": 2, "batch_size": 8, "log_every": 1, "eval_pictures": 4, "device": "cpu", "precision": "fp32"},
}
SOURCES = [
    {"data": "shapes", "tasks": {"image_to_text": 1, "question": 1}},
    {"data": "shapes?task=edit", "tasks": {"edit": 1}},
]


def trained(out: Path, tokenizer: Path | None, *words: str, **changed: Any) -> int:
    values = {**SMALL, "data": "shapes", **changed, "out": str(out)}
    if tokenizer is not None:
        values["image_tokenizer"] = str(tokenizer)
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(values))
    return main(["train", "generator", "--config", str(config), *words])


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("reading") / "out"
    reader = {"encoder": "latents", "connector": "mlp"}
    values = {"data": SOURCES, "val_data": "shapes@val?limit=2", "reader": reader, "objective": "maskgit"}
    assert trained(out, tiny_tokenizer_folder, **values) == 0
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert trained(out, tiny_tokenizer_folder, run={**SMALL["run"], "steps": 1}) == 0
    return out


def test_the_commands_read_by_the_encoder(
    reading: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions, answers and edits, and the scores of a run; a picture that is read is never turned into codes."""
    log = read_log(reading / "log.jsonl")
    last = [one for one in log if one["kind"] == "val"][-1]
    assert {"loss/image_to_text", "loss/question", "exact/image_to_text", "exact/question"} <= last.keys()
    model = UniTok.from_pretrained(reading)
    assert model.reader is not None and model.config.reader is not None and model.config.reader.encoder == "latents"
    picture = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    save_png(tmp_path / "a.png", picture)

    def never(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("codes of a picture that is read")

    monkeypatch.setattr("tokenizers_vq.base.ImageTokenizer.encode", lambda self, images: never(images))
    wanted = caption(model, picture[None])[0]
    capsys.readouterr()
    assert main(["caption", str(tmp_path / "a.png"), "--model", str(reading)]) == 0
    assert capsys.readouterr().out.strip("\n").endswith(printable(" ".join(wanted.split())))
    assert main(["ask", str(tmp_path / "a.png"), "what colour", "--model", str(reading)]) == 0
    out = ["--out", str(tmp_path / "edited"), "--n", "1", "--steps", "1", "--guidance", "1"]
    assert main(["edit", str(tmp_path / "a.png"), "no circle", "--model", str(reading), *out]) == 0
    assert (tmp_path / "edited").is_dir()


def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    """To the bit; no task draws, so no codes are made."""
    out = tmp_path / "out"
    rest: dict[str, Any] = {"reader": {"encoder": "embedded", "connector": "qformer", "queries": 3, "depth": 1}}
    rest["tasks"] = {"text_to_image": {"share": 0.0}, "question": {"share": 0.5}, "text_only": {"share": 0.0}}
    rest["run"] = {**SMALL["run"], "steps": 4, "save_every": 2}
    assert trained(out, tiny_tokenizer_folder, **rest) == 0
    whole, log = UniTok.from_pretrained(out).fingerprint(), read_log(out / "log.jsonl")
    checkpoints = out / "checkpoints"
    frozen = load_file(checkpoints / "step-00000002" / "model.safetensors").keys()
    assert not any("encoder" in name for name in frozen) and any("connector" in name for name in frozen)
    shutil.rmtree(checkpoints / "step-00000004")
    (out / "model.safetensors").unlink()
    assert trained(out, tiny_tokenizer_folder, "--resume", **rest) == 0
    assert UniTok.from_pretrained(out).fingerprint() == whole
    ends = [
        [one["loss"] for one in entries if one["kind"] == "train"][-1] for entries in (log, read_log(out / "log.jsonl"))
    ]
    assert ends[0] == ends[1]


def test_codes_without_pictures_are_refused_where_they_would_be_read(
    tmp_path: Path, tiny_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, images = tmp_path / "codes", str(tiny_tokenizer_folder)
    assert main(["encode", "--data", "shapes?limit=8", "--image_tokenizer", images, "--out", str(codes)]) == 0
    capsys.readouterr()
    reader = {"encoder": "embedded", "connector": "perceiver", "queries": 4, "depth": 1}
    assert trained(tmp_path / "no", tiny_tokenizer_folder, data=str(codes), reader=reader) == 2
    said = capsys.readouterr().err
    assert "holds codes without pictures, and --reader.encoder reads pictures: give the pictures themselves" in said
    drawing = {"data": str(codes), "tasks": {"text_to_image": 1}}
    both = [drawing, {"data": "shapes", "tasks": {"image_to_text": 1}}]
    short = {**SMALL["run"], "steps": 2}
    assert trained(tmp_path / "yes", tiny_tokenizer_folder, data=both, reader=reader, run=short) == 0
    assert UniTok.from_pretrained(tmp_path / "yes").picture_length == 64


def test_a_model_gets_a_reader_and_then_an_adapter(
    plain: Path,
    tmp_path: Path,
    save_vision: Callable[[str, Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """LLaVA's two stages: the connector alone, then thin matrices in the trunk beside it."""
    vision = {"encoder": f"hf:{save_vision('siglip', tmp_path / 'siglip')}"}
    tasks = {"text_to_image": {"share": 0.0}, "image_to_text": {"share": 1.0}, "text_only": {"share": 0.0}}
    first = {"trainable": "ports.reader.*", "run": {"steps": 2}}
    second = {"trainable": "ports.reader.connector.*", "lora": {"rank": 2}, "run": {"steps": 2}}
    common: dict[str, Any] = {"init": str(plain), "reader": vision, "tasks": tasks}
    common |= {name: SMALL[name] for name in ("optim", "run")}
    stages = tmp_path / "stages.yaml"
    stages.write_text(
        yaml.safe_dump({**common, "data": "shapes", "stages": [first, second], "out": str(tmp_path / "out")})
    )
    assert main(["train", "generator", "--config", str(stages)]) == 0
    before, one = load_file(plain / "model.safetensors"), load_file(tmp_path / "out" / "stage1" / "model.safetensors")
    assert all(torch.equal(one[name], tensor) for name, tensor in before.items())
    state = load_file(tmp_path / "siglip" / "model.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    places = [key for key in one if key.startswith("ports.reader.encoder.") and key.endswith(name)]
    assert torch.equal(one[places[0]], state[f"vision_model.{name}"])
    tuned, stage = (
        UniTok.from_pretrained(tmp_path / "out" / "stage2"),
        UniTok.from_pretrained(tmp_path / "out" / "stage1"),
    )
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, stage.state_dict()[name])}
    assert any(name.startswith("trunk.") for name in moved) and "ports.reader.connector.enter.weight" in moved
    assert all(name.startswith(("trunk.", "ports.reader.connector.")) for name in moved)
    assert "reader" in json.loads((tmp_path / "out" / "stage2" / "config.json").read_text())["model"]

    def refused(message: str, **changed: Any) -> None:
        capsys.readouterr()
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump({**common, "data": "shapes", "out": str(tmp_path / "bad"), **changed}))
        assert main(["train", "generator", "--config", str(path)]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "bad").exists()

    refused("brings weights that an adapter does not hold: train the connector first", lora={"rank": 2})
    refused("has a reader already, which is kept: leave it out", init=str(tmp_path / "out" / "stage1"))
    refused("ports.reader.connector.enter.bias is new to the model in --init", trainable="trunk.*")
    refused("reader.encoder is 'vit': choose latents, embedded, or hf:", reader={"encoder": "vit"})
    refused("has no config.json and no preprocessor_config.json", reader={"encoder": f"hf:{tmp_path}"})


def test_a_fresh_model_trains_its_encoder_where_it_is_named(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    short = {**SMALL["run"], "steps": 2}
    words = {"reader": {"encoder": "embedded", "connector": "linear"}, "run": short}
    out, start = tmp_path / "out", UniTok.from_pretrained
    assert trained(out, tiny_tokenizer_folder, trainable="*,ports.reader.encoder.tower.blocks.*", **words) == 0
    found = start(out)
    from tokenizers_vq.networks.embedded import load_picture_tower

    given = load_picture_tower().state_dict()
    assert found.reader is not None
    own = {name.removeprefix("tower."): one for name, one in found.reader.encoder.state_dict().items()}
    moved = {name for name, tensor in given.items() if not torch.equal(tensor, own[name])}
    assert moved and all(name.startswith("blocks.") for name in moved)
