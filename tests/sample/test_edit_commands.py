"""`unitok inpaint` and `unitok extend` as a user calls them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unitok.cli.main import main
from unitok.data.decoding import decode
from unitok.data.open import open_data
from unitok.model import UniTok

INPAINT = "inpaint PICTURE --model MODEL --caption circle --steps 3 --out OUT"
EXTEND = "extend PICTURE --model MODEL --caption circle --steps 3 --out OUT"


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model("masked_token").save_pretrained(folder)
    return folder


@pytest.fixture
def places(model: Path, tmp_path: Path) -> dict[str, str]:
    """A model, a picture of another size than the model's, masks of it, and where results go."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[20:40, 40:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask * 0).save(tmp_path / "black.png")
    Image.fromarray(mask[:, 1:]).save(tmp_path / "narrow.png")
    (tmp_path / "text.txt").write_text("x")
    names = {"PICTURE": "picture.png", "MASK": "mask.png", "BLACK": "black.png", "NARROW": "narrow.png"}
    names |= {"TEXT": "text.txt", "OUT": "out"}
    return {"MODEL": str(model), **{name: str(tmp_path / file) for name, file in names.items()}}


def words(line: str, places: dict[str, str]) -> list[str]:
    return [places.get(word, word) for word in line.split(" ")]


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "pictures" / "metadata.jsonl").read_text().splitlines()]


