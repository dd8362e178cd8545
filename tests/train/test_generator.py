"""Training of the generator, through the command."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tokenizers_vq.base import build_tokenizer, load_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.config import ModelConfig, ObjectiveSettings, TaskConfig, TasksConfig, TrunkConfig
from unitok.data.loader import make_loader
from unitok.data.records import Record
from unitok.model import UniTok
from unitok.objectives import OBJECTIVES, get_objective, objective_class
from unitok.processes.world import World
from unitok.sample.pipeline import draw, draw_codes
from unitok.sampling import SampleSettings
from unitok.text import train_bpe
from unitok.train import generator
from unitok.train.commands import encode
from unitok.train.config import AS_IT_IS, RunConfig, SourceConfig
from unitok.train.data import open_sources
from unitok.train.generator import GeneratorTrainee
from unitok.vocabulary import Vocabulary

TASKS = ("text_to_image", "image_to_text", "text_only")
NONE = TaskConfig(0.0, 1.0)


def train_losses(log: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in log if entry["kind"] == "train"]


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_loss_falls_and_the_folder_is_a_model(
    tmp_path: Path,
    train_small_generator: Any,
    scaled_tokenizer_folder: Path,
    tiny_tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str,
) -> None:
    out, kind = tmp_path / "out", objective_class(objective)
    steps = 40 if kind.sets_scales else 24  # more codes are learned more slowly
    log = train_small_generator(
        out,
        objective=objective,
        tokenizer=scaled_tokenizer_folder if kind.sets_scales else tiny_tokenizer_folder,
        val_data="shapes@val?limit=8",
        steps=steps,
        batch_size=16,
        tasks=TasksConfig(caption_dropout=0),
        objective_settings=ObjectiveSettings(code_noise=0.0 if "code_noise" in kind.settings else None),
    )
    validation = [entry for entry in log if entry["kind"] == "val"][-1]
    for task in TASKS[:2]:
        first, last = ([entry[f"loss/{task}"] for entry in log if entry["kind"] == "train"][place] for place in (0, -1))
        assert last < first - 0.4 and validation[f"loss/{task}"] < first
    printed = capsys.readouterr()
    assert "parameters: " in printed.err and f"model: {out}" in printed.out
    model = UniTok.from_pretrained(out)
    assert draw(model, ["a small red circle"], SampleSettings(steps=2)).shape == (1, 3, 32, 32)
    assert (out / "samples" / f"step-{steps:08d}.png").is_file()


def test_the_step_loss_is_the_weighted_sum_of_task_means(tmp_path: Path, train_small_generator: Any) -> None:
    log = train_small_generator(tmp_path, steps=3, batch_size=32)
    weights = dict(zip(TASKS, (1.0, 1.0, 0.1), strict=True))
    for entry in log:
        parts = {task: entry[f"loss/{task}"] for task in TASKS if f"loss/{task}" in entry}
        assert entry["loss"] == pytest.approx(sum(weights[task] * part for task, part in parts.items()), rel=1e-5)


@pytest.mark.parametrize("objective", ["next_token", "masked_token", "maskgit"])
def test_several_codes_for_a_place_are_learned_and_drawn(
    tmp_path: Path, train_small_generator: Any, multi_tokenizer_folder: Path, objective: str
) -> None:
    """Two grids of 8x8 codes, whose ids lie in one range of 2 x 16."""
    log = train_small_generator(tmp_path, objective=objective, tokenizer=multi_tokenizer_folder, steps=12)
    losses = [entry["loss/text_to_image"] for entry in log if entry["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.3
    model = UniTok.from_pretrained(str(tmp_path))
    assert model.layout.scales == ((8, 8), (8, 8)) and model.vocabulary.codebook_size == 32
    codes = draw_codes(model, ["a red circle"], SampleSettings(steps=4), [0])
    assert codes.shape == (1, 128)
    assert model.image_tokenizer.decode(codes).shape == (1, 3, 32, 32)


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, train_small_generator: Any) -> None:
    """Captions differ in length and tasks in number, so means of micro-batch means would be wrong."""
    whole, parts = (
        train_small_generator(
            tmp_path / str(size), steps=3, batch_size=16, micro_batch=size, precision="fp32", dropout=0.0
        )
        for size in (16, 2)
    )
    assert train_losses(parts) == pytest.approx(train_losses(whole), rel=1e-4)


def test_accumulated_gradients_equal_those_of_the_whole_batch(tiny_tokenizer_folder: Path) -> None:
    gradients = []
    for micro_batch in (16, 4, 1):
        trainee, dataset = make_trainee(tiny_tokenizer_folder)
        batches = make_loader(dataset, seed=0, batch_size=16, micro_batch=micro_batch)
        micros = [trainee.prepare(next(batches), 0) for _ in range(16 // micro_batch)]
        totals = torch.stack([micro.counts for micro in micros]).sum(0).float()
        for index, micro in enumerate(micros):
            trainee.loss(trainee.model, micro.data, totals, last=index == len(micros) - 1)[0].backward()
        gradients.append([weight.grad for weight in trainee.model.parameters()])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def make_trainee(folder: Path, data: str = "shapes?limit=64", dropout: float = 0.0) -> tuple[GeneratorTrainee, Any]:
    image_tokenizer = load_tokenizer(folder)
    text_tokenizer = train_bpe(["a small red circle left of a large blue square"], 270)
    trunk = TrunkConfig(width=32, depth=1, heads=2, dropout=dropout)
    objective = "masked_token" if len(image_tokenizer.layout.scales) == 1 else "next_scale"
    ports = get_objective(objective, image_tokenizer).ports(image_tokenizer.layout)
    spans = Vocabulary.of(text_tokenizer.size, image_tokenizer.codebook_size).spans
    config = ModelConfig(trunk, objective, spans, 64, image_tokenizer.fingerprint(), ports)
    tasks, settings = TasksConfig(), objective_class(objective).settled(ObjectiveSettings())
    dataset = open_sources(data, tasks, image_tokenizer.image_size)
    run, world = RunConfig(), World(torch.device("cpu"))
    trainee = GeneratorTrainee(
        config, image_tokenizer, text_tokenizer, tasks, settings, AS_IT_IS, dataset, [], run, world
    )
    return trainee, dataset


@pytest.mark.parametrize("folder", ["tiny_tokenizer_folder", "scaled_tokenizer_folder"])
def test_codes_give_the_same_batches_as_pixels(tmp_path: Path, folder: str, request: pytest.FixtureRequest) -> None:
    """Encoded on the way, packed here, or packed by a worker."""
    tokenizer = request.getfixturevalue(folder)
    encode(data="shapes?limit=64", image_tokenizer=tokenizer, out=tmp_path / "codes")
    sides = []
    for data, workers in (("shapes?limit=64", 0), (str(tmp_path / "codes"), 0), (str(tmp_path / "codes"), 1)):
        trainee, dataset = make_trainee(tokenizer, data)
        batches = make_loader(
            dataset, seed=3, batch_size=24, micro_batch=12, start_step=1, workers=workers, finish=trainee.finish
        )
        sides.append([trainee.prepare(next(batches), 1).data.batch for _ in range(4)])
    for pixels, *others in zip(*sides, strict=True):
        for name in (item.name for item in fields(pixels)):
            for other in others:
                a, b = getattr(pixels, name), getattr(other, name)
                assert same(a, b), name


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_what_travels_to_the_workers_is_light(tiny_tokenizer_folder: Path, scaled_tokenizer_folder: Path) -> None:
    """No model in it, whatever way processes are started; for next_scale a codebook and four small convolutions."""
    for folder in (tiny_tokenizer_folder, scaled_tokenizer_folder):
        trainee, _ = make_trainee(folder)
        assert len(pickle.dumps(trainee.finish)) < 50_000


def test_codes_of_another_tokenizer_are_refused(
    tmp_path: Path, tiny_tokenizer_folder: Path, train_small_generator: Any
) -> None:
    torch.manual_seed(1)
    build_tokenizer(TOKENIZER_PRESETS["debug"]()).save_pretrained(tmp_path / "other")
    encode(data="shapes?limit=16", image_tokenizer=tmp_path / "other", out=tmp_path / "codes")
    with pytest.raises(
        UserError, match=r"codes holds codes of another image tokenizer .* give the tokenizer that made"
    ):
        train_small_generator(tmp_path / "out", data=str(tmp_path / "codes"), steps=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("figures")
def test_a_task_without_a_share_is_neither_trained_nor_drawn(tmp_path: Path, train_small_generator: Any) -> None:
    reading = TasksConfig(
        text_to_image=TaskConfig(0.0, 1.0), image_to_text=TaskConfig(1.0, 1.0), text_only=TaskConfig(0.0, 0.0)
    )
    log = train_small_generator(tmp_path, steps=1, tasks=reading)
    assert all("loss/text_to_image" not in entry and "loss/image_to_text" in entry for entry in log)
    assert not list((tmp_path / "samples").iterdir())


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("masked_token", {"code_noise": 0.5}, r"code_noise is 0.5, which objective masked_token does not take: leave"),
        ("maskgit", {"code_dropout": 0.5}, r"code_dropout is 0.5, which objective maskgit does not take"),
        ("next_token", {"ordered_from": 0.9}, r"ordered_from is 0.9, which objective next_token does not take"),
        (
            "next_tokens",
            {},
            r"objective is 'next_tokens': choose one of next_token, masked_token, next_scale, random_o",
        ),
    ],
)
def test_what_an_objective_does_not_know_is_refused(
    tmp_path: Path, train_small_generator: Any, objective: str, settings: dict[str, float], message: str
) -> None:
    given = ObjectiveSettings(**settings)
    with pytest.raises(UserError, match=message):
        train_small_generator(tmp_path / "out", steps=1, objective=objective, objective_settings=given)
    assert not (tmp_path / "out").exists()


def test_sources_stand_side_by_side(tmp_path: Path, train_small_generator: Any) -> None:
    """A corpus of texts, captioned pictures, questions, edits, boxes and interleaved parts in one run."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        save_png(folder / f"{name}.png", torch.randint(256, (3, 32, 32), dtype=torch.uint8))
    lines: dict[str, list[dict[str, Any]]] = {
        "texts": [{"caption": "a text without a picture"}],
        "edits": [{"source": "a.png", "instruction": "make it blue", "image": "b.png"}],
        "boxes": [{"image": "a.png", "phrase": "the red circle", "boxes": [[0.1, 0.2, 0.5, 0.6]]}],
        "mixed": [{"parts": [{"text": "here it is"}, {"image": "a.png"}, {"text": "it is red"}, {"image": "b.png"}]}],
    }
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = [
        SourceConfig(data="shapes", tasks={"text_to_image": 0.5, "question": 0.5}, share=0.4),
        SourceConfig(data=str(folder / "texts.jsonl"), tasks={"text_only": 1.0}, share=0.1),
        SourceConfig(data=str(folder / "edits.jsonl"), tasks={"edit": 1.0}, share=0.2),
        SourceConfig(data=str(folder / "boxes.jsonl"), tasks={"ground": 1.0}, share=0.1, weight=2.0),
        SourceConfig(data=str(folder / "mixed.jsonl"), tasks={"interleaved": 1.0}, share=0.2),
    ]
    log = train_small_generator(tmp_path / "out", data=sources, steps=6, batch_size=24)
    met = {name for entry in log for name in entry if name.startswith("loss/")}
    learned = ("text_to_image", "text_only", "question", "edit", "ground", "interleaved")
    assert {f"loss/{task}" for task in learned} <= met
    first, *_, last = (entry["loss"] for entry in log if entry["kind"] == "train")
    assert last < first
    model = UniTok.from_pretrained(tmp_path / "out")
    assert model.config.tasks == learned and model.config.vocabulary[-1] == ("location", 1000)
    with pytest.raises(UserError, match=r"holds other pictures or captions than those that the run"):
        train_small_generator(tmp_path / "out", data=sources[:2], steps=7, batch_size=24, resume=True)


