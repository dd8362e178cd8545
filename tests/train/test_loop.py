"""The engine: exact accumulation, exact resume, guards."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.errors import UserError
from unitok.cli.main import main
from unitok.train import generator


def without_time(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in ("time", "images/s")} for entry in log]


def same_weights(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.usefixtures("figures")
def test_the_loss_falls_and_the_folder_is_complete(tmp_path: Path, run_toy: Any) -> None:
    outcome = run_toy(tmp_path / "out", steps=60, save_every=20)
    assert outcome.losses()[-1] < 0.7 * outcome.losses()[0]
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"run.json", "log.jsonl", "loss.png", "model.pt", "samples/step-00000060.png"} <= names
    assert {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()} == {"step-00000040", "step-00000060"}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["finished"] and record["steps"] == 60 and record["parameters"] == 192 * 8 * 2 + 8 + 192
    assert record["versions"]["torch"] == torch.__version__


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, run_toy: Any, toy_class: Any) -> None:
    runs = []
    for micro_batch in (8, 2, 1):
        toy = toy_class()
        toy.model[2].p = 0.0  # dropout draws per forward pass
        runs.append(run_toy(tmp_path / str(micro_batch), toy=toy, micro_batch=micro_batch))
    assert runs[0].toy.seen == runs[1].toy.seen == runs[2].toy.seen
    for other in runs[1:]:
        assert other.losses() == pytest.approx(runs[0].losses(), rel=1e-5)
        for mine, theirs in zip(runs[0].toy.model.parameters(), other.toy.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_equals_the_unbroken_run(tmp_path: Path, run_toy: Any, toy_class: Any, ema: float) -> None:
    """Stopped by SIGTERM in the middle of a log interval and of an epoch."""
    whole = run_toy(tmp_path / "whole", steps=20, log_every=4, optim={"ema": ema}, eval_every=5)

    stopped = toy_class()
    prepare = stopped.prepare

    def stop_in_step_11(records: Any, step: int) -> Any:
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return prepare(records, step)

    stopped.prepare = stop_in_step_11
    with pytest.raises(SystemExit) as left:
        run_toy(tmp_path / "out", toy=stopped, steps=20, log_every=4, optim={"ema": ema}, eval_every=5)
    assert left.value.code == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000010"]

    rest = run_toy(tmp_path / "out", steps=20, log_every=4, optim={"ema": ema}, eval_every=5, resume=True)
    assert rest.toy.seen == [name for name in whole.toy.seen if int(name.split(":")[0]) >= 10]
    assert without_time(rest.log) == without_time(whole.log)
    assert same_weights(rest.toy.model, whole.toy.model)
    averages = [torch.load(tmp_path / name / "model.pt") for name in ("out", "whole")]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_a_crash_between_checkpoints_logs_no_step_twice(tmp_path: Path, run_toy: Any, toy_class: Any) -> None:
    class Crash(Exception):
        pass

    crashing = toy_class()
    prepare = crashing.prepare

    def crash(records: Any, step: int) -> Any:
        if step == 8:
            raise Crash
        return prepare(records, step)

    crashing.prepare = crash
    with pytest.raises(Crash):
        run_toy(tmp_path / "out", toy=crashing, steps=10, save_every=5)
    with (tmp_path / "out" / "log.jsonl").open("a") as lines:
        lines.write('{"kind": "train", "st')
    rest = run_toy(tmp_path / "out", steps=10, save_every=5, resume=True)
    whole = run_toy(tmp_path / "whole", steps=10, save_every=5)
    assert without_time(rest.log) == without_time(whole.log)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_of_a_finished_run_changes_nothing(
    tmp_path: Path, run_toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_toy(tmp_path / "out")
    before = contents(tmp_path / "out")
    again = run_toy(tmp_path / "out", resume=True)
    assert again.toy.seen == [] and again.facts["numbers"] == first.facts["numbers"]
    assert contents(tmp_path / "out") == before
    assert "is finished after 6 steps: nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("save_every", [0, 4])
@pytest.mark.parametrize("moment", ["before the export", "after the export", "deleted later", "another model"])
def test_a_run_that_died_before_its_end_gets_its_model(
    tmp_path: Path, run_toy: Any, toy_class: Any, save_every: int, moment: str
) -> None:
    """What the newest checkpoint holds is what the folder holds, before anything says finished."""
    whole = run_toy(tmp_path / "whole", save_every=save_every, log_every=3)

    class Crash(Exception):
        pass

    crashing = toy_class()
    export = crashing.export

    def crash(folder: Path, model: Any) -> None:
        last = (folder / "checkpoints" / "step-00000006").exists()
        if not last or moment != "before the export":
            export(folder, model)
        if last:
            raise Crash

    out = tmp_path / "out"
    if moment in ("before the export", "after the export"):
        crashing.export = crash
        with pytest.raises(Crash):
            run_toy(out, toy=crashing, save_every=save_every, log_every=3)
        assert not json.loads((out / "run.json").read_text())["finished"]
    else:
        run_toy(out, save_every=save_every, log_every=3)
        (out / "model.pt").unlink()
        if moment == "another model":
            torch.save(toy_class().model.state_dict(), out / "model.pt")
    rest = run_toy(out, save_every=save_every, log_every=3, resume=True)
    models = [torch.load(folder / "model.pt") for folder in (out, tmp_path / "whole")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    record = json.loads((out / "run.json").read_text())
    assert record["finished"] and record["steps"] == 6
    assert without_time([rest.facts["numbers"]]) == without_time([whole.facts["numbers"]])


@pytest.mark.parametrize("left", [(), ("checkpoints",), ("checkpoints", "samples"), (".run.json.99999999.tmp",)])
def test_a_run_killed_in_its_first_second_goes_on(tmp_path: Path, run_toy: Any, left: tuple[str, ...]) -> None:
    for name in left:
        (tmp_path / "out" / name).mkdir(parents=True) if "." not in name else None
    if left and left[0].startswith("."):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / left[0]).write_text("{")
    assert run_toy(tmp_path / "out", resume=True).facts["steps"] == 6


def test_fewer_steps_than_are_done_are_said(tmp_path: Path, run_toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy(tmp_path / "out", steps=10)
    assert run_toy(tmp_path / "out", steps=5, resume=True).facts["steps"] == 10
    assert "is finished after 10 steps, more than run.steps 5: nothing to do" in capsys.readouterr().err


def test_the_time_of_all_processes_counts(tmp_path: Path, run_toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        clock = itertools.count(0, 1000)
        patch.setattr("unitok.train.loop.time.perf_counter", lambda: next(clock))
        first = run_toy(tmp_path / "out", steps=5, save_every=5).facts["seconds"]
    again = run_toy(tmp_path / "out", steps=10, save_every=5, resume=True).facts["seconds"]
    assert first >= 1000 and first / 2 <= again < first + 100, "all but what came behind the last checkpoint"


def test_unreadable_pictures_are_counted_over_a_resume(tmp_path: Path, run_toy: Any, pictures: Any) -> None:
    broken = pictures(broken=(7, 20, 33))
    whole = run_toy(tmp_path / "whole", broken, max_bad=0.5, steps=12, save_every=6)
    assert whole.facts["unreadable_pictures"] == 3
    run_toy(tmp_path / "out", broken, max_bad=0.5, steps=6)
    assert run_toy(tmp_path / "out", broken, max_bad=0.5, steps=12, resume=True).facts["unreadable_pictures"] == 3


def test_a_log_that_is_not_text_does_not_stop_a_resume(tmp_path: Path, run_toy: Any) -> None:
    run_toy(tmp_path / "out", steps=5)
    with (tmp_path / "out" / "log.jsonl").open("ab") as lines:
        lines.write(b'\xff\xfe[1]\n3\n{"step": "x"}\n' + b"[" * 100_000 + b"\n")
    log = run_toy(tmp_path / "out", steps=10, resume=True).log
    assert [entry["step"] for entry in log if entry["kind"] == "train"] == [*range(1, 11)]


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(
    tmp_path: Path, run_toy: Any, toy_class: Any, pictures: Any, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`late` is the way of GPUs: the optimizer skips on the device, and the number is read one step later."""
    from unitok.train import loop

    guard = loop.Guard
    monkeypatch.setattr(loop, "Guard", lambda optimizers, world, late: guard(optimizers, world, late=wanted))
    wanted = late
    good = run_toy(tmp_path / "good", steps=20)
    place = next(i for i, name in enumerate(good.toy.seen) if name.startswith("3:"))
    index = int(re.findall(r":(\d+)", good.toy.seen[place + 5])[0])

    toy = toy_class()
    before: dict[int, list[torch.Tensor]] = {}
    prepare = toy.prepare

    def watch(records: Any, step: int) -> Any:
        before.setdefault(step, [weight.detach().clone() for weight in toy.model.parameters()])
        return prepare(records, step)

    toy.prepare = watch
    with pytest.raises(UserError, match=rf"step 4: the loss is nan.*poison-{index}\.png") as caught:
        run_toy(tmp_path / "out", pictures(poisoned=(index,)), toy=toy, steps=20, micro_batch=4, log_every=50)
    assert str(caught.value).count(".png") == 4  # the micro-batch alone, not the step
    assert all(torch.equal(a, b) for a, b in zip(before[3], toy.model.parameters(), strict=True))