def test_a_box_is_drawn_anew(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = Path(places["OUT"]), Path(places["PICTURE"])
    line = words(f"{INPAINT} --n 2 --box 40,20,60,40", places)
    assert main(line) == 0
    assert capsys.readouterr().out.strip() == str(out / "sheet.png")
    found = records(out)
    assert [record["seed"] for record in found] == [0, 1] and found[0]["settings"]["steps"] == 3
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert found[0]["made_from"] == {"picture": str(picture), "sha256": digest, "box": [40, 20, 60, 40]}
    given = decode(picture.read_bytes(), (32, 32))  # half as large, and 8 of 48 columns cut off on each side
    drawn = [decode((out / "pictures" / record["file_name"]).read_bytes()) for record in found]
    for one in drawn:
        changed = (one != given).any(0).nonzero()
        assert changed.min(0).values.tolist() >= [10, 12] and changed.max(0).values.tolist() <= [19, 21]
        assert len(changed) > 90
    assert not drawn[0].equal(drawn[1])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width == 4 * (4 * 32 + 4), "the picture, what is known of it, and two that are drawn"
    assert len(open_data(str(out / "pictures"))) == 2
    before = {path: path.stat().st_mtime_ns for path in (out / "pictures").glob("*.png")}
    assert main([*line, "--n", "3"]) == 0
    assert len(records(out)) == 3 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert main(words(f"{INPAINT} --box 40,20,60,41", places)) == 2
    assert "made from another picture or mask: choose another folder" in capsys.readouterr().err


def test_a_mask_does_what_its_box_does(places: dict[str, str], tmp_path: Path) -> None:
    assert main(words(f"{INPAINT} --n 1 --box 40,20,60,40", places)) == 0
    assert main(words(f"{INPAINT}2 --n 1 --mask MASK", places | {"OUT2": str(tmp_path / "out2")})) == 0
    (boxed,), (masked,) = records(tmp_path / "out"), records(tmp_path / "out2")
    one, two = (tmp_path / out / "pictures" / boxed["file_name"] for out in ("out", "out2"))
    assert one.read_bytes() == two.read_bytes()
    assert masked["made_from"]["mask_sha256"] == hashlib.sha256(Path(places["MASK"]).read_bytes()).hexdigest()


def test_a_larger_picture_is_drawn_around_one(places: dict[str, str], tmp_path: Path) -> None:
    assert main(words(f"{EXTEND} --n 2 --left 9 --bottom 6 --batch_size 1", places)) == 0
    assert main(words(f"{EXTEND}2 --n 1 --left 9 --bottom 6 --seed 1", places | {"OUT2": str(tmp_path / "out2")})) == 0
    given = np.asarray(Image.open(places["PICTURE"]))
    for record in records(tmp_path / "out"):
        drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / record["file_name"]))
        assert drawn.shape == (64 + 6, 96 + 9, 3) and np.array_equal(drawn[:64, 9:], given)
        assert record["made_from"]["left"] == 9 and record["made_from"]["bottom"] == 6
    name = records(tmp_path / "out2")[0]["file_name"]
    one, two = (tmp_path / out / "pictures" / name for out in ("out", "out2"))
    assert one.read_bytes() == two.read_bytes(), "a seed gives its picture in any batch"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (INPAINT, "give --box left,top,right,bottom or --mask FILE, one of them"),
        (f"{INPAINT} --box 1,1,9,9 --mask MASK", "give --box left,top,right,bottom or --mask FILE, one of them"),
        (f"{INPAINT} --box 1,1,9", "--box is '1,1,9': give left,top,right,bottom, four whole numbers of pixels"),
        (f"{INPAINT} --box 0.1,0.1,0.9,0.9", "give left,top,right,bottom, four whole numbers of pixels"),
        (f"{INPAINT} --box 9,1,9,8", "--box 9,1,9,8 holds no pixel: give left,top,right,bottom with left < right and"),
        (f"{INPAINT} --box 0,8,9,1", "--box 0,8,9,1 holds no pixel"),
        (f"{INPAINT} --box 1,1,97,9", "--box 1,1,97,9 is not inside the picture, which is 96 wide and 64 high: move"),
        (f"{INPAINT} --box 0,0,9,9", "is cut off when the picture is scaled and cropped to the model's 32x32: crop"),
        (f"{INPAINT} --mask NARROW", "is 95 wide and 64 high, the picture is 96 wide and 64 high: make the mask as"),
        (f"{INPAINT} --mask BLACK", "black.png has no white pixel: make white what is to be drawn anew"),
        (f"{INPAINT} --mask TEXT", "text.txt cannot be read as a picture: not a picture file"),
        (f"{INPAINT} --mask no.png", "--mask no.png is not a file"),
        (f"{INPAINT} --mask MASK".replace("PICTURE", "TEXT"), "text.txt cannot be read as a picture: not a picture"),
        (f"{INPAINT} --box 40,20,60,40".replace("PICTURE", "no.png"), "no.png is not a file"),
        (f"{INPAINT} --box 40,20,60,40 --caption {'word' * 60}", "tokens, this model takes 48: shorten it"),
        (f"{INPAINT} --box 40,20,60,40 --top_p 1.5", "--top-p is 1.5: choose a value in (0, 1]"),
        (f"{INPAINT} --box 40,20,60,40 --top_k [1,2]", "--top-k is [1, 2]: give one value, or 1, one for each scale"),
        (EXTEND, "nothing to extend: give --left, --right, --top or --bottom in pixels"),
        (f"{EXTEND} --left -4", "--left is -4: choose 0 or more"),
        (f"{EXTEND} --left 16384 --right 16384", "windows of 32x32, at most 4096 are drawn: choose smaller sides"),
        (f"{EXTEND} --left 20000", "--left is 20000: choose at most 16384"),
        (f"{EXTEND} --left 4".replace("PICTURE", "TEXT"), "text.txt cannot be read as a picture: not a picture file"),
        (f"{EXTEND} --left 4 --caption {'word' * 60}", "tokens, this model takes 48: shorten it"),
    ],
)  # fmt: skip
def test_bad_input(places: dict[str, str], capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    assert main(words(line, places)) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert not Path(places["OUT"]).exists(), "nothing half-written"


def test_a_picture_smaller_than_a_window_is_refused(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 20)).save(places["PICTURE"])
    assert main(words(f"{EXTEND} --left 4", places)) == 2
    assert "the picture is 40 wide and 20 high, and this model draws windows of 32x32" in capsys.readouterr().err
    assert not Path(places["OUT"]).exists()
