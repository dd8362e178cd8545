"""`unitok start`: what it finds in a folder, how long it trains, and that it goes on with its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.cli import start as module
from unitok.cli import start_plan
from unitok.cli.main import main
from unitok.cli.start_look import look
from unitok.cli.start_plan import GENERATOR_PASSES, TOKENIZER_PASSES, Level, Trial, expectations, lengths

TINY = Level(32, ("--preset", "debug"), ("--preset", "debug"))


def fill(folder: Path, count: int, side: int = 32, caption: str | None = None) -> str:
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = torch.randint(256, (3, side, side + 8), generator=generator).to(torch.uint8)
        save_png(folder / f"{number:03}.png", image)
        if caption is not None:
            (folder / f"{number:03}.txt").write_text(f"{caption} {number}")
    return str(folder)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of a few thousand parameters, with made-up times of a step."""
    monkeypatch.setattr(start_plan, "LEVELS", (TINY,))
    monkeypatch.setattr(start_plan, "FEWEST_STEPS", 2)
    monkeypatch.setattr(start_plan, "try_level", lambda level, *_: Trial(level, 0.5, 0.0, 0.5, 0.0))


def test_what_a_folder_holds(tmp_path: Path) -> None:
    found = look(fill(tmp_path / "captioned", 50, side=40, caption="thing"))
    assert (found.count, found.side, found.names, found.max_bad) == (45, 40, 50, 0.01)
    assert str(found.train).endswith("?except=10") and str(found.val).endswith("?every=10")
    few = look(fill(tmp_path / "few", 12, caption="thing"))
    assert few.count == 12 and few.val is None and "nothing is held out" in " ".join(few.notes)
    part = look(f"{tmp_path / 'captioned'}?every=2")
    assert part.count == 25 and part.val is None and "?every or ?except" in " ".join(part.notes)
    fill(tmp_path / "split" / "train", 5, caption="thing")
    split = look(str(fill(tmp_path / "split" / "val", 2, caption="thing") and tmp_path / "split"))
    assert split.count == 5 and str(split.val).endswith("@val")


def test_without_captions_the_folders_name_the_pictures(tmp_path: Path) -> None:
    fill(tmp_path / "animals" / "cats", 3)
    fill(tmp_path / "animals" / "dogs", 3)
    found = look(str(tmp_path / "animals"))
    assert found.names == 2 and "'cats', 'dogs'" in " ".join(found.notes)
    alone = look(fill(tmp_path / "holiday", 4))
    assert alone.names == 1 and "all pictures are called 'holiday'" in " ".join(alone.notes)
    with pytest.raises(UserError, match="no column 'title'"):
        look(f"{tmp_path / 'holiday'}?caption=title")
    with pytest.raises(UserError, match="shapes' is endless: `unitok demo` trains on it"):
        look("shapes")


def test_broken_pictures_are_allowed_for(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pictures", 10, caption="thing")
    (tmp_path / "pictures" / "003.png").write_bytes(b"no picture")
    found = look(folder)
    assert found.max_bad == 0.22 and "left out: 1 of the 10" in " ".join(found.notes)


def test_lengths_fill_the_budget_and_stop_where_more_is_of_no_use() -> None:
    trial = Trial(TINY, tokenizer=0.5, encoding=0.0, generator=1.0, beside=0.0)
    assert lengths(trial, 10**6, 32, 1000) == (800, 600)
    capped = lengths(trial, 100, 10, 10**6)
    assert capped == (TOKENIZER_PASSES * 10, GENERATOR_PASSES * 10)
    tokenizer, generator = lengths(trial, 160, 32, 1000)
    assert generator == GENERATOR_PASSES * 160 // 32 and tokenizer == 1000, "the tokenizer gets what is left"
    assert lengths(trial, 10**6, 32, 0) == (20, 20)
    assert "expect little: 50 pictures" in expectations(50, (1000, 1000))[0]
    assert expectations(10**4, (1000, 1000)) == [] and "only begun" in expectations(10**4, (1000, 10))[0]


def test_a_trial_runs_the_commands_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    trial = start_plan.try_level(TINY, look(fill(tmp_path / "pictures", 8, caption="thing")), batch=3, seed=0)
    assert 0 < trial.tokenizer < 60 and 0 < trial.generator < 60 and trial.encoding >= 0 and trial.beside > 0
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == [], "torch makes that one, once a process"


@pytest.mark.usefixtures("tiny")
def test_a_dry_run_prints_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = fill(tmp_path / "pictures", 4)
    words = ["start", pictures, "--out", str(tmp_path / "out"), "--minutes", "10", "--dry_run", "true"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "unitok train tokenizer --preset debug" in said and "--tasks.image_to_text.share 0" in said
    assert "expect little: 4 pictures" in said and not (tmp_path / "out").exists()
    assert "--copies 10 --caption_suffix ', moved'" in said and "--augment.shift 3" in said
    assert main(["start", pictures, "--minutes", "0"]) == 2
    assert "--minutes is 0: choose a number above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_pictures_with_boxes_have_no_moved_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, 4)
    rows = [{"image": f"{number:03}.png", "named": ["a thing", [0, 0, 1, 1]], "caption": "a"} for number in range(4)]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["start", str(tmp_path / "records.jsonl"), "--minutes", "10", "--dry_run", "true"]) == 0
    said = capsys.readouterr().out
    assert "unitok encode" in said and "--copies" not in said and "moved" not in said


@pytest.mark.usefixtures("tiny")
def test_it_goes_on_with_its_plan_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["start", fill(tmp_path / "pictures", 40, caption="thing"), "--out", str(out), "--minutes", "0.05"]

    def interrupted(command: str, *rest: Any) -> None:
        run_step(command, *rest)
        if command == "encode":
            raise KeyboardInterrupt

    run_step = module.run_step
    monkeypatch.setattr(module, "run_step", interrupted)
    assert main(words) == 130
    plan = json.loads((out / "plan.json").read_text())
    tokenizer = (out / "tokenizer" / "model.safetensors").read_bytes()
    monkeypatch.setattr(module, "run_step", run_step)
    monkeypatch.setattr(start_plan, "try_level", lambda *_: pytest.fail("the plan is kept"))
    assert main([*words[:-1], "2"]) == 2
    assert "was begun with data" in capsys.readouterr().err
    assert main(words) == 0
    assert json.loads((out / "plan.json").read_text()) == plan
    assert (out / "tokenizer" / "model.safetensors").read_bytes() == tokenizer, "what was done is not done again"
    assert (out / "moved" / "codes.json").exists(), "copies are learned from too"
    report = json.loads((out / "report.json").read_text())
    assert {"tokenizer", "generation", "captioning"} <= report.keys() and "held out" in report["measured_on"]
    assert report["provenance"]["generation.fid"]["pictures"] == 4
    assert "Losses" in (out / "report.html").read_text()
    assert main(words) == 2
    assert "already holds a report" in capsys.readouterr().err
