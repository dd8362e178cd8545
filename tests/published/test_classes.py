"""Names of classes: the labels of folders become classes of a model whose captions are classes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.conditions import Classes
from unitok.config import ModelConfig
from unitok.eval.sources import model_pictures
from unitok.model import UniTok
from unitok.sample.pipeline import draw_codes
from unitok.sampling import SampleSettings

from .tiny import CLASSES, llamagen_weights, tokenizer

GREEDY = SampleSettings(temperature=0.0, guidance=1.0)
RUN = ["--run.batch_size", "4", "--run.workers", "0", "--run.precision", "fp32", "--optim.warmup_steps", "1"]
RUN += ["--tasks.image_to_text.share", "0", "--tasks.text_only.share", "0", "--run.device", "cpu"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ten classes without names."""
    place = tmp_path_factory.mktemp("start")
    torch.save(llamagen_weights(), place / "x.pt")
    tokenizer().save_pretrained(place / "images")
    words = ["--image_tokenizer", str(place / "images"), "--settings", '{"n_head": 4}', "--out", str(place / "m")]
    assert main(["import", "llamagen", str(place / "x.pt"), *words]) == 0
    return place / "m"


def folders(place: Path, *labels: str) -> str:
    """Three pictures in a folder of each name."""
    random = torch.Generator().manual_seed(0)
    for label in labels:
        (place / label).mkdir(parents=True)
        for number in range(3):
            pixels = torch.randint(0, 256, (16, 16, 3), generator=random, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(place / label / f"{number}.png")
    return f"{place}?caption=label"


def train(init: Path, data: str, out: Path, *words: str, steps: int = 2) -> int:
    argv = ["train", "generator", "--init", str(init), "--data", data, "--out", str(out)]
    return main([*argv, "--run.steps", str(steps), *RUN, *words])


def test_a_caption_is_a_number_or_a_name() -> None:
    classes = Classes(10).with_names_of(["wren", "cat", "", " dog ", "cat"])
    assert classes.names == ("cat", "dog", "wren")
    assert [classes(one) for one in ("dog ", "1", "9", "")] == [[1], [1], [9], []]
    more = classes.with_names_of(["ant", "cat", "bee"])
    assert more.names == ("cat", "dog", "wren", "ant", "bee")
    assert classes.with_names_of(["7", "09", "cat"]) == classes and Classes(10).with_names_of(["3"]) == Classes(10)
    for one, captions, message in (
        (Classes(10), ["3", "10"], "'10' is no class of this model: give a number from 0 to 9$"),
        (
            classes,
            ["1", "ant"],
            "'1' and 'ant' are a number and a name of a class: give numbers alone, or names alone$",
        ),
        (
            Classes(3),
            (f"a{number}" for number in itertools.count()),
            "^4 captions of the data, such as 'a0', are names",
        ),
        (classes, map(str.lower, "ABCDEFGH"), "^8 captions of the data, such as 'a', .* has 7 classes without a name"),
    ):
        with pytest.raises(UserError, match=message):
            one.with_names_of(captions)
    with pytest.raises(
        UserError, match=r"'fox' is no class .*: give one of cat, dog, wren and 2 more, or a number from"
    ):
        more("fox")


def test_folders_become_classes_that_stay(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders(tmp_path / "pictures", "tabby cat", "dog", "wren")
    out, again = tmp_path / "out", tmp_path / "again"
    assert train(start, data, out, "--val_data", data, "--run.save_every", "1") == 0
    assert (
        "classes: the data name 3 of the model's 10: dog is 0, tabby cat is 1, wren is 2\n" in capsys.readouterr().err
    )
    model, before = UniTok.from_pretrained(out), UniTok.from_pretrained(start).trunk.state_dict()
    assert all(not torch.equal(before[name], one) for name, one in model.trunk.state_dict().items())
    assert model.config.classes == ("dog", "tabby cat", "wren")
    assert json.loads((out / "config.json").read_text())["classes"] == ["dog", "tabby cat", "wren"]
    assert len(next(model_pictures(model, ["wren", "1"], GREEDY))) == 2  # what measuring asks for
    drawn = draw_codes(model, ["tabby cat", "1", "wren"], GREEDY, [0, 0, 0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

    shutil.copytree(out, again)
    shutil.rmtree(max((again / "checkpoints").iterdir()))
    assert train(start, data, again, "--val_data", data, "--run.save_every", "1", "--resume") == 0
    assert UniTok.from_pretrained(again).fingerprint() == model.fingerprint()
    folders(tmp_path / "pictures", "ant")
    assert train(start, data, again, "--val_data", data, "--run.save_every", "1", "--resume", steps=3) == 2
    assert "holds other pictures or captions than those" in capsys.readouterr().err

    # Names stay where they are when the model is trained on, as an adapter too; new ones come behind.
    codes = tmp_path / "codes"
    assert main(["encode", "--data", data, "--image_tokenizer", str(out / "image_tokenizer"), "--out", str(codes)]) == 0
    assert train(out, str(codes), tmp_path / "more", "--lora.rank", "2", steps=1) == 0
    tuned = UniTok.from_pretrained(tmp_path / "more")
    assert tuned.config.classes == ("dog", "tabby cat", "wren", "ant")
    assert main(["merge", str(tmp_path / "more"), "--out", str(tmp_path / "whole")]) == 0

    whole = str(tmp_path / "whole")
    assert main(["sample", "--model", whole, "ant", "3", "--n", "1", "--out", str(tmp_path / "drawn")]) == 0
    lines = [json.loads(one) for one in (tmp_path / "drawn/pictures/metadata.jsonl").read_text().splitlines()]
    assert [one["caption"] for one in lines] == ["ant", "3"]
    capsys.readouterr()
    assert main(["sample", "--model", whole, "fox", "--out", str(tmp_path / "fox")]) == 2
    assert (
        "'fox' is no class of this model: give one of dog, tabby cat, wren and 1 more, or a number from 0 to 9\n"
        in (capsys.readouterr().err)
    )


def test_labels_that_cannot_be_classes_are_told(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = folders(tmp_path / "numbers", "3", "07")
    assert train(start, numbers, tmp_path / "kept", steps=1) == 0
    assert "the data name" not in capsys.readouterr().err
    assert UniTok.from_pretrained(tmp_path / "kept").config.classes == ()

    names = folders(tmp_path / "names", "cat", "dog")
    for data, val, message in (
        (folders(tmp_path / "beyond", "1", "10"), numbers, "'10' is no class of this model: give a number from 0 to 9"),
        (
            names,
            folders(tmp_path / "other", "fox"),
            "'fox' is no class of this model: give one of cat, dog, or a number",
        ),
    ):
        assert train(start, data, tmp_path / "none", "--val_data", val) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "none").exists() or not [*(tmp_path / "none").glob("c*")]


def test_a_folder_with_odd_names_is_refused(start: Path) -> None:
    values = UniTok.from_pretrained(start).config.to_json()
    assert "classes" not in values
    for names in (["a", "a"], ["1"], [" a"], [""], [f"c{number}" for number in range(CLASSES + 1)]):
        with pytest.raises(UserError, match="expected names that are no numbers, at most one for each"):
            ModelConfig.from_json({**values, "classes": names}, "config.json")
