"""`unitok encode`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import pair

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_float
from unitok.cli.main import main
from unitok.data.codes.shards import CodesDataset
from unitok.data.codes.writer import ShardWriter
from unitok.data.open import open_data
from unitok.lock import only_writer
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
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two and len(one) == 12


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_loses_nothing_and_nothing_is_encoded_twice(
    tmp_path: Path, tiny_tokenizer_folder: Path, dies: int
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    common: dict[str, Any] = {"data": "shapes@val?limit=42", "image_tokenizer": tiny_tokenizer_folder}
    common |= {"batch_size": 4, "shard_size": 4, "device": "cpu"}
    add = ShardWriter.add

    def work(rank: int) -> int:
        added: list[str] = []

        def watched(self: Any, name: str, *rest: Any, **more: Any) -> None:
            if rank == dies and len(added) == 6:  # in its second shard
                (tmp_path / "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while rank != dies and not (tmp_path / "dead").exists():
                time.sleep(0.01)
            added.append(name)
            (seen / f"{rank}-{len(added)}-{name}").touch()
            add(self, name, *rest, **more)

        ShardWriter.add = watched  # type: ignore[method-assign]  # of a forked process
        encode(out=tmp_path / "two", **common)
        return 0

    codes = pair(work, timeout=60)
    assert (codes[dies], codes[1 - dies]) == (-signal.SIGKILL, 0)
    assert len(list(seen.iterdir())) == 42 + 2, "the two of the shard that was begun, and no other, came twice"
    encode(out=tmp_path / "two", **common)  # started again: it finds all done, and clears away the lock of who died
    encode(out=tmp_path / "one", **common)
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.timeout(120)
def test_processes_refuse_together(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(**given: tuple[object, object]) -> str:
        """`given`: options as the first process and the second one have them."""
        capfd.readouterr()

        def work(rank: int) -> int:
            options: dict[str, object] = {"data": "shapes@val?limit=8", "image_tokenizer": tiny_tokenizer_folder}
            options |= {"out": tmp_path / "codes", "device": "cpu", "shard_size": 4}
            options |= {name: both[rank] for name, both in given.items()}
            return main(["encode", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])

        codes, said = pair(work, timeout=60), capfd.readouterr().err
        assert codes == [2, 2] and said.count("error:") == 1 and "Traceback" not in said, said
        return said

    assert "--workers is -1: choose 0 or more" in refused(workers=(-1, -1))
    assert "batch_size is 'x': expected int" in refused(batch_size=("x", "x"))
    assert "has no end: say how many" in refused(data=("shapes", "shapes"))
    assert "no image tokenizer at nowhere" in refused(image_tokenizer=(tiny_tokenizer_folder, "nowhere"))
    assert "processes 0 and 1 see other pictures or captions" in refused(
        data=("shapes@val?limit=8", "shapes@val?limit=8&seed=1")
    )
    if not torch.cuda.is_available():
        assert "torch sees no GPU: choose cpu" in refused(device=("cpu", "cuda"))
    assert not (tmp_path / "codes").exists(), "nothing was begun"
    common: dict[str, Any] = {"image_tokenizer": tiny_tokenizer_folder, "out": tmp_path / "codes", "shard_size": 4}
    encode(data="shapes@val?limit=8", device="cpu", **common)
    before = files(tmp_path / "codes")
    assert "holds codes of other pictures" in refused(data=("shapes@val?limit=9", "shapes@val?limit=9"))
    assert files(tmp_path / "codes") == before
    damaged = tmp_path / "codes" / "codes-00001.safetensors"  # the second process looks at it
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "codes-00001.safetensors is missing or damaged" in refused()
    held, leave = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold() -> None:
        with only_writer(tmp_path / "codes"):
            held.set()
            leave.wait(60)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    assert held.wait(60)
    assert f"is in use by process {holder.pid} on " in refused()
    leave.set()
    holder.join()
