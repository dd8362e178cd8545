"""Hostile files of each format, through the real commands: nothing outside is opened, memory stays small."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from . import judge
from .trial import Case, Trial, copy

CACHES = (str(Path.home() / ".cache"), tempfile.gettempdir())
"""Where `datasets` keeps its copies."""

Make = Callable[[Trial, Path], list[str]]
"""Writes a hostile file into a folder; returns the command that opens it. `secret.png` beside the folder is outside."""


def _train(data: str) -> list[str]:
    return ["train", "tokenizer", "--preset", "debug", "--run.steps", "1", "--run.batch_size", "1", "--data", data]


def parquet_path(trial: Trial, folder: Path, path: str) -> list[str]:
    rows = {"image": [{"bytes": None, "path": path}] * 3, "caption": ["a red circle"] * 3}
    pq.write_table(pa.table(rows), folder / "train.parquet")
    return _train(str(folder))


def metadata_path(trial: Trial, folder: Path, path: str) -> list[str]:
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "a red circle"}) + "\n")
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    return _train(str(folder))


def tar_link(trial: Trial, folder: Path, kind: bytes) -> list[str]:
    with tarfile.open(folder / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "../secret.png"
        tar.addfile(info)
    return _train(str(folder))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(trial: Trial, folder: Path) -> list[str]:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 2**26)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(content)
    return _train(str(folder))


def text_bomb(trial: Trial, folder: Path) -> list[str]:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    plain = stream.getvalue()
    bomb = _chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 2**28, 9))
    (folder / "a.png").write_bytes(plain[:33] + bomb * 20 + plain[33:])
    return _train(str(folder))


def npz_bomb(trial: Trial, folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f8", "fortran_order": False, "shape": (60_000, 60_000)}
        )
        with archive.open("sigma.npy", "w", force_zip64=True) as member:
            member.write(stream.getvalue())
            for _ in range(40):
                member.write(bytes(2**26))
        archive.writestr("mu.npy", stream.getvalue())
    return ["eval", "fid", trial.place("pictures"), str(folder / "a.npz")]


def pt_bomb(trial: Trial, folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(80):
                member.write(bytes(2**26))
    return ["import", "llamagen_vq", str(folder / "a.pt"), "--out", "out"]


def pt_code(trial: Trial, folder: Path) -> list[str]:
    pickle = b"cposix\nsystem\n(S'touch ../pwned'\ntR."
    (folder / "a.pt").write_bytes(pickle)
    return ["import", "llamagen_vq", str(folder / "a.pt"), "--out", "out"]


def safetensors_header(trial: Trial, folder: Path) -> list[str]:
    copy(trial.base / "tokenizer", folder / "tokenizer")
    (folder / "tokenizer" / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return ["encode", "--data", trial.place("pictures"), "--image_tokenizer", str(folder / "tokenizer"), "--out", "out"]


def tokenizer_json(trial: Trial, folder: Path, text: str) -> list[str]:
    (folder / "tokenizer.json").write_text(text)
    return [*trial.train_generator(1), "--text_tokenizer", str(folder), "--out", "out"]


def config_sizes(trial: Trial, folder: Path, key: str, value: object) -> list[str]:
    copy(trial.base / "generator", folder / "model")
    path = folder / "model" / "config.json"
    values = json.loads(path.read_text())
    values.pop("files", None)
    values["trunk"][key] = value
    path.write_text(json.dumps(values))
    return ["sample", "a red circle", "--model", str(folder / "model"), "--out", "out"]


def metadata_in_samples(trial: Trial, folder: Path) -> list[str]:
    copy(trial.base / "samples", folder / "samples")
    path = folder / "samples" / "pictures" / "metadata.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(first | {"file_name": "../../../secret.png"}) + "\n")
    return [*trial.sample(), "--out", str(folder / "samples")]


MAKERS: dict[str, Make] = {
    "parquet with an absolute path": lambda t, f: parquet_path(t, f, str(f.parent / "secret.png")),
    "parquet with a path upwards": lambda t, f: parquet_path(t, f, "../secret.png"),
    "metadata with an absolute path": lambda t, f: metadata_path(t, f, str(f.parent / "secret.png")),
    "metadata with a path upwards": lambda t, f: metadata_path(t, f, "../secret.png"),
    "metadata with a Windows path": lambda t, f: metadata_path(t, f, "..\\secret.png"),
    "tar with a symbolic link": lambda t, f: tar_link(t, f, tarfile.SYMTYPE),
    "tar with a hard link": lambda t, f: tar_link(t, f, tarfile.LNKTYPE),
    "tar with a device": lambda t, f: tar_link(t, f, tarfile.CHRTYPE),
    "PNG of 3.6 billion pixels": png_bomb,
    "PNG with 5 GB of text": text_bomb,
    "npz of 2.7 GB": npz_bomb,
    "pt of 5 GB": pt_bomb,
    "pt that runs a program": pt_code,
    "safetensors with a header of 4 exabytes": safetensors_header,
    "tokenizer.json of brackets": lambda t, f: tokenizer_json(t, f, "[" * 100_000),
    "tokenizer.json with an id of four billion": lambda t, f: tokenizer_json(
        t, f, '{"version":"1.0","model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}'
    ),
    "tokenizer.json with a lying table": lambda t, f: tokenizer_json(
        t,
        f,
        '{"version":"1.0","normalizer":{"type":"Precompiled","precompiled_charsmap":"////fwAA"},'
        '"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}',
    ),
    "config.json of 50 GB": lambda t, f: config_sizes(t, f, "width", 2**14),
    "config.json of a million blocks": lambda t, f: config_sizes(t, f, "depth", 10**6),
    "a record that points outside": metadata_in_samples,
}


def cases(trial: Trial, draw: random.Random, share: float = 1.0) -> Iterator[Case]:
    for name in draw.sample(sorted(MAKERS), max(1, round(share * len(MAKERS)))):
        yield Case(f"hostile {name}", partial(_case, trial, MAKERS[name]))


def _case(trial: Trial, make: Make, folder: Path) -> list[str]:
    inner = folder / "data"
    inner.mkdir(parents=True)
    secret = folder / "secret.png"
    Image.new("RGB", (32, 32), "red").save(secret)
    words = make(trial, inner)
    words = words if "--out" in words or words[0] == "eval" else [*words, "--out", "out"]
    answer = trial.run(words, folder, forbidden=[str(secret)], allowed=[str(folder), *CACHES])
    fell = judge.ended(answer)
    if answer["opened"]:
        fell.append("opened what is outside the data")
    if (folder / "pwned").exists() or (folder.parent / "pwned").exists():
        fell.append("ran what a file says")
    return fell