def test_every_task_has_a_loss_and_an_exact_score(
    tmp_path: Path, train_small_generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is right is counted, over all records that can be judged, of several validation sets."""
    met: dict[str, int] = {}

    def tell(task: str, record: Record, value: Any) -> bool:
        met[task] = met.get(task, 0) + 1
        return met[task] % 4 > 0

    monkeypatch.setattr(generator, "judge", tell)
    log = train_small_generator(
        tmp_path / "out",
        data=[
            SourceConfig(data="shapes", tasks={"text_to_image": 0.5, "question": 0.5}),
            SourceConfig(data="shapes?task=edit", tasks={"edit": 1.0}),
        ],
        val_data=["shapes@val?limit=8", "shapes@val?task=edit&limit=12"],
        steps=2,
        eval_pictures=12,
    )
    last = next(entry for entry in reversed(log) if entry["kind"] == "val")
    assert {name: value for name, value in last.items() if name.startswith("exact/")} == {
        "exact/text_to_image": 0.75, "exact/question": 0.75, "exact/edit": 0.75
    }  # fmt: skip
    assert {"loss/text_to_image", "loss/question", "loss/edit"} <= last.keys()


def test_every_task_has_a_record_in_each_step_or_is_refused(tmp_path: Path, train_small_generator: Any) -> None:
    sources = [SourceConfig(data="shapes", tasks={"text_to_image": 0.9, "image_to_text": 0.09, "question": 0.01})]
    log = train_small_generator(tmp_path / "out", data=sources, steps=1, batch_size=3)
    assert {"loss/text_to_image", "loss/image_to_text", "loss/question"} <= log[-1].keys()
    with pytest.raises(UserError, match=r"3 tasks of 1 data set\(s\) share the 2 record\(s\).*raise --run.batch_size"):
        train_small_generator(tmp_path / "two", data=sources, steps=1, batch_size=2)


def test_pictures_and_boxes_are_learned_both_ways(tmp_path: Path, train_small_generator: Any) -> None:
    """Descriptions of boxes, captions with boxes, layouts, and edits of two pictures, in one run from pixels."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        save_png(folder / f"{name}.png", torch.randint(256, (3, 32, 48), dtype=torch.uint8))
    named = ["a red circle", [0.3, 0.2, 0.5, 0.6], " left of a blue square", [0.6, 0.2, 0.8, 0.6]]
    lines: dict[str, dict[str, Any]] = {
        "describe": {"image": "a.png", "box": [0.3, 0.2, 0.5, 0.6], "description": "the red circle"},
        "named": {"image": "a.png", "named": named},
        "edit": {"source": ["a.png", "b.png"], "instruction": "put them together", "image": "b.png"},
    }
    for name, record in lines.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    both = {"ground_caption": 0.5, "layout_to_image": 0.5}
    sources = [
        SourceConfig(data=str(folder / "describe.jsonl"), tasks={"describe": 1.0}),
        SourceConfig(data=str(folder / "named.jsonl"), tasks=both, share=2.0),
        SourceConfig(data=str(folder / "edit.jsonl"), tasks={"edit": 1.0}),
    ]
    log = train_small_generator(tmp_path / "out", data=sources, steps=6, batch_size=16)
    learned = ("edit", "describe", "ground_caption", "layout_to_image")
    assert {f"loss/{task}" for task in learned} <= {name for entry in log for name in entry}
    first, *_, last = (entry["loss"] for entry in log if entry["kind"] == "train")
    assert last < first
    model = UniTok.from_pretrained(tmp_path / "out")
    assert model.config.tasks == learned
    assert model.config.vocabulary[-2:] == (("location", 1000), ("box", 1))
    text = model.text_tokenizer
    assert text.decode(text.encode(" left of a blue square")) == " left of a blue square"
    assert len(text.encode("the red circle")) < len("the red circle"), "it learned the texts beside the boxes"


def test_records_without_what_a_task_needs_are_refused(tmp_path: Path, train_small_generator: Any) -> None:
    (tmp_path / "texts.jsonl").write_text('{"caption": "a text"}\n')
    tasks = TasksConfig(NONE, NONE, TaskConfig(0.5, 1.0), question=TaskConfig(0.5, 1.0))
    with pytest.raises(UserError, match="has no image, which the task question needs: add it to the data, or set"):
        train_small_generator(tmp_path / "out", data=str(tmp_path / "texts.jsonl"), steps=1, tasks=tasks)


def test_a_text_tokenizer_can_be_given(tmp_path: Path, train_small_generator: Any) -> None:
    train_bpe(["a small red circle"], 260).save(tmp_path / "text")
    train_small_generator(tmp_path / "out", steps=1, text_tokenizer=str(tmp_path / "text"))
    assert UniTok.from_pretrained(tmp_path / "out").text_tokenizer.size == 260
    with pytest.raises(UserError, match=r"text_tokenizer is .*, but the run .* was started with"):
        train_bpe(["another text altogether"], 262).save(tmp_path / "text2")
        train_small_generator(tmp_path / "out", steps=2, text_tokenizer=str(tmp_path / "text2"), resume=True)


def test_checkpointing_changes_no_weight(tmp_path: Path, train_small_generator: Any) -> None:
    """Dropout included: the recomputed pass draws what the first one drew."""
    train_small_generator(tmp_path / "kept", steps=2)
    train_small_generator(tmp_path / "recomputed", steps=2, checkpointing=True)
    kept, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "recomputed"))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_inpainting_needs_codes_with_places(tmp_path: Path, train_small_generator: Any) -> None:
    config = replace(TOKENIZER_PRESETS["shapes_query"](), width=32, tokens=8, depth=1, channels=16)
    build_tokenizer(config).save_pretrained(tmp_path / "queries")
    tasks = TasksConfig(inpaint=TaskConfig(0.5, 1.0))
    with pytest.raises(UserError, match="have no place in the picture"):
        train_small_generator(tmp_path / "out", tokenizer=tmp_path / "queries", tasks=tasks, steps=1)