def test_broken_pictures_are_left_out_and_too_many_stop_the_run(tmp_path: Path, run_toy: Any, pictures: Any) -> None:
    outcome = run_toy(tmp_path / "one", pictures(broken=(7,)), max_bad=0.05, steps=12, micro_batch=1)
    assert len(outcome.toy.seen) == 96 - 2  # two epochs
    with pytest.raises(UserError, match=r"3 of 48 pictures cannot be used.*torn file"):
        run_toy(tmp_path / "three", pictures(broken=(1, 2, 3)), max_bad=0.05, steps=12)
    advised = run_toy(tmp_path / "three", pictures(broken=(1, 2, 3)), max_bad=0.1, steps=12, resume=True)
    assert advised.facts["finished"] and advised.facts["unreadable_pictures"] == 3
    missing = pictures()
    missing.left_out = [("a.heic", "is HEIC")]
    with pytest.raises(UserError, match=r"1 of 49 pictures cannot be used.*a.heic: is HEIC"):
        run_toy(tmp_path / "left out", missing, max_bad=0.01, steps=12)


def test_a_step_without_a_readable_picture_is_skipped(tmp_path: Path, run_toy: Any, pictures: Any) -> None:
    outcome = run_toy(tmp_path / "out", pictures(broken=(7,)), max_bad=1, steps=48, batch_size=1, log_every=12)
    assert len(outcome.toy.seen) == 47 and outcome.facts["steps"] == 48


