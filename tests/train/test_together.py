"""What several processes do as one: say once what is wrong, and train the same model in shards, whatever it is made of.

The processes are forked, and do several things one after another: torch is imported once.
"""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from language_models import save
from processes import Work, pair
from published import tiny
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tokenizers_vq.images import save_png
from unitok.cli.main import main
from unitok.data.addresses import cache
from unitok.importing import import_generator
from unitok.train.checkpoint import all_checkpoints
from unitok.train.generator import GeneratorTrainee
from unitok.train.log import read_log
from unitok.train.parallel import replicas, shards  # noqa: F401 (shards: before the processes are forked)

SMALL: dict[str, Any] = {
    "data": "shapes",
    "trunk": {"width": 32, "depth": 2, "heads": 2},
    "text_vocabulary": 300,
    "optim": {"lr": 2e-3, "warmup_steps": 2},
    "run": {"steps": 2, "batch_size": 8, "log_every": 1, "device": "cpu", "precision": "fp32", "threads": 1},
}
GENERATOR = ["train", "generator", "--config"]
DRAWING = {"image_to_text": {"share": 0}, "text_only": {"share": 0}}


def written(path: Path, **values: Any) -> list[str]:
    """The words of a run, from a file. A value of None leaves out that of SMALL."""
    values = {**SMALL, "out": str(path.with_suffix("")), **values}
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return [*GENERATOR, str(path)]


def ends_with(expected: int, words: Callable[[int], list[str]]) -> Work:
    """A command that ends so in every process; the next one follows."""

    def work(rank: int) -> int:
        try:
            code = main(words(rank))
        except SystemExit as end:
            code = int(str(end.code))
        return 0 if code == expected else 90

    return work


@pytest.mark.timeout(300)
def test_what_is_wrong_is_said_by_one_process(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("FIRST_PAUSE", 0.01), ("PATIENCE", 0.02)):
        monkeypatch.setattr(cache, name, seconds)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    images = {"image_tokenizer": str(tiny_tokenizer_folder)}
    tokenizer = ["train", "tokenizer", "--data", "shapes", "--preset", "debug", "--out", str(tmp_path / "j")]
    cases: list[tuple[str, list[str]]] = [
        ("stage 2 has an unknown key 'lr'", written(tmp_path / "a.yaml", **images, stages=[{}, {"lr": 3}])),
        ("--trainable 'trnk.*' matches", written(tmp_path / "b.yaml", **images, stages=[{}, {"trainable": "trnk.*"}])),
        ("lora.rank tunes a model that has learned", written(tmp_path / "c.yaml", **images, lora={"rank": 4})),
        ("draws codes of an image tokenizer: give its folder", written(tmp_path / "d.yaml")),
        ("model that has learned: give its folder", written(tmp_path / "e.yaml", **images, trainable="trunk.*")),
        ("nowhere", written(tmp_path / "f.yaml", **images, reader={"encoder": f"hf:{tmp_path}/nowhere"})),
        ("run.steps is 0: choose 1 or more", written(tmp_path / "g.yaml", run={"steps": 0})),
        ("run.batch_size is 'x'", [*written(tmp_path / "h.yaml"), "--run.batch_size", "x"]),
        ("part of a model that has learned", [*tokenizer, "--trainable", "decoder.*"]),
        ("shards the blocks of a generator: choose ddp", [*tokenizer, "--run.parallel", "fsdp"]),
        ("/a.tar could not be brought in", written(tmp_path / "l.yaml", **images, data="http://127.0.0.1:9/a.tar")),
    ]
    (tmp_path / "other.yaml").write_text("no such: 1\n")
    works = [ends_with(2, lambda rank, words=words: words) for _, words in cases]
    good = written(tmp_path / "k.yaml", **images)
    works.append(ends_with(2, lambda rank: [good, [*GENERATOR, str(tmp_path / "other.yaml")]][rank]))
    cases.append(("no such", []))
    capfd.readouterr()
    codes = pair(*works, timeout=250)
    said = capfd.readouterr().err
    assert codes == [0, 0] and "Traceback" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == len(cases), said
    for line, (message, _) in zip(lines, cases, strict=True):
        assert message in line
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing is left behind"


def alike(one: Path, other: Path, losses: float, weights: float) -> None:
    """Two runs have the same losses, to a relative difference, and weights that differ by no more."""
    mine, theirs = ([e["loss"] for e in read_log(out / "log.jsonl") if e["kind"] == "train"] for out in (one, other))
    assert mine and mine == pytest.approx(theirs, rel=losses)
    name = "model.safetensors" if (one / "model.safetensors").exists() else "adapter.safetensors"
    a, b = (load_file(out / name) for out in (one, other))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) <= weights


def pictures(folder: Path, number: int, side: int = 32, caption: str = "picture {}") -> str:
    """Captioned noise."""
    folder.mkdir(parents=True)
    for index in range(number):
        draw = torch.Generator().manual_seed(index)
        save_png(folder / f"{index:02}.png", torch.randint(256, (3, side, side), generator=draw).to(torch.uint8))
        (folder / f"{index:02}.txt").write_text(caption.format(index))
    return str(folder)


