"""`unitok encode`."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.data.codes.shards import CodesDataset
from unitok.data.codes.writer import ShardWriter
from unitok.data.open import open_data
from unitok.train.commands import encode


def test_codes_are_those_of_the_pictures(
    tmp_path: Path, tiny_tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "shapes@val?limit=21"
    encode(data=data, image_tokenizer=tiny_tokenizer_folder, out=tmp_path / "codes", batch_size=8, shard_size=6)
    codes, pictures = CodesDataset(tmp_path / "codes"), open_data(data, 32)
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    assert len(codes) == 21 and codes.tokenizer_fingerprint == tokenizer.fingerprint()
    for index in (0, 7, 20):
        picture, code = pictures[index], codes[index]
        assert picture.image is not None and (code.caption, code.name) == (picture.caption, picture.name)
        assert torch.equal(code.codes, tokenizer.encode(to_float(picture.image[None]))[0])  # type: ignore[arg-type]
    assert "pictures: 21  unreadable: 0" in capsys.readouterr().out


def test_an_interrupted_encoding_goes_on(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path) -> None:
        encode(data="shapes@val?limit=21", image_tokenizer=tiny_tokenizer_folder, out=out, batch_size=4, shard_size=5)

    added: list[str] = []
    add = ShardWriter.add

    def watched(self: Any, name: str, *rest: Any, **more: Any) -> None:
        if len(added) == 13:
            raise KeyboardInterrupt
        added.append(name)
        add(self, name, *rest, **more)

    monkeypatch.setattr(ShardWriter, "add", watched)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "codes")
    with pytest.raises(UserError, match="10 of 21 records: run the same unitok encode again"):
        CodesDataset(tmp_path / "codes")
    added.clear()
    monkeypatch.setattr(
        ShardWriter, "add", lambda self, name, *rest, **more: (added.append(name), add(self, name, *rest, **more))
    )
    run(tmp_path / "codes")
    assert len(added) == 11  # two shards of five were there
    run(tmp_path / "whole")
    a, b = CodesDataset(tmp_path / "codes"), CodesDataset(tmp_path / "whole")
    assert all(torch.equal(a[index].codes, b[index].codes) for index in range(21))  # type: ignore[arg-type]
    added.clear()
    run(tmp_path / "codes")
    assert added == []


def test_unreadable_pictures_keep_their_place_up_to_the_limit(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (40, 36), (index * 20, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"shade {index}")
    (folder / "4.png").write_bytes(b"torn")
    common = {"data": str(folder), "image_tokenizer": tiny_tokenizer_folder}
    with pytest.raises(UserError, match=r"1 of 10 pictures cannot be used"):
        encode(**common, out=tmp_path / "codes", shard_size=3)
    with pytest.raises(UserError, match=r"1 of 10 pictures cannot be used"):  # whoever met it
        encode(**common, out=tmp_path / "codes", shard_size=3)
    encode(**common, out=tmp_path / "codes", shard_size=3, max_bad=0.2, batch_size=3)  # what the message advises
    codes = CodesDataset(tmp_path / "codes")
    assert len(codes) == 10 and codes[4].problem is not None and codes[4].codes is None
    assert [codes[index].caption for index in (3, 5)] == ["shade 3", "shade 5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "shapes"}, r"data 'shapes' has no end: say how many pictures to encode, as in shapes\?limit=50000"),
        ({"batch_size": 0, "workers": -1}, r"(?s)2 problems:.*--batch_size is 0.*--workers is -1"),
        ({"image_tokenizer": Path("nowhere")}, r"no image tokenizer at nowhere"),
    ],
)
def test_wrong_requests(tmp_path: Path, tiny_tokenizer_folder: Path, change: dict[str, Any], message: str) -> None:
    request: dict[str, Any] = {"data": "shapes?limit=4", "image_tokenizer": tiny_tokenizer_folder}
    with pytest.raises(UserError, match=message):
        encode(**{**request, **change}, out=tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_codes_are_not_encoded_again(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    encode(data="shapes?limit=4", image_tokenizer=tiny_tokenizer_folder, out=tmp_path / "codes")
    with pytest.raises(UserError, match="holds codes already: give pictures"):
        encode(data=str(tmp_path / "codes"), image_tokenizer=tiny_tokenizer_folder, out=tmp_path / "again")


def test_two_processes_share_the_shards_and_write_what_one_writes(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    def run(out: Path, rank: int, processes: int) -> None:
        torch.set_num_threads(1)  # a fork has no other threads
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
        common = {"image_tokenizer": tiny_tokenizer_folder, "batch_size": 4, "shard_size": 4, "device": "cpu"}
        encode(data="shapes@val?limit=42", out=out, **common)  # type: ignore[arg-type]

    fork = multiprocessing.get_context("fork")
    places = [(tmp_path / "two", 0, 2), (tmp_path / "two", 1, 2), (tmp_path / "one", 0, 1)]
    runs = [fork.Process(target=run, args=place) for place in places]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
    assert [process.exitcode for process in runs] == [0, 0, 0]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two and len(one) == 12