def test_inpainting_is_learned_from_captioned_pictures(tmp_path: Path, train_small_generator: Any) -> None:
    tasks = TasksConfig(text_to_image=NONE, image_to_text=NONE, text_only=NONE, inpaint=TaskConfig(1.0, 1.0))
    log = train_small_generator(tmp_path / "out", tasks=tasks, steps=40, batch_size=16)
    losses = train_losses(log)
    assert losses[-1] < 0.8 * losses[0] and "loss/inpaint" in log[-1]
    assert UniTok.from_pretrained(tmp_path / "out").config.tasks == ("inpaint",)


def test_a_run_from_before_a_task_was_invented_goes_on(
    tmp_path: Path, train_small_generator: Any, without_digests: Any
) -> None:
    train_small_generator(tmp_path, steps=2)
    (state,) = tmp_path.glob("checkpoints/*/state.json")
    values = json.loads(state.read_text())
    assert values["settings"]["tasks"].pop("inpaint")["share"] == 0
    state.write_text(json.dumps(values))
    without_digests(tmp_path)
    with pytest.raises(UserError, match=r"tasks.inpaint.share is 0.5, but the run .* was started with 0.0"):
        train_small_generator(tmp_path, steps=3, resume=True, tasks=TasksConfig(inpaint=TaskConfig(0.5, 1.0)))
    train_small_generator(tmp_path, steps=3, resume=True)


def test_what_codes_have_in_common_is_learned_and_told_apart(tmp_path: Path, train_small_generator: Any) -> None:
    train_small_generator(tmp_path / "alike", steps=2, code_vectors=True)
    with pytest.raises(UserError, match="code_vectors"):
        train_small_generator(tmp_path / "alike", steps=3, resume=True)
    log = train_small_generator(tmp_path / "alike", steps=3, code_vectors=True, resume=True)
    assert len(train_losses(log)) == 3
    weights = load_file(tmp_path / "alike" / "model.safetensors")
    assert weights["ids.codes.read.weight"].shape == (32, 4) and weights["ids.codes.write.weight"].shape == (4, 32)
    train_small_generator(tmp_path / "plain", steps=1)
    (state,) = (tmp_path / "plain").glob("checkpoints/*/state.json")
    assert "code_vectors" not in json.loads(state.read_text())["settings"], "runs from before go on"
