"""What a user gets: the wheel, its import names, and the three top-level folders found in every way of running."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import torchrun

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "tokenizers_vq": "tokenizers_vq",
    "unitok": "unitok",
    "train": "unitok/train",
    "sample": "unitok/sample",
    "eval": "unitok/eval",
    "recipes": "unitok/recipes",
}
SHIPPED = {".py", ".typed", ".json", ".yaml", ".safetensors", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without a network from a copy of the sources, so that no stale build/ folder can leak into it."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [ROOT / "setup.py", ROOT / "LICENSE", *ROOT.glob("*.toml"), *ROOT.glob("*.md")]:
        shutil.copy(file, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(copy / "dist"), cwd=copy)
    (built,) = (copy / "dist").glob("unitok_vq-*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    """Output of a command; with `path`, that folder is all there is beside the standard library."""
    environment = {"PATH": "/usr/bin:/bin", **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_file_under_its_import_name_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{target}/{file.relative_to(ROOT / folder)}"
        for folder, target in FOLDERS.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in SHIPPED and "__pycache__" not in file.parts and (folder, file.suffix) != ("recipes", ".py")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"unitok/train/config.py", "unitok/sample/pipeline.py", "unitok/recipes/shapes/tokenizer.yaml"} <= expected
    assert {name for name in names if ".dist-info/" not in name} == expected
    metadata = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= metadata


@pytest.mark.parametrize("place", ["elsewhere", "checkout"])
def test_rooms_are_found_from_the_wheel_and_in_a_checkout(unpacked: Path, tmp_path: Path, place: str) -> None:
    """In the checkout its own `unitok/` shadows the installed one; then the rooms must be the checkout's as well."""
    cwd, home = (tmp_path, unpacked / "unitok/train") if place == "elsewhere" else (ROOT, ROOT / "train")
    program = "import unitok.train.config, unitok.sample, unitok.eval; print(unitok.train.config.__file__)"
    assert run(sys.executable, "-S", "-c", program, cwd=cwd, path=unpacked).strip() == str(home / "config.py")
    assert run(sys.executable, "-S", "-m", "unitok", "--version", cwd=cwd, path=unpacked).startswith("unitok 0.")


def test_generic_names_are_not_importable(unpacked: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util as u, unitok; "
        "print([n for n in ('train', 'sample', 'eval', 'unitok.tests', 'unitok.tokenizers_vq') if u.find_spec(n)])"
    )
    for cwd, path in ((tmp_path, unpacked), (tmp_path, ROOT)):
        found = run(sys.executable, "-S", "-c", program, cwd=cwd, path=path).strip()
        assert found == ("[]" if path == unpacked else "['train', 'sample', 'eval']")


@pytest.mark.parametrize("place", ["elsewhere", "checkout"])
def test_spawned_workers_find_the_rooms(unpacked: Path, tmp_path: Path, place: str) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing\n"
        "from unitok.train.config import OptimConfig\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(OptimConfig) == OptimConfig())\n"
    )
    path = unpacked if place == "elsewhere" else ROOT
    assert run(sys.executable, "-S", str(script), cwd=tmp_path, path=path) == "True\n"


def test_torchrun_starts_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The one on the PATH; `-m unitok` trains in tests/train/test_distributed.py."""
    monkeypatch.chdir(tmp_path)
    assert torchrun(str(Path(sys.executable).with_name("unitok")), "--version") == 0
    assert capfd.readouterr().out.count("unitok 0.") == 2


def test_import_is_silent_light_and_fast(tmp_path: Path) -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        "import tokenizers_vq, unitok, unitok.train, unitok.sample, unitok.eval, unitok.cli.main\n"
        "seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'PIL', 'datasets', 'rich', 'jsonargparse', 'yaml'} & set(sys.modules)\n"
        "assert not heavy and seconds < 1, (heavy, seconds)\n"
    )
    assert run(sys.executable, "-W", "error", "-c", program, cwd=tmp_path) == ""
