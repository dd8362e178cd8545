from __future__ import annotations

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.data import CodesDataset, Record, RecordBatch, ShardWriter, make_loader, open_data

LAYOUT = Layout(((2, 3),))


class Pictures:
    """Picture i is full of i; picture 5 is broken and picture 7 has no caption."""

    name, endless = "pictures", False

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Record:
        name, caption = f"{index}.png", f"caption {index} é"
        if index == 5:
            return Record(name=name, caption=caption, problem="torn")
        if index == 7:
            return Record(name=name, problem="has no caption")
        return Record(name=name, caption=caption, image=torch.full((3, 4, 6), index, dtype=torch.uint8))


def tokenize(image: torch.Tensor) -> torch.Tensor:
    """(3, 4, 6) uint8 -> (6,) int64"""
    return image[0, ::2, ::2].reshape(-1).long() * 7 + torch.arange(6)


def writer(out: Path, **changes: Any) -> ShardWriter:
    facts: dict[str, Any] = {
        "tokenizer_fingerprint": "f" * 64,
        "layout": LAYOUT,
        "codebook_size": 200,
        "image_size": (4, 6),
        "source": "pictures",
        "total": 20,
        "shard_size": 8,
    }
    return ShardWriter(out, **facts | changes)


def encode(writing: ShardWriter, stop: int = 20) -> None:
    """Encodes what is missing; stops short of record `stop`."""
    for start, end in writing.claims():
        for index in range(start, end):
            if index >= stop:
                return
            record = Pictures()[index]
            codes = None if record.image is None else tokenize(record.image)
            writing.add(record.name, record.caption, codes, record.problem)
    assert writing.done()
    assert writing.finish() == 2


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    encode(writer(tmp_path / "codes"))
    return tmp_path / "codes"


def test_training_from_shards_reads_the_batches_of_training_from_pixels(encoded: Path) -> None:
    def batches(data: Any, workers: int = 0) -> list[RecordBatch]:
        return list(itertools.islice(make_loader(data, seed=1, batch_size=8, micro_batch=4, workers=workers), 12))

    pixels = batches(Pictures())
    for found in (batches(open_data(str(encoded))), batches(CodesDataset(encoded), workers=1)):
        for ours, theirs in zip(found, pixels, strict=True):
            assert (ours.keys, ours.names, ours.captions) == (theirs.keys, theirs.names, theirs.captions)
            assert ours.problems == theirs.problems
            assert theirs.images is not None and ours.images is None
            assert torch.equal(ours.codes, torch.stack([tokenize(image) for image in theirs.images]))


def test_the_folder_says_what_it_holds(encoded: Path) -> None:
    assert sorted(path.name for path in encoded.iterdir()) == [
        "codes-00000.safetensors",
        "codes-00001.safetensors",
        "codes-00002.safetensors",
        "codes.json",
    ]
    facts = json.loads((encoded / "codes.json").read_text())
    assert facts["complete"] is True and facts["count"] == facts["total"] == 20
    assert [shard["count"] for shard in facts["shards"]] == [8, 8, 4]
    data = CodesDataset(encoded)
    assert data.layout == LAYOUT and data.codebook_size == 200 and data.image_size == (4, 6)
    assert data.tokenizer_fingerprint == "f" * 64 and len(data) == 20
    assert load_file(encoded / "codes-00000.safetensors")["codes"].dtype == np.uint16
    with pytest.raises(IndexError):
        data[20]


def test_captions_are_optional_when_they_are_not_wanted(tmp_path: Path) -> None:
    writing = writer(tmp_path, total=2)
    assert next(writing.claims()) == (0, 2)
    writing.add("a", None, torch.zeros(6))
    writing.add("b", "two", torch.zeros(6))
    assert writing.finish() == 0
    assert [CodesDataset(tmp_path)[i].problem for i in range(2)] == ["has no caption", None]
    assert [CodesDataset(tmp_path, captions=False)[i].problem for i in range(2)] == [None, None]


def test_large_codebooks_get_32_bits(tmp_path: Path) -> None:
    encode_one = torch.tensor([0, 1, 65535, 65536, 99_999, 5])
    writing = writer(tmp_path, total=1, codebook_size=100_000)
    assert next(writing.claims()) == (0, 1)
    writing.add("a", "one", encode_one)
    writing.finish()
    assert CodesDataset(tmp_path)[0].codes.tolist() == encode_one.tolist()
    assert CodesDataset(tmp_path)[0].codes.dtype == torch.int64


def test_codes_of_64_bits_keep_their_sign(tmp_path: Path) -> None:
    codes = torch.tensor([0, -1, 5, -(2**63), 2**63 - 1, -99])
    writing = writer(tmp_path, total=2, codebook_size=2**64)
    assert next(writing.claims()) == (0, 2)
    writing.add("a", "one", codes)
    writing.add("b", None, None, "is broken")
    writing.finish()
    assert CodesDataset(tmp_path)[0].codes.tolist() == codes.tolist()