def leaves_out(folder: Path, number: int) -> str:
    """Captioned pictures, of which every fifth is torn."""
    found = pictures(folder, number)
    for index in range(0, number, 5):
        (folder / f"{index:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return found


def published(folder: Path) -> dict[str, Any]:
    """A tiny VAR that is trained on: its captions are classes."""
    data = pictures(folder / "data", 8, side=16, caption="{}")
    torch.save(tiny.var_weights(False), folder / "x.pt")
    import_generator("var", folder / "x.pt", tiny.tokenizer(tiny.SIDES)).save_pretrained(folder / "start")
    own = dict.fromkeys(("trunk", "text_vocabulary", "image_tokenizer"))
    return {**own, "init": str(folder / "start"), "data": data}


@pytest.mark.timeout(600)
def test_shards_of_whatever_a_model_is_made_of(
    tmp_path: Path, tiny_tokenizer_folder: Path, scaled_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A language model that reads pictures, stages and a LoRA, bf16, micro-batches without a picture, maps drawn as by
    VAR, a published model that is trained on: two processes in shards against one."""
    images = {"image_tokenizer": str(tiny_tokenizer_folder)}
    save("llama", tmp_path / "llama", tie_word_embeddings=False, max_position_embeddings=2048)
    torn = {"data": leaves_out(tmp_path / "torn", 20), "objective": "masked_token"}
    steps = SMALL["run"]
    near = {"bf16-{}": (1e-3, 6e-3)}  # two steps of AdamW, if a gradient near zero points the other way
    kinds: dict[str, dict[str, Any]] = {
        "llama": {"trunk": f"hf:{tmp_path}/llama", "reader": {"encoder": "latents", "connector": "mlp"}},
        "stages": {"stages": [{"run": {"steps": 1}}, {"lora": {"rank": 2}, "run": {"steps": 2}}]},
        "bf16": {"run": {**steps, "precision": "bf16"}},
        "torn": {**torn, "run": {**steps, "steps": 3, "micro_batch": 1, "max_bad": 0.5}},
        "var": {"objective": "var", "image_tokenizer": str(scaled_tokenizer_folder)},
        "published": {**published(tmp_path / "published"), "tasks": DRAWING},
    }

    def run(kind: str, processes: str, *more: str) -> list[str]:
        return [*written(tmp_path / f"{kind}-{processes}.yaml", **{**images, **kinds[kind]}), *more]

    for kind in kinds:
        assert main(run(kind, "one")) == 0
    capfd.readouterr()
    # Written here: two processes that write a file at once may read half of it.
    two = [run(kind, "two", "--run.parallel", "fsdp") for kind in kinds]
    works = [ends_with(0, lambda rank, words=words: words) for words in two]
    codes = pair(*works, timeout=500)
    said = capfd.readouterr().err
    assert codes == [0, 0] and said.count("training on 2 x cpu, fsdp") == 7, said
    for place in (*(f"{kind}-{{}}" for kind in kinds if kind != "stages"), "stages-{}/stage1", "stages-{}/stage2"):
        alike(*(tmp_path / place.format(processes) for processes in ("one", "two")), *near.get(place, (1e-5, 1e-5)))


@pytest.mark.timeout(300)
def test_a_signal_and_a_loss_of_one_process_concern_all(
    tmp_path: Path, tiny_tokenizer_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM to the second process in its third step: both save together, and go on to what one process learns. Cut
    shards in every checkpoint: one line, and both end. So they do where a loss is not finite in the second process
    alone, which says so."""
    values = {"image_tokenizer": str(tiny_tokenizer_folder), "run": {**SMALL["run"], "steps": 4}}
    one, words, broken = (written(tmp_path / f"{name}.yaml", **values) for name in ("one", "two", "broken"))
    sharded = [*words, "--run.parallel", "fsdp"]
    prepare, loss = GeneratorTrainee.prepare, GeneratorTrainee.loss

    def and_stop(self: GeneratorTrainee, records: Any, step: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return prepare(self, records, step)

    def not_finite(self: GeneratorTrainee, forward: Any, data: Any, totals: torch.Tensor, last: bool) -> Any:
        value, sums = loss(self, forward, data, totals, last)
        return value + math.inf, sums  # its gradient is finite

    def changed(name: str, change: Any, work: Work) -> Work:
        def changed_in_the_second(rank: int) -> int:
            with pytest.MonkeyPatch.context() as patch:
                if rank == 1:
                    patch.setattr(GeneratorTrainee, name, change)
                return int(work(rank))

        return changed_in_the_second

    def cut(rank: int) -> None:
        for checkpoint in all_checkpoints(tmp_path / "two" / "checkpoints") if rank == 0 else ():
            shard = next(checkpoint.glob("model/shard-00002-*"))
            shard.write_bytes(shard.read_bytes()[:-40])

    assert main(one) == 0
    capfd.readouterr()
    codes = pair(
        changed("prepare", and_stop, ends_with(143, lambda rank: sharded)),
        lambda rank: 0 if len(all_checkpoints(tmp_path / "two" / "checkpoints")) == 1 else 91,
        ends_with(0, lambda rank: [*sharded, "--resume"]),
        cut,
        ends_with(2, lambda rank: [*sharded, "--resume"]),
        changed("loss", not_finite, ends_with(2, lambda rank: broken)),
    )
    said = capfd.readouterr().err
    assert codes == [0, 0], said
    assert said.count("stopped by a signal after step 2 of 4, saved in") == 1
    errors = [line for line in said.splitlines() if "error:" in line]
    assert len(errors) == 2 and "and no other checkpoint in" in errors[0] and "is damaged" in errors[0], said
    assert "error: step 1: the loss is inf; the weights are still those of step 0" in errors[1]
    alike(tmp_path / "one", tmp_path / "two", 1e-5, 1e-5)


@pytest.mark.timeout(300)
def test_compiled_blocks_train_the_same(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole copies and shards. Graphs are traced, and run as they are: the code of kernels, which takes a minute to
    make, knows nothing of processes."""
    from torch._dynamo.utils import counters

    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="eager"))
    monkeypatch.setattr(GeneratorTrainee, "draw", lambda self, path: None)
    values = {"image_tokenizer": str(tiny_tokenizer_folder), "tasks": DRAWING, "trunk": {**SMALL["trunk"], "depth": 1}}
    one, ddp, fsdp = (written(tmp_path / f"{way}.yaml", **values) for way in ("one", "ddp", "fsdp"))

    def compiled(words: list[str], way: str) -> Work:
        def work(rank: int) -> int:
            torch._dynamo.reset()
            counters.clear()
            code = main([*words, "--run.compile", "true", "--run.parallel", way])
            return code if counters["stats"]["unique_graphs"] > 0 else 90

        return work

    assert main(one) == 0
    assert pair(compiled(ddp, "ddp"), compiled(fsdp, "fsdp")) == [0, 0]
    for way in ("ddp", "fsdp"):
        alike(tmp_path / "one", tmp_path / way, 1e-5, 1e-5)


def test_a_compiled_run_compiles_nothing_to_evaluate_or_draw(
    tmp_path: Path, train_small_generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs are traced, and run as they are."""
    from torch._dynamo.utils import counters

    plain, evaluate, more = torch.nn.Module.compile, GeneratorTrainee.evaluate, []

    def watched(self: GeneratorTrainee, pictures: int) -> dict[str, float]:
        before = counters["stats"]["unique_graphs"]
        numbers = evaluate(self, pictures)
        more.append((before, counters["stats"]["unique_graphs"] - before))
        return numbers

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="eager"))
    monkeypatch.setattr(GeneratorTrainee, "evaluate", watched)
    counters.clear()
    train_small_generator(tmp_path, val_data="shapes@val?limit=8", steps=3, compile=True)
    assert more[-1][0] > 0 and not any(added for _, added in more)


@pytest.mark.timeout(300)
def test_gradients_of_micro_batches_travel_once_a_step(
    tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of four micro-batches: whole copies average their gradients twice, and eight times where nothing keeps
    them from it. Groups of shards do so twice for each part that is gathered: two blocks, and the rest."""
    sent: Counter[str] = Counter()
    reduce = distributed.all_reduce

    class Counted(replicas.DistributedDataParallel):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.register_comm_hook(None, lambda _, bucket: counted(bucket))

    def counted(bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent["copies"] += bucket.is_last()
        return allreduce_hook(None, bucket)

    def between_groups(tensor: torch.Tensor, *arguments: Any, group: Any = None, **settings: Any) -> Any:
        sent["groups"] += group is not None  # what else is summed here goes through the group of all
        return reduce(tensor, *arguments, group=group, **settings)

    monkeypatch.setattr(replicas, "DistributedDataParallel", Counted)
    monkeypatch.setattr(distributed, "all_reduce", between_groups)
    monkeypatch.setattr(GeneratorTrainee, "draw", lambda self, path: None)
    values = {"image_tokenizer": str(tiny_tokenizer_folder), "run": {**SMALL["run"], "micro_batch": 1}}

    def sends(expected: int, where: str, name: str, *more: str, always: bool = False) -> Work:
        words = [*written(tmp_path / f"{name}.yaml", **values), *more]

        def work(rank: int) -> int:
            sent.clear()
            with pytest.MonkeyPatch.context() as patch:
                if always:
                    patch.setattr(replicas.Replicas, "exchanging", lambda self, last: nullcontext())
                code = main(words)
            assert sent[where] == expected, sent
            return code

        return work

    groups = ["--run.parallel", "fsdp", "--run.shard_within", "1"]
    codes = pair(
        sends(2, "copies", "ddp"), sends(8, "copies", "always", always=True), sends(6, "groups", "fsdp", *groups)
    )
    assert codes == [0, 0]
    for name in ("ddp", "fsdp"):
        for entry in read_log(tmp_path / name / "log.jsonl"):
            assert 0 <= entry["padding"] < 1 and 0 <= entry["waiting"] <= 1
    alike(tmp_path / "ddp", tmp_path / "fsdp", 1e-5, 1e-5)
