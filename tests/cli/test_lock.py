"""One writer for an output folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.lock import LOCK_FILE, only_writer

HOLD = """
import sys, time
from pathlib import Path
from unitok.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `out`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_writer_is_told_who_is_the_first(
    tmp_path: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((tmp_path / "out").iterdir())
    for words in (
        ["train", "tokenizer", "--data", "shapes", "--preset", "debug", "--resume"],
        ["encode", "--data", "shapes?limit=2", "--image_tokenizer", "nowhere"],
        ["sample", "--model", "nowhere", "a red circle"],
        ["eval", "tokenizer", "--tokenizer", "nowhere", "--data", "shapes@val"],
    ):
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err
        assert f"is in use by process {holder.pid} on {socket.gethostname()}: wait" in line and line.count("\n") == 1
    assert sorted((tmp_path / "out").iterdir()) == before


def test_the_lock_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / LOCK_FILE).exists()
    with only_writer(tmp_path / "out"):
        about = json.loads((tmp_path / "out" / LOCK_FILE).read_text())
        assert about == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / LOCK_FILE).exists()


def test_only_one_of_many_enters_at_a_time(tmp_path: Path) -> None:
    """Also where the one before removes the lock file while the next one opens it."""
    count = """
import sys, time
from pathlib import Path
from tokenizers_vq.errors import UserError
from unitok.lock import only_writer
folder, done = Path(sys.argv[1]), 0
while done < 40:
    try:
        with only_writer(folder):
            try:
                (folder / "inside").mkdir()
            except FileExistsError:
                sys.exit("two at once")
            (folder / "inside").rmdir()
            done += 1
    except UserError:
        time.sleep(0.0005)
"""
    (tmp_path / "out").mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", count, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    words = ["encode", "--data", "nowhere/", "--image_tokenizer", "nowhere", "--out", str(tmp_path / "a" / "b")]
    assert main(words) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_a_place_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(UserError, match=r"is a file|Not a directory"), only_writer(place):
            pass


def test_the_root_of_all_folders_is_nobodys(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="--out / is the root of all folders: choose one of its own"),
        only_writer(Path("/")),
    ):
        pass


def test_a_process_may_enter_twice_and_ranks_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_writer(tmp_path):
        with only_writer(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()
        monkeypatch.setenv("RANK", "1")
        with only_writer(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()
    assert not (tmp_path / LOCK_FILE).exists()


def test_file_systems_without_locks_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with only_writer(tmp_path):
        (tmp_path / "work").write_text("done")
    assert "is on a file system without locks (No locks available): make sure" in capsys.readouterr().err


def test_time_to_enter(tmp_path: Path) -> None:
    """A lock must not be felt."""
    started = time.perf_counter()
    for _ in range(100):
        with only_writer(tmp_path):
            pass
    assert time.perf_counter() - started < 5
