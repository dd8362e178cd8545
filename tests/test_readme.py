"""The whole line as the README tells it: its commands in order, on a folder of captioned pictures, with tiny models."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from unitok.cli.arguments import parse
from unitok.cli.commands import COMMANDS
from unitok.cli.main import main
from unitok.data.shapes.dataset import ShapesDataset
from unitok.objectives import OBJECTIVES, objective_class

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

SMALLER = {
    "train tokenizer": "--run.steps 40 --run.batch_size 16 --run.log_every 10 --optim.lr 0.003 --optim.warmup_steps 5",
    "train generator": "--run.steps 24 --run.batch_size 16 --run.log_every 4 --optim.lr 0.003 --optim.warmup_steps 5"
    " --text_vocabulary 300",
}


def commands() -> list[list[str]]:
    """The `unitok` commands of the README's bash blocks, in order, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("unitok ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def make_pictures(folder: Path) -> None:
    """A folder as a newcomer has it: pictures of several kinds and sizes, each with a text file beside it."""
    folder.mkdir()
    data = ShapesDataset(size=48)
    for index in range(48):
        record = data[index]
        assert record.image is not None and record.caption is not None
        picture = Image.fromarray(record.image.permute(1, 2, 0).numpy())
        name = "cat" if index == 0 else f"picture{index}"
        if index == 1:
            picture = picture.convert("L")
        if index == 2:
            picture = picture.resize((90, 60))
        picture.save(folder / f"{name}.{'jpg' if index % 5 == 1 else 'png'}")
        (folder / f"{name}.txt").write_text(record.caption + "\n")


def run_commands(generator: bool, training: str) -> None:
    """Those with the generator or those without, in order, smaller; `training` are more words of `unitok train`."""
    for words in commands():
        if ("runs/generator" in words) == generator:
            name = " ".join(words[:2])
            words = ["debug" if word == "emoji" else word for word in words]
            words += shlex.split(f"{SMALLER[name]} {training}") if name in SMALLER else []
            assert main(words) == 0, words


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The folder before the generator: one that all objectives share, and one whose tokenizer has scales."""

    @cache
    def begin(scales: bool) -> Path:
        folder = tmp_path_factory.mktemp("scales" if scales else "plain")
        make_pictures(folder / "pictures")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run_commands(generator=False, training="--tokenizer.scales '[1, 2, 4, 8]'" if scales else "")
        return folder

    return begin


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_commands_run_in_order(
    begun: Callable[[bool], Path],
    objective: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(begun(objective_class(objective).sets_scales), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    run_commands(generator=True, training=f"--objective {objective}")
    capsys.readouterr()
    for run in ("tokenizer", "generator"):
        found = losses(Path("runs") / run)
        assert found[-1] < 0.9 * found[0], f"the loss of the {run} must fall"
    assert len(list(Path("runs/samples/pictures").glob("*-s*.png"))) == 8
    report = json.loads(Path("runs/eval-generator/report.json").read_text())
    assert report["generation"]["fid"] >= 0 and 0 <= report["captioning"]["exact"] <= 1
    assert Path("runs/eval-tokenizer/report.html").stat().st_size > 1000

    snippet = re.findall(r"```python\n(.*?)```", README, re.S)[0].replace("runs/demo/generator", "runs/generator")
    exec(compile(snippet, "README.md", "exec"), {})
    assert "torch.Size([1, 3, 32, 32])" in capsys.readouterr().out


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README and f"\n{target}: " in makefile


@pytest.mark.parametrize("page", ["README.md", "docs/tasks.md"])
def test_the_commands_of_tasks_can_be_typed(page: str) -> None:
    """Those of both pages are run by hand on the model of `unitok demo --tasks all`, which takes hours to train."""
    (block,) = re.findall(r"```(?:sh|bash)\n(G=.*?)```", (ROOT / page).read_text(), re.S)
    found = set()
    for line in re.sub(r"\$G", "--model runs/tasks/generator", block).splitlines():
        words = shlex.split(line, comments=True)
        if "unitok" in words:
            name, *words = words[words.index("unitok") + 1 :]
            assert parse(name, COMMANDS[name], words)[1]["model"] == Path("runs/tasks/generator"), line
            found.add(name)
    table = re.findall(r"`unitok (\w+)|, `(extend|chat)`", (ROOT / "docs/tasks.md").read_text().split("\n\n")[2])
    assert found == {name for pair in table for name in pair if name}
