"""Files and folders that are whole or not there, whenever the process dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage import files
from tokenizers_vq.storage.files import (
    atomic_path,
    clear_litter,
    parse_json,
    part,
    read_bytes,
    read_json,
    read_stable,
    replace_parts,
    settle_parts,
    write_json,
)


class Killed(BaseException):
    """Nobody cleans up after it: `finally` runs, but nothing that changes files does."""


CHANGES = ("mkdir", "rename", "replace", "rmdir", "unlink", "remove")


@pytest.fixture
def kill_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the process die just before its n-th change of a folder; from then on no change happens."""
    left = [0]

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*words, **options)

        return call

    def start(number: int) -> None:
        left[0] = number
        for name in CHANGES:
            monkeypatch.setattr(os, name, guarded(getattr(os, name)))

    yield start
    monkeypatch.undo()


def fill(text: str) -> Callable[[Path], None]:
    def write(draft: Path) -> None:
        (draft / "inner").mkdir()
        (draft / "inner" / "b.txt").write_text(text)
        (draft / "inner" / f"only-{text}.txt").write_text(text)
        (draft / "a.txt").write_text(text)
        (draft / "z.txt").write_text(text)

    return write


def content(folder: Path) -> tuple[str, ...]:
    """What a reader finds, wherever the parts are."""
    inner = part(folder, "inner")
    return (
        part(folder, "a.txt").read_text(),
        (inner / "b.txt").read_text(),
        *sorted(path.name for path in inner.iterdir()),
        part(folder, "z.txt").read_text(),
    )


OLD, NEW = ((text, text, "b.txt", f"only-{text}.txt", text) for text in ("old", "new"))


def test_parts_are_replaced_all_or_none(
    tmp_path: Path, kill_before: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        folder = tmp_path / str(number)
        replace_parts(folder, fill("old"))
        (folder / "mine.txt").write_text("stays")
        assert content(folder) == OLD
        kill_before(number)
        try:
            replace_parts(folder, fill("new"))
            killed = False
        except Killed:
            killed = True
        monkeypatch.undo()
        seen = content(folder)
        assert seen == NEW or (killed and seen == OLD)
        settle_parts(folder)
        assert content(folder) == seen
        monkeypatch.setattr(files, "_lives", lambda process: False)
        clear_litter(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "inner", "mine.txt", "z.txt"]
        replace_parts(folder, fill("new"))
        assert content(folder) == NEW and (folder / "mine.txt").read_text() == "stays"
        if not killed:
            break
    assert number > 8  # it was killed at many moments, and then it was not


def test_a_reader_beside_a_writer_reads_again(tmp_path: Path) -> None:
    replace_parts(tmp_path, fill("old"))
    tries = []

    def read() -> str:
        tries.append(part(tmp_path, "a.txt").read_text())
        if len(tries) == 1:  # the writer comes in between
            replace_parts(tmp_path, fill("new"))
            raise UserError("the digest is another")
        return tries[-1]

    assert read_stable(tmp_path / "a.txt", read) == "new"
    with pytest.raises(UserError, match="really damaged"):
        read_stable(tmp_path / "a.txt", lambda: (_ for _ in ()).throw(UserError("really damaged")))


def test_litter_of_the_dead_goes_and_of_the_living_stays(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest number of a process
    (tmp_path / "deep").mkdir()
    for name in (f".a.txt.{dead}.tmp", f".b.txt.{os.getpid()}.tmp", ".c.tmp", "d.tmp"):
        (tmp_path / "deep" / name).write_text("half")
    (tmp_path / f".folder.{dead}.tmp" / "inner").mkdir(parents=True)
    clear_litter(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [f".b.txt.{os.getpid()}.tmp", ".c.tmp", "d.tmp", "deep"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert read_json(tmp_path / "a.json") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "f is nested too deep"),
        (b"\xff\xfe[1]", "f holds text that is not UTF-8"),
        (b'"\\ud83d"', "f holds text that is not UTF-8"),
        (b"[NaN]", "f is not valid JSON .NaN is no JSON number"),
        (b"1" * 5000, "f is not valid JSON"),
        (b"", "f is not valid JSON"),
    ],
)
def test_json_of_strangers_is_refused_in_one_line(text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_json(text, "f")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_readers_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "long", 11) == b"x" * 11
    with pytest.raises(UserError, match=r"long: it is larger than 10 bytes"):
        read_bytes(tmp_path / "long", 10)
    for place in ("/dev/zero", tmp_path):
        with pytest.raises(UserError, match=r"it is not a regular file"):
            read_bytes(place, 10)
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_json(tmp_path / "nothing")
