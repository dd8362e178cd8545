"""A whole protocol: the same report whether it ran through, went on, or was shared, and what it says."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from processes import pair
from safetensors.torch import load_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from tokenizers_vq.storage.files import temporary_name
from unitok.cli.main import main
from unitok.data.open import open_data
from unitok.data.shapes.dataset import ShapesDataset
from unitok.eval import suite
from unitok.eval.commands import eval_clipscore, eval_compare, eval_fid, eval_generator
from unitok.eval.metrics.frechet import frechet_distance
from unitok.eval.metrics.memorisation import measure_memorisation, nearest
from unitok.eval.networks.features import load_features
from unitok.eval.provenance import difference
from unitok.eval.report import Number
from unitok.eval.reports.output import read_items
from unitok.eval.suite_commands import eval_suite
from unitok.eval.suite_report import mean_of_rounds
from unitok.model import UniTok
from unitok.sample.pipeline import draw
from unitok.sampling import GivenSettings, SampleSettings

DATA, COUNT = "shapes@val", 8


@pytest.fixture(scope="module")
def model(make_model: Callable[..., UniTok], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model("masked_token").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "SHARD", 3)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process without interruption."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SHARD", 3)
        start(model, out)
    return out


def start(model: Path, out: Path, **options: Any) -> None:
    settings: dict[str, Any] = {"guidances": [2.5, 1.0], "seeds": 2, "train_data": "shapes?limit=20", **options}
    eval_suite(model, DATA, out, limit=COUNT, **settings)


def contents(out: Path) -> dict[str, object]:
    """The report without what changes from run to run, and the bytes of all pictures and figures."""
    report = json.loads((out / "report.json").read_text())
    values = {key: value for key, value in report.items() if key not in ("seconds", "created")}
    files: dict[str, object] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.png")}
    return {**files, "report": values, "items": (out / "items.jsonl").read_text()}


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


# --- one protocol, however it was run --------------------------------------------------------------------------------


def test_interrupted_run_goes_on(model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[int] = []

    def until(most: int) -> None:
        def counted(model: UniTok, captions: list[str], *args: Any, **options: Any) -> torch.Tensor:
            if len(draws) == most:
                raise KeyboardInterrupt
            draws.append(len(captions))
            return draw(model, captions, *args, **options)

        monkeypatch.setattr(suite, "draw", counted)

    until(4)
    with pytest.raises(KeyboardInterrupt):
        start(model, tmp_path)
    until(-1)
    start(model, tmp_path)
    assert sum(draws) == 4 * COUNT, "nothing is drawn twice"
    assert contents(tmp_path) == contents(whole)
    before = len(draws)
    (tmp_path / "report.json").unlink()
    start(model, tmp_path)
    assert len(draws) == before and contents(tmp_path) == contents(whole), "measured again from what is there"


SMALL: dict[str, Any] = {"guidances": [1.0], "seeds": 1, "train_data": None}


def shared(model: Path, out: Path, drawn: Path, dies: int | None = None) -> list[int]:
    """Runs the suite in two processes, and gives their exit codes. In `drawn` each leaves a file for every batch that
    it draws; process `dies` is killed before its first one."""

    def work(rank: int) -> int:
        def counted(*args: Any, **more: Any) -> torch.Tensor:
            if rank == dies:
                temporary_name(out / "half.safetensors").touch()
                (out / "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while dies is not None and not (out / "dead").exists():
                time.sleep(0.01)
            pictures = draw(*args, **more)
            (drawn / f"{rank}-{len(list(drawn.iterdir()))}").touch()
            return pictures

        suite.draw = counted  # type: ignore[attr-defined]  # of a forked process
        start(model, out, **SMALL)
        return 0

    return pair(work, timeout=60)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dies", [0, 1])
def test_processes_share_the_work_and_one_that_dies_loses_nothing(model: Path, tmp_path: Path, dies: int) -> None:
    out, drawn = tmp_path / "out", tmp_path / "drawn"
    drawn.mkdir()
    codes = shared(model, out, drawn, dies)
    made = [path.name for path in drawn.iterdir()]
    assert codes[1 - dies] == 0 and len(made) == 3, "each of three shards is drawn once, also that of who died"
    assert codes[dies] == -signal.SIGKILL and all(name.startswith(str(1 - dies)) for name in made)
    assert (out / "report.json").exists() == (dies == 1)
    if dies == 0:  # who writes the report: the same command again
        start(model, out, **SMALL)
    start(model, tmp_path / "whole", **SMALL)
    assert contents(out) == contents(tmp_path / "whole")
    assert not any(path.name.startswith(".") for path in out.rglob("*")), "nothing is left of the sharing"


@pytest.mark.timeout(120)
def test_processes_refuse_together(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refused(how: Callable[[int], dict[str, Any]]) -> str:
        capfd.readouterr()

        def work(rank: int) -> int:
            given: dict[str, Any] = {"data": DATA, "limit": COUNT, **how(rank)}
            words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
            return main(["eval", "suite", "--model", str(model), "--out", str(tmp_path / "out"), *words])

        codes, said = pair(work, timeout=60), capfd.readouterr().err
        assert codes == [2, 2] and said.count("error:") == 1 and "Traceback" not in said, said
        assert not (tmp_path / "out").exists()
        return said

    assert "--limit is 0: choose 1 or more" in refused(lambda rank: {"limit": 0})
    assert "processes 0 and 1 see other models, data" in refused(lambda rank: {"data": f"{DATA}?seed={rank}"})
    broken = {"data": ["nowhere/", DATA]}
    assert "nowhere/" in refused(lambda rank: {"data": broken["data"][1 - rank]}), "one of them alone sees it"


# --- what the report says --------------------------------------------------------------------------------------------


def test_report(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(whole)
    assert list(report["sweep"]["fid"]) == ["1", "2.5"], "ascending, however they were given"
    for key, better in {"fid": min, "clipscore": max}.items():
        values = {1.0: report["guidance_1"][key], 2.5: report["guidance_2_5"][key]}
        assert list(report["sweep"][key].values()) == list(values.values())
        assert values[report[f"best_guidance_by_{key}"]] == better(values.values())
    one, two = (report["provenance"][f"guidance_{scale}.fid"] for scale in ("1", "2_5"))
    assert {name.count(".") for name in report["provenance"]} == {1}, "section.number"
    assert difference(one, two) is None and one["settings"] != two["settings"]
    assert one["seeds"] == 2 and one["pictures"] == COUNT and one["std_over_seeds"] > 0
    assert {"nearest_drawn", "nearest_real", "close"} == report["memorisation"].keys()
    page = (whole / "report.html").read_text()
    for title in ("FID against CLIPScore", "Right by task", "Best by CLIPScore", "Worst by CLIPScore", "nearest pairs"):
        assert title in page
    assert all(Image.open(whole / name).width > 300 for name in ("sweep.png", "tasks.png", "nearest.png"))


def test_rounds_are_those_of_eval_generator_and_their_folders_are_data(
    model: Path, whole: Path, tmp_path: Path
) -> None:
    """The mean of two measurements with other seeds; any tool finds the same in the pictures that were kept."""
    first, second = tmp_path / "first", tmp_path / "second"
    for number, out in enumerate((first, second)):
        eval_generator(
            model, DATA, out, limit=COUNT, sampling=GivenSettings(guidance=1.0), seed=number * COUNT, captioning=False
        )
    both = [report_of(out)["generation"] for out in (first, second)]
    found = report_of(whole)["guidance_1"]
    for key in ("fid", "clipscore", "precision", "scene_accuracy", "cmmd"):
        assert found[key] == pytest.approx((both[0][key] + both[1][key]) / 2, rel=1e-4, abs=1e-6)
    spread = report_of(whole)["provenance"]["guidance_1.fid"]["std_over_seeds"]
    assert spread == pytest.approx(abs(both[0]["fid"] - both[1]["fid"]) / 2**0.5, rel=1e-3)
    eval_fid(str(whole / "guidance_1" / "round_1"), f"{DATA}?limit={COUNT}", tmp_path / "fid")
    assert report_of(tmp_path / "fid")["fid"]["fid"] == pytest.approx(both[1]["fid"], rel=1e-4)
    eval_clipscore(str(whole / "guidance_1" / "round_1"), tmp_path / "pairs")
    assert report_of(tmp_path / "pairs")["pairs"]["clipscore"] == pytest.approx(both[1]["clipscore"], rel=1e-4)
    items = read_items(whole, "guidance_1")
    assert [item["seed"] for item in items] == list(range(2 * COUNT))
    assert [item["caption"] for item in items[:COUNT]] == [item["caption"] for item in items[COUNT:]]


def test_two_suites_are_compared(model: Path, whole: Path, make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    """Kept features change nothing else, and give FID an interval: of the mean over the seeds, as it is reported."""
    for name, found in (("a", model), ("b", tmp_path / "other")):
        if name == "b":
            make_model("masked_token", seed=1).save_pretrained(found)
        start(found, tmp_path / name, save_features=True)
    assert contents(tmp_path / "a") == contents(whole)
    for name in ("a", "b"):
        features, found = load_file(tmp_path / name / "features.safetensors"), report_of(tmp_path / name)
        for scale in ("guidance_1", "guidance_2_5"):
            drawn, real = features[f"{scale}.drawn"], features[f"{scale}.real"]
            fids = [frechet_distance(one, real) for one in drawn.split(COUNT)]
            assert len(fids) == 2 and sum(fids) / 2 == pytest.approx(found[scale]["fid"], rel=1e-6)
    eval_compare([tmp_path / "a", tmp_path / "b"], tmp_path / "compare", resamples=100)
    compared = report_of(tmp_path / "compare")
    sections = {key.split(".")[0] for key in compared["values"]}
    assert sections == {"guidance_1", "guidance_2_5", "memorisation"}, "the sweep only repeats the scales"
    for scale in ("guidance_1", "guidance_2_5"):
        difference = compared["differences_1"][f"{scale}.fid"]
        assert difference["from"] < difference["to"]
        fids = compared["values"][f"{scale}.fid"]
        assert difference["difference"] == pytest.approx(fids["b"] - fids["a"])
        origin = compared["provenance"][f"differences_1.{scale}.fid"]
        assert origin["paired"] == "True" and origin["label"].startswith(f"{scale}: FID"), "told apart"


def test_one_seed_and_the_models_own_guidance(model: Path, tmp_path: Path) -> None:
    start(model, tmp_path, guidances=None, seeds=1, train_data=None)
    report = report_of(tmp_path)
    assert "sweep" not in report and "memorisation" not in report and "std_over_seeds" not in str(report)
    assert report["best_guidance_by_fid"] == SampleSettings().guidance


def test_long_captions_are_cut_and_said_before_anything_is_drawn(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    for index in range(5):
        save_png(data / f"{index}.png", torch.zeros(3, 32, 32, dtype=torch.uint8))
        (data / f"{index}.txt").write_text("word " * 99 if index == 2 else f"a red circle {index}")
    said: list[str] = []
    work = suite.Suite.work

    def watched(self: suite.Suite, *args: Any) -> None:
        said.append(capsys.readouterr().err)
        work(self, *args)

    monkeypatch.setattr(suite.Suite, "work", watched)
    eval_suite(model, str(data), tmp_path / "out")
    line = "captions longer than the 48 tokens that the model reads (text_length): 1;"
    assert line in said[0]
    assert line in " ".join(report_of(tmp_path / "out")["warnings"])
    assert len(list((tmp_path / "out").rglob("round_0/*.png"))) == 5


def test_categories(model: Path, tmp_path: Path) -> None:
    """CLIPScore by a column of the data."""
    lines = []
    dataset = ShapesDataset(split="val")
    (tmp_path / "data").mkdir()
    for index in range(6):
        record = dataset[index]
        assert record.image is not None
        save_png(tmp_path / "data" / f"{index}.png", record.image)
        kind = ["even", "odd"][index % 2]
        lines.append({"file_name": f"{index}.png", "caption": f"drawing {index}", "kind": kind, "empty": ""})
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    eval_suite(model, str(tmp_path / "data"), tmp_path / "out", category="kind", guidances=[1.0])
    report, items = report_of(tmp_path / "out"), read_items(tmp_path / "out", "guidance_1")
    odd = [float(item["clipscore"] or 0) for item in items[1::2]]
    assert report["guidance_1"]["clipscore_by_category"].keys() == {"even", "odd"}
    assert report["guidance_1"]["clipscore_by_category"]["odd"] == pytest.approx(max(0, sum(odd) / 3))
    assert "CLIPScore by category" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(UserError, match="the column of --category is empty in every record: choose another"):
        eval_suite(model, str(tmp_path / "data"), tmp_path / "none", category="empty")
    with pytest.raises(UserError, match="has no column 'colour' for the label"):
        eval_suite(model, str(tmp_path / "data"), tmp_path / "none", category="colour")


def test_mean_and_spread() -> None:
    rounds = [
        {
            "fid": Number("FID", fid, "", "lower", {"set_sha256": str(fid)}),
            "real": Number("real", 70.0),
            "tasks": Number("tasks", {"a": share, "b": 1.0}, "%", "higher"),
        }
        for fid, share in ((1.0, 0.2), (3.0, 0.6))
    ]
    found = mean_of_rounds(rounds, ["1", "2"])
    assert found["fid"].value == 2 and found["fid"].show(2.0) == "2.00 \u00b1 1.41"
    assert found["fid"].provenance["set_sha256"] not in ("1.0", "3.0")
    assert found["tasks"].value == {"a": pytest.approx(0.4), "b": 1.0}
    assert found["tasks"].show(0.4, "a") == "40.0 \u00b1 28.3 %"
    assert found["real"].show(70.0) == "70.00", "what is not drawn has no spread over seeds"


# --- copies ----------------------------------------------------------------------------------------------------------


def test_nearest_is_found_in_any_batches() -> None:
    torch.manual_seed(0)
    known, queries = torch.randn(50, 8), torch.randn(7, 8)
    queries[2] = 3 * known[41]
    for size in (50, 6, 1):
        cosine, place = nearest(queries, known.split(size))
        assert cosine[2] == pytest.approx(1) and place[2] == 41
        assert torch.equal(place, F.cosine_similarity(queries[:, None], known[None], dim=2).argmax(1))


def test_copies_of_training_pictures_are_found() -> None:
    network = load_features("embedded")
    train, held_out = open_data("shapes?limit=60", (32, 32)), ShapesDataset(split="val", length=300)
    real = torch.stack([image for i in range(100) if (image := held_out[i].image) is not None])
    copies = torch.stack([image for i in (3, 17) if (image := train[i].image) is not None])
    others = torch.stack([image for i in range(200, 202) if (image := held_out[i].image) is not None])
    drawn = torch.cat([copies, others])
    section = measure_memorisation(
        network.features(drawn), network.features(real), train, network, show=lambda i: (drawn[i], str(i)), facts={}
    )
    assert section.numbers["close"].value == 0.5 and section.warnings == []
    best = section.figures[0].items[:2]
    assert {item.text for item in best} == {"0", "1"}
    assert all(torch.equal(*item.pictures) for item in best), "the training picture itself stands beside its copy"
    section = measure_memorisation(
        network.features(others), network.features(copies), train, network, show=lambda i: (drawn[i], ""), facts={}
    )
    assert "100% of the data's own pictures are also training pictures" in section.warnings[0]
    assert "2 pictures of the data are too few" in section.warnings[1]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "protocol.json").write_text((whole / "protocol.json").read_text())
    words = ["eval", "suite", "--model", str(model), "--data", DATA, "--limit", str(COUNT), "--guidances", "[1, 2.5]"]
    for argv, message in (
        (["--seeds", "3", "--out", str(begun)], "begun with another protocol; there and now: seeds 2 and 3: choose"),
        (["--seeds", "2", "--seed", "1", "--out", str(begun)], "there and now: seed 0 and 1: choose another folder"),
        (["--seeds", "2", "--data", "shapes@val?seed=1", "--out", str(begun)], "data_sha256"),
        (["--seeds", "2", "--guidances", "[1]", "--out", str(begun)], "guidances 1, 2.5 and 1: choose"),
        (["--out", str(whole)], "already holds a report"),
        (["--seeds", "0"], "--seeds is 0: choose 1 or more"),
        (["--guidances", "[]"], "--guidances is empty"),
        (["--guidances", "[1, 1]"], "--guidances is [1.0, 1.0]: give each scale only once"),
        (["--guidances", "[-1]"], "--guidances is [-1.0]: choose scales from 0 to 1000"),
        (["--limit", "3"], "gives 3 captions: measuring needs 4 or more"),
        (["--category", "kind"], "shapes takes no 'label', only size, seed, limit"),
        (["--train_data", str(tmp_path / "none")], "none"),
    ):
        assert main([*words, "--out", str(tmp_path / "other"), *argv]) == 2, argv
        error = capsys.readouterr().err.strip()
        assert message in error and error.count("error: ") == 1 and "\n" not in error.split("error: ")[1], argv


def test_what_is_lost_is_named(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seeds": 1, "guidances": [1.0], "train_data": None}
    start(model, tmp_path, **options)
    (tmp_path / "report.json").unlink()
    (tmp_path / "guidance_1" / "round_0" / "000002.png").unlink()
    with pytest.raises(
        UserError, match=r"000002\.png cannot be read .* remove .*shards and run the same command again"
    ):
        start(model, tmp_path, **options)
    next((tmp_path / "shards").glob("data_*")).write_bytes(b"")
    with pytest.raises(UserError, match=r"data_.*safetensors cannot be read .* remove it and run the same command"):
        start(model, tmp_path, **options)