def test_folders_that_are_refused(tmp_path: Path, run_toy: Any) -> None:
    run_toy(tmp_path / "out", steps=1)
    with pytest.raises(UserError, match=r"already holds a run: add --resume .* or choose another folder"):
        run_toy(tmp_path / "out")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"else is not empty: choose another folder"):
        run_toy(tmp_path / "else")
    with pytest.raises(UserError, match=r"else holds no run to resume"):
        run_toy(tmp_path / "else", resume=True)
    with pytest.raises(UserError, match=r"letter.txt is a file"):
        run_toy(tmp_path / "else" / "letter.txt")
    with pytest.raises(UserError, match=r"optim.lr is 0.5, but the run in .* was started with None"):
        run_toy(tmp_path / "out", resume=True, optim={"lr": 0.5})
    with pytest.raises(UserError, match=r"(?s)run.batch_size is 4, but .*run.seed is 3, but"):
        run_toy(tmp_path / "out", resume=True, batch_size=4, seed=3)
    assert run_toy(tmp_path / "out", resume=True, steps=3, log_every=2).facts["steps"] == 3
    assert run_toy(tmp_path / "fresh", resume=True, steps=1).facts["steps"] == 1


def test_sizes_that_do_not_divide(tmp_path: Path, run_toy: Any) -> None:
    with pytest.raises(UserError, match=r"run.micro_batch is 3: choose a divisor of 8"):
        run_toy(tmp_path / "out", micro_batch=3)
    assert not (tmp_path / "out").exists()


def test_other_data_are_refused_and_another_path_to_the_same_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name, shade in (("one", 10), ("two", 200)):
        (tmp_path / name).mkdir()
        for index in range(8):
            Image.new("RGB", (32, 32), (shade, index * 20, 0)).save(tmp_path / name / f"{index}.png")
            (tmp_path / name / f"{index}.txt").write_text("a red square")
    out = tmp_path / "out"
    words = ["train", "tokenizer", "--preset", "debug", "--run.batch_size", "4", "--out", str(out)]
    words += ["--run.device", "cpu", "--run.precision", "fp32"]
    assert main([*words, "--data", str(tmp_path / "one"), "--run.steps", "1"]) == 0
    again = [*words, "--run.steps", "2", "--resume", "--data"]
    assert main([*again, str(tmp_path / "two")]) == 2
    assert "holds other pictures or captions than those that the run" in capsys.readouterr().err
    assert main([*again, f"{tmp_path}/two/../one/"]) == 0

    codes = ["encode", "--image_tokenizer", str(out), "--out", str(tmp_path / "codes"), "--data"]
    assert main([*codes, str(tmp_path / "one")]) == 0
    assert main([*codes, f"{tmp_path}/two/../one/"]) == 0
    capsys.readouterr()
    assert main([*codes, str(tmp_path / "two")]) == 2
    assert "holds codes of other pictures" in capsys.readouterr().err


@pytest.mark.usefixtures("figures")
def test_nothing_is_compiled_for_what_is_drawn_on_the_way(
    tmp_path: Path, train_small_generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []
    drawn: list[int] = []
    plain = torch.nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(drawing.get("now", 0))
        return graph.forward

    drawing: dict[str, int] = {}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: plain(self, backend=backend))
    for name in ("draw", "perform"):
        work = getattr(generator, name)

        def marked(*args: Any, _work: Any = work, **named: Any) -> Any:
            drawing["now"] = 1
            drawn.append(1)
            found = _work(*args, **named)
            drawing["now"] = 0
            return found

        monkeypatch.setattr(generator, name, marked)
    settings = {"steps": 2, "compile": True, "sample_every": 1, "eval_every": 1, "eval_pictures": 4}
    train_small_generator(tmp_path / "out", val_data="shapes@val?limit=4", **settings)
    assert graphs and not any(graphs) and len(drawn) >= 4
