"""Data at addresses, from a server of this machine that stalls, cuts connections and damages what it sends."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import png, write_parquet, write_tar

from tokenizers_vq.base import build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.layout import Layout
from unitok.cli.main import main
from unitok.data import ShardWriter, make_loader, open_data
from unitok.data.addresses import cache as remote
from unitok.data.addresses.cache import Cache
from unitok.data.codes.shards import CodesDataset
from unitok.train.log import read_log


class Server(ThreadingHTTPServer):
    """Serves the files of a folder; `faults` of a name are spent one by one, on a GET each."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.faults, self.gets = root, dict[str, list[str]](), Counter[str]()
        self.digests = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        pass  # a client that has given up


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        path = self.server.root / name
        if not path.is_file():
            return self.send_error(404)
        data, fault = path.read_bytes(), ""
        if self.command == "GET":
            self.server.gets[name] += 1
            fault = self.server.faults[name].pop(0) if self.server.faults.get(name) else ""
        if fault == "busy":
            return self.send_error(503)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if self.server.digests:
            self.send_header("Content-MD5", base64.b64encode(hashlib.md5(data).digest()).decode())
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "damage":
            data = data[:-3] + b"???"
        if fault in ("cut", "stall"):
            data = data[: len(data) // 2]
        self.wfile.write(data)
        if fault == "stall":
            self.wfile.flush()
            time.sleep(2)
        return None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALL", 0.3)
    yield server
    server.shutdown()
    server.server_close()


def tars(root: Path, count: int = 3, each: int = 4) -> None:
    for number in range(count):
        files: dict[str, bytes | str] = {}
        for index in range(number * each, (number + 1) * each):
            files |= {f"{index:03}.png": png(index), f"{index:03}.txt": f"picture {index}"}
        write_tar(root / f"{number:04}.tar", files)


def codes(root: Path, total: int = 24) -> None:
    writer = ShardWriter(
        root,
        tokenizer_fingerprint="f",
        layout=Layout(((2, 2),)),
        codebook_size=100,
        image_size=(4, 4),
        source="x",
        total=total,
        shard_size=2,
    )
    for start, stop in writer.claims():
        for index in range(start, stop):
            writer.add(f"{index}", f"caption {index}", torch.full((4,), index))
    writer.finish()


def values(data: Any) -> list[Any]:
    return [
        (one.name, one.caption, (one.codes if one.image is None else one.image[0, 0]).tolist())
        for one in (data[index] for index in range(len(data)))
    ]


def test_tars_and_parquet_and_codes_are_those_of_the_disk(server: Server) -> None:
    tars(server.root)
    write_parquet(server.root / "a.parquet", [{"image": png(index), "text": f"row {index}"} for index in range(3)])
    codes(server.root / "codes")
    found = open_data(f"{server.address}/{{0000..0002}}.tar")
    assert values(found) == values(open_data(str(server.root / "*.tar"))) and found.shards == [4, 4, 4]
    assert values(open_data(f"{server.address}/a.parquet?caption=text")) == values(
        open_data(str(server.root / "a.parquet"))
    )
    assert values(open_data(f"{server.address}/codes/")) == values(open_data(str(server.root / "codes")))
    part = open_data(f"{server.address}/{{0000..0002}}.tar?limit=6")
    assert len(part) == 6 and part.shards == [4, 2]
    with pytest.raises(IndexError):
        found[12]


def test_an_epoch_goes_shard_by_shard_and_is_the_same_for_workers_and_resuming(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unitok.data.epochs.WINDOW", 2)
    codes(server.root / "codes")
    data = open_data(f"{server.address}/codes/")

    def names(start: int, count: int, **more: int) -> list[str]:
        batches = make_loader(data, seed=0, batch_size=4, micro_batch=4, start_step=start, **more)
        return [name for batch in itertools.islice(batches, count) for name in batch.names]

    epoch = names(0, 6)
    assert sorted(map(int, epoch)) == list(range(24)) and epoch != names(6, 6)
    for step in range(6):
        assert len({int(name) // 2 for name in epoch[4 * step : 4 * step + 4]}) == 2, "more shards than a window"
    assert epoch[4:] == names(1, 5, workers=2)
    gets = {name: count for name, count in server.gets.items() if name.endswith(".safetensors")}
    assert set(gets.values()) == {1}, "each is brought once, by whichever process"


@pytest.mark.parametrize("fault", ["busy", "cut", "stall", "damage"])
def test_troubles_pass(server: Server, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    tars(server.root, 1)
    server.digests = True
    server.faults["0000.tar"] = [fault, fault]
    assert len(open_data(f"{server.address}/0000.tar")) == 4
    waits = [record.getMessage() for record in caplog.records if "waiting for http://127" in record.getMessage()]
    assert len(waits) == 2 and all("0000.tar: " in wait for wait in waits)
    assert server.gets["0000.tar"] == 3


def test_a_server_that_stays_dead_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    tars(server.root, 1)
    server.faults["0000.tar"] = ["busy"] * 100
    with pytest.raises(UserError, match=r"/0000\.tar could not be brought in 5 tries .*503.*see to the server"):
        open_data(f"{server.address}/0000.tar")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a\.tar could not be brought"):
        open_data("http://127.0.0.1:9/a.tar")


def test_what_cannot_be_brought_is_one_line(server: Server) -> None:
    for spec, message in (
        (f"{server.address}/no.tar", r"/no\.tar is not there"),
        (f"{server.address}/codes", r"/codes/codes\.json is not there"),
        ("nothing://host/a.tar", "nothing://host/a.tar cannot be opened .*give another address"),
        (f"{server.address}/{{9..1}}.tar", r"\{9\.\.1\} names no file or too many"),
        (f"{server.address}/a.tar@val", "an address has no splits"),
        (f"{server.address}/a.tar?outside=true", "takes no 'outside'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_data(spec)
        assert "\n" not in str(caught.value)


def test_damaged_shards_are_never_used(server: Server) -> None:
    codes(server.root / "codes")
    shard = server.root / "codes" / "codes-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    data = open_data(f"{server.address}/codes")
    assert data[0].caption == "caption 0"
    with pytest.raises(UserError, match=r"codes-00003\.safetensors arrived damaged 3 times.* \(its sha256 is not"):
        data[6]
    with pytest.raises(UserError, match="arrived damaged"):  # from a worker, too
        list(itertools.islice(make_loader(data, seed=0, batch_size=24, micro_batch=24, workers=1), 1))
    stop = time.monotonic() + 60
    while list(Cache().folder.glob("*/*.tmp")) and time.monotonic() < stop:
        time.sleep(0.1)  # a shard is still being fetched ahead
    assert not list(Cache().folder.glob("*/*.tmp")) and not list(Cache().folder.glob("*/codes-00003*"))


def test_a_file_that_was_replaced_is_refused(server: Server) -> None:
    tars(server.root, 2)
    data = open_data(f"{server.address}/{{0000..0001}}.tar")
    Cache().place(f"{server.address}/0001.tar").unlink()  # to make room
    write_tar(server.root / "0001.tar", {"a.png": png(1), "a.txt": "another"})
    assert data[0].caption == "picture 0"
    with pytest.raises(UserError, match=r"0001\.tar arrived damaged 3 times, or it was replaced .*: restore it there"):
        data[4]


def test_the_cache_keeps_its_size_and_what_is_in_use(server: Server, tmp_path: Path) -> None:
    for number in range(5):
        (server.root / f"{number}.tar").write_bytes(bytes(1000))
    cache = Cache(2500, tmp_path / "small")
    for number in range(4):
        path = cache.bring(f"{server.address}/{number}.tar")
        if number != 1:
            os.utime(path, (number, number))  # asked for long ago
    assert cache.bring(f"{server.address}/4.tar").stat().st_size == 1000
    kept = sorted(path.name for path in cache.folder.glob("*/*.tar"))
    assert kept == ["1.tar", "4.tar"], "the newest, and what is in use"
    assert cache.bring(f"{server.address}/0.tar").is_file() and server.gets["0.tar"] == 2


def test_prefetch_brings_what_comes_next(server: Server) -> None:
    codes(server.root / "codes")
    data = open_data(f"{server.address}/codes")
    data.prefetch([3, 1])
    place = data.cache.place(f"{server.address}/codes/codes-00001.safetensors")
    deadline = time.monotonic() + 10
    while not place.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert data[2].caption == "caption 2" and server.gets["codes/codes-00001.safetensors"] == 1


def test_a_training_learns_the_same_through_all_troubles(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An epoch of codes, each shard of which comes after two troubles, against the same folder on the disk: the same
    losses to the bit."""
    monkeypatch.setattr("unitok.data.epochs.WINDOW", 2)
    monkeypatch.setattr("unitok.train.generator.GRID_PICTURES", 1)  # so that shards come in as the training goes on
    monkeypatch.setattr("unitok.train.loop.plot_losses", lambda *_: None)
    monkeypatch.setattr("unitok.train.generator.GeneratorTrainee.draw", lambda self, path: None)
    build_tokenizer(TOKENIZER_PRESETS["debug"]()).save_pretrained(tmp_path / "tokenizer")
    encode = f"encode --data shapes@val?limit=32 --shard_size 4 --device cpu --out {server.root}/codes"
    images = ["--image_tokenizer", str(tmp_path / "tokenizer")]
    assert main([*encode.split(), *images]) == 0

    def losses(out: Path, data: str, *more: str) -> list[float]:
        words = "train generator --preset debug --trunk.width 32 --text_vocabulary 300 --run.steps 8 --run.batch_size 4"
        words += f" --run.log_every 1 --run.device cpu --run.precision fp32 --run.threads 1 --data {data} --out {out}"
        assert main([*words.split(), *images, *more]) == 0
        return [entry["loss"] for entry in read_log(out / "log.jsonl")]

    with monkeypatch.context() as patch:  # shard by shard, as what comes from elsewhere is read
        patch.setattr(CodesDataset, "shards", property(lambda self: [4] * 8), raising=False)
        patch.setattr(CodesDataset, "prefetch", lambda self, shards: None, raising=False)
        expected = losses(tmp_path / "near", f"{server.root}/codes")
    troubles = ["busy", "cut", "stall", "damage"]
    for number in range(8):
        server.faults[f"codes/codes-{number:05}.safetensors"] = [troubles[number % 4], troubles[(number + 1) % 4]]
    texts = ["--text_tokenizer", str(tmp_path / "near" / "text_tokenizer")]  # or all captions would be read before
    assert losses(tmp_path / "far", f"{server.address}/codes", *texts) == expected
    waits = [record.getMessage() for record in caplog.records if "waiting for http" in record.getMessage()]
    assert len(waits) == 16 and not any(server.faults.values())