@pytest.mark.parametrize("stop", [0, 3, 8, 11, 19])
def test_a_stopped_encoding_goes_on_and_ends_the_same(tmp_path: Path, encoded: Path, stop: int) -> None:
    out = tmp_path / "again"
    encode(writer(out), stop)
    with pytest.raises(UserError, match=f"holds {stop // 8 * 8} of 20 records: run the same unitok encode again"):
        CodesDataset(out)
    (out / ".codes-00001.safetensors.4194305.tmp").write_bytes(b"half a shard of a run that was killed")
    writing = writer(out)
    assert writing.count == stop // 8 * 8
    encode(writing)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in encoded.iterdir()
    }
    assert writer(out).count == 20 and not list(writer(out).claims())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_fingerprint": "0" * 64}, "another tokenizer, ffffffffffff .now 000000000000."),
        ({"source": "other"}, "another source, pictures .now other."),
        ({"total": 21}, "another number of pictures, 20 .now 21."),
        ({"image_size": (8, 12)}, "another image size"),
        ({"layout": Layout(((3, 2),))}, "another layout"),
        ({"codebook_size": 300}, "another codebook size, 200 .now 300."),
    ],
)
def test_codes_of_something_else_are_not_continued(encoded: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        writer(encoded, **change)


def test_a_damaged_shard_is_not_continued(tmp_path: Path) -> None:
    encode(writer(tmp_path), 10)
    shard = tmp_path / "codes-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"codes-00000\.safetensors is missing or damaged"):
        writer(tmp_path)


def test_folders_of_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds other files and no codes\.json"):
        writer(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        writer(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_loses_no_finished_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(writer(tmp_path), 9)

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        patch.setattr(Path, "write_bytes", full)
        encode(writer(tmp_path))
    names = ["codes-00000.json", "codes-00000.safetensors", "codes.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert writer(tmp_path).count == 8


def rewrite(folder: Path, **changes: np.ndarray) -> None:
    """Change tensors of the first shard, and its digest in codes.json with them."""
    file = folder / "codes-00000.safetensors"
    save_file({**load_file(file), **changes}, file)
    facts = json.loads((folder / "codes.json").read_text())
    facts.pop("files")
    facts["shards"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "codes.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.full((8, 6), 200, np.uint16)}, "id 200 is outside the codebook of 200"),
        ({"codes": np.zeros((8, 5), np.uint16)}, r"codes of shape \[8, 5\] instead of \[8, 6\]"),
        ({"codes": np.zeros((9, 6), np.uint16)}, r"codes of shape \[9, 6\] instead of \[8, 6\]"),
        ({"codes": np.zeros((8, 6), np.float32)}, "codes are F32"),
        ({"ends": np.arange(8)}, "captions are cut off"),
        ({"ends": np.arange(7)}, "captions do not match"),
        ({"more": np.arange(7)}, "other contents"),
    ],
)
def test_a_shard_is_checked_against_its_claims(encoded: Path, changes: dict[str, np.ndarray], message: str) -> None:
    rewrite(encoded, **changes)
    with pytest.raises(UserError, match=rf"codes-00000\.safetensors is damaged \(.*{message}"):
        CodesDataset(encoded)


def test_damaged_files_are_one_line(encoded: Path) -> None:
    shard = encoded / "codes-00001.safetensors"
    whole = shard.read_bytes()
    for data in (whole[:100], b"", whole[:-2] + b"xx"):
        shard.write_bytes(data)
        with pytest.raises(UserError, match=r"codes-00001\.safetensors is damaged") as caught:
            CodesDataset(encoded)
        assert "\n" not in str(caught.value)
    shard.unlink()
    with pytest.raises(UserError, match=r"codes-00001\.safetensors cannot be read"):
        CodesDataset(encoded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something else"}, "is not an index of format 'unitok codes 1'"),
        ({"total": 12}, "counts do not add up"),
        ({"layout": []}, r"codes\.json: layout: layout \(\) is not a list of"),
        ({"shards": [{"file": "a"}]}, r"codes\.json: shards\[0\] lacks the key .count."),
        ({"image_size": 4}, r"codes\.json: image_size is 4: expected a list of 2"),
        ({"total": "12"}, r"codes\.json: total is .12.: expected a whole number"),
        ({"newer": 1}, "unknown key .newer."),
    ],
)
def test_a_damaged_index_is_refused(encoded: Path, change: dict[str, Any], message: str) -> None:
    facts = json.loads((encoded / "codes.json").read_text())
    facts.pop("files")
    (encoded / "codes.json").write_text(json.dumps(facts | change))
    with pytest.raises(UserError, match=message):
        CodesDataset(encoded)


def test_an_index_cannot_point_outside_its_folder(encoded: Path) -> None:
    facts = json.loads((encoded / "codes.json").read_text())
    facts.pop("files")
    facts["shards"][0]["file"] = "../../etc/codes-00000.safetensors"
    (encoded / "codes.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"it lists 8 rows in .\.\./\.\./etc/codes-00000"):
        CodesDataset(encoded)


def test_open_data_checks_what_is_asked_of_codes(encoded: Path) -> None:
    assert len(open_data(f"{encoded}?limit=3", (4, 6))) == 3
    with pytest.raises(UserError, match="holds codes of 4x6 pictures, but 64x64 are wanted"):
        open_data(str(encoded), 64)
    with pytest.raises(UserError, match="codes have no splits"):
        open_data(f"{encoded}@val")
    with pytest.raises(UserError, match="takes no 'caption', only limit"):
        open_data(f"{encoded}?caption=text")


def test_codes_survive_pickling(encoded: Path) -> None:
    data = CodesDataset(encoded)
    first = data[0].codes  # opens a shard, which cannot be pickled
    assert torch.equal(pickle.loads(pickle.dumps(data))[0].codes, first)


def one_of_two(out: Path, rank: int, log: Path, die_at: int | None = None) -> None:
    """A process that encodes; it notes each record, and dies of SIGKILL at one of them."""
    writing = writer(out, shard_size=2, rank=rank, processes=2)
    while not writing.done():
        for start, stop in writing.claims():
            for index in range(start, stop):
                with open(log, "a") as file:
                    file.write(f"{rank} {index}\n")
                if index == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                record = Pictures()[index]
                codes = None if record.image is None else tokenize(record.image)
                writing.add(record.name, record.caption, codes, record.problem)
                time.sleep(0.005)
    writing.finish()


def start(*arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=one_of_two, args=arguments)
    process.start()
    return process


def test_a_killed_process_loses_nothing_and_nothing_is_encoded_twice(tmp_path: Path) -> None:
    """The other one takes over its shard; the killed one is started again, too, and finds its place."""
    log = tmp_path / "log"
    first = start(tmp_path / "codes", 0, log, 1)
    first.join(30)
    assert first.exitcode == -signal.SIGKILL and log.read_text() == "0 0\n0 1\n"
    runs = [start(tmp_path / "codes", rank, log) for rank in (0, 1)]
    for run in runs:
        run.join(30)
        assert run.exitcode == 0
    noted = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(index) for _, index in noted) == sorted([0, 1, *range(20)]), "only the lost shard is done again"
    assert {rank for rank, _ in noted} == {"0", "1"}
    encode(writer(tmp_path / "alone", shard_size=2))
    both, alone = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("codes", "alone"))
    assert both == alone
    start(tmp_path / "codes", 1, log).join(30)
    assert len(log.read_text().splitlines()) == 22, "what is finished is left alone"


def test_who_waits_takes_over_from_the_dead(tmp_path: Path) -> None:
    log = tmp_path / "log"
    writing = writer(tmp_path / "codes", shard_size=2, rank=1, processes=2)
    claims = writing.claims()
    assert next(claims) == (0, 2)
    other = start(tmp_path / "codes", 0, log)
    while not log.exists() or len(log.read_text().splitlines()) < 18:
        assert other.is_alive()
        time.sleep(0.01)
    assert {int(line.split()[1]) for line in log.read_text().splitlines()} == set(range(2, 20))
    assert other.is_alive() and not (tmp_path / "codes" / "codes-00000.json").exists(), "it waits for our shard"
    with open(tmp_path / "codes" / ".claims"):
        pass  # closing any handle of the file lets go of all its locks, as the end of a process does
    other.join(30)
    assert other.exitcode == 0 and len(CodesDataset(tmp_path / "codes")) == 20


def test_a_folder_that_was_begun_before_there_were_parts_goes_on(tmp_path: Path, encoded: Path) -> None:
    """Its index lists the finished shards, and says nothing of their size."""
    out = tmp_path / "old"
    shutil.copytree(encoded, out)
    facts = json.loads((out / "codes.json").read_text())
    for name in ("files", "shard_size", "unreadable"):
        facts.pop(name)
    facts["shards"] = facts["shards"][:1]
    (out / "codes.json").write_text(json.dumps(facts))
    for number in (1, 2):
        (out / f"codes-0000{number}.safetensors").unlink()
    with pytest.raises(UserError, match="holds 8 of 20 records"):
        CodesDataset(out)
    encode_rest = writer(out, shard_size=5)
    assert [*encode_rest.claims()] == [(8, 13), (13, 18), (18, 20)]
    shutil.copy(encoded / "codes-00000.safetensors", out)
    again = writer(out, shard_size=12)
    assert next(again.claims()) == (8, 13), "a folder keeps its size of shards"
