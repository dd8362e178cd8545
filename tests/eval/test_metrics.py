"""Single metrics against written-out formulas, other tools and cases with a known answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.shapes.checker import check, read_picture
from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.scenes import parse
from unitok.eval.metrics.alignment import by_category
from unitok.eval.metrics.captions import bleu, cider, words
from unitok.eval.metrics.cmmd import cmmd
from unitok.eval.metrics.geneval import Box, Prompt, Wanted, geneval, judge_boxes, overall, read_prompts, relations
from unitok.eval.metrics.inception_score import RunningInceptionScore, inception_score
from unitok.eval.metrics.prdc import prdc
from unitok.eval.metrics.r_precision import r_precision


def rows(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def unit(count: int, dim: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(rows(count, dim, seed), dim=1)


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


def test_prdc_equals_the_written_out_definition() -> None:
    real, drawn, k = rows(60, 4, 0), rows(50, 4, 1, 0.4), 5

    def nth(points: Tensor, row: int) -> float:
        return sorted(float((points[row] - p).norm()) for i, p in enumerate(points) if i != row)[k - 1]

    reach_real, reach_drawn = ([nth(points, row) for row in range(len(points))] for points in (real, drawn))
    far = [[float((r - d).norm()) for d in drawn] for r in real]
    precision = sum(any(far[r][d] <= reach_real[r] for r in range(60)) for d in range(50)) / 50
    recall = sum(any(far[r][d] <= reach_drawn[d] for d in range(50)) for r in range(60)) / 60
    density = sum(far[r][d] < reach_real[r] for r in range(60) for d in range(50)) / (k * 50)
    coverage = sum(min(far[r]) < reach_real[r] for r in range(60)) / 60
    assert prdc(real, drawn, k, k) == pytest.approx((precision, recall, density, coverage), rel=1e-9)


def test_precision_and_recall_equal_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, drawn = rows(1300, 16, 0), rows(1100, 16, 1, 0.2)  # more rows than a chunk
    precision, recall = calculate_precision_recall_full(drawn.double(), real.double(), neighborhood=3)
    ours = prdc(real, drawn)
    assert (ours.precision, ours.recall) == pytest.approx((precision, recall), rel=1e-6)


def test_prdc_refusals() -> None:
    with pytest.raises(UserError, match=r"5 picture\(s\) are too few for precision and recall: give at least 6"):
        prdc(rows(5, 4, 0), rows(50, 4, 1))
    with pytest.raises(UserError, match="of 4 and of 5 dimensions"):
        prdc(rows(50, 4, 0), rows(50, 5, 1))
    with pytest.raises(UserError, match="not finite"):
        prdc(torch.full((20, 4), torch.nan), rows(50, 4, 1))


# --- CMMD, Inception Score, R-precision -------------------------------------------------------------------------------


def test_cmmd_equals_the_written_out_formula() -> None:
    a, b = unit(30, 8, 0), unit(20, 8, 1)

    def mean(x: Tensor, y: Tensor) -> float:
        values = [math.exp(-float((p - q).double().square().sum()) / (2 * 10**2)) for p in x for q in y]
        return sum(values) / len(values)

    assert cmmd(a, b) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-5)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="one network"):
        cmmd(a, unit(20, 9, 1))


def test_inception_score_of_known_cases() -> None:
    sure = 50 * torch.eye(10).repeat(1000, 1)  # each class equally often, without doubt
    assert inception_score(sure).mean == pytest.approx(10, rel=0.02)
    assert inception_score(torch.zeros(100, 10)).mean == pytest.approx(1), "no class at all"
    assert inception_score(sure[:1].expand(100, 10)).mean == pytest.approx(1), "one class alone"
    with pytest.raises(UserError, match="too few for the Inception Score"):
        inception_score(sure[:9])


def test_inception_score_equals_torch_fidelity_however_the_pictures_come() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * rows(2370, 40, 0)
    running, whole = RunningInceptionScore(), inception_score(logits)
    for part in logits.split(77):
        running.update(part)
    assert running.result() == pytest.approx(whole, rel=1e-9)
    splits = torch.tensor([running._split(i) for i in range(1000)])  # of the first ones, in the order of the splits:
    outside = isc_features_to_metric(logits[:1000][splits.argsort(stable=True)], shuffle=False)
    ours = inception_score(logits[:1000])
    assert ours.mean == pytest.approx(outside["inception_score_mean"], rel=1e-6)
    assert ours.std == pytest.approx(outside["inception_score_std"], rel=1e-4)
    shuffled = isc_features_to_metric(logits)
    assert whole.mean == pytest.approx(shuffled["inception_score_mean"], rel=0.02)
    assert inception_score(logits, seed=1) != whole
    by_class = (100 * torch.eye(10)).repeat(40, 1)  # every tenth picture of one class: no split must have one class
    assert inception_score(by_class).mean > 8


def test_r_precision() -> None:
    texts = torch.eye(50)
    captions = [f"caption {i}" for i in range(50)]
    assert r_precision(texts, texts, captions, candidates=10).share == 1
    assert r_precision(texts.roll(1, 0), texts, captions, candidates=50).share == 0
    share = r_precision(unit(400, 16, 0), unit(400, 16, 1), [str(i) for i in range(400)], candidates=5).share
    assert share == pytest.approx(1 / 5, abs=0.06), "chance"
    few = r_precision(texts[:4], texts[:4], ["a", "b", "a", "b"], candidates=10)
    assert few.candidates == 2, "the same caption is no rival to itself"
    with pytest.raises(UserError, match="50 pictures, 50 text embeddings and 49 captions"):
        r_precision(texts, texts, captions[:49])
    with pytest.raises(UserError, match="two different captions"):
        r_precision(texts[:2], texts[:2], ["a", "a"])


# --- captions ---------------------------------------------------------------------------------------------------------


def test_cider_of_known_cases() -> None:
    references = [["a small red circle stands here"], ["two large blue squares over there"], ["one dog runs away fast"]]
    exact = cider([some[0] for some in references], references)
    assert exact.score == pytest.approx(10), "no n-gram is shared with another picture"
    assert cider(["nothing of this", "nor that", "never"], references).score == 0
    half = cider([references[0][0], "x", "y"], references)
    assert half.per_caption == pytest.approx([10, 0, 0])


def test_cider_by_hand() -> None:
    """Two pictures, one word each shared; n = 1 alone contributes since captions have one word."""
    references = [["cat", "dog"], ["dog"]]
    found = cider(["cat", "dog"], references)
    # "cat" occurs in the references of one picture of two: weight log 2. "dog" occurs in both: weight 0.
    assert found.per_caption == pytest.approx([10 * (1 + 0) / 2 / 4, 0])
    longer = cider(["cat cat", "dog"], [["cat"], ["bird"]])
    # Clipped: min(2 w, w) w / (2 w w) = 1/2; one word too long: exp(-1 / 72).
    assert longer.per_caption[0] == pytest.approx(10 / 4 * 0.5 * math.exp(-1 / 72))


def test_bleu_and_words() -> None:
    assert words("A man's dog, RED!") == ["a", "man's", "dog", "red"]
    same = "a large blue square left of a small red circle"
    assert bleu([same.upper() + "."], [[same]]) == pytest.approx(1)
    assert bleu(["a dog"], [[same]]) == 0
    other = "a large blue square right of a small red circle"
    # 9 of 10 words, 7 of 9 pairs, 5 of 8 triples, 3 of 7 fours, no brevity penalty
    assert bleu([other], [[same]]) == pytest.approx((9 / 10 * 7 / 9 * 5 / 8 * 3 / 7) ** 0.25, rel=1e-5)
    for score in (bleu, cider):
        with pytest.raises(UserError, match="1 captions and 2 lists"):
            score(["a"], [["a"], ["b"]])
        with pytest.raises(UserError, match="without a reference"):
            score(["a"], [[]])


# --- GenEval ----------------------------------------------------------------------------------------------------------


def box(label: str, left: float, top: float, color: str | None = None, confidence: float = 0.95) -> Box:
    return Box(label, confidence, left, top, left + 10, top + 10, color)


def test_relations_follow_the_published_rule() -> None:
    assert relations(box("a", 0, 0), box("b", 50, 0)) == {"left of"}
    assert relations(box("a", 50, 50), box("b", 0, 0)) == {"right of", "below"}
    assert relations(box("a", 0, 0), box("b", 10, 60)) == {"above"}
    assert relations(box("a", 0, 0), box("b", 1.5, 0)) == set(), "nearer than a tenth of both widths"
    # offset 5, less a tenth of 20: 3 of 5 is more than half; offset 3.5: 1.5 of 3.5 is less
    assert relations(box("a", 5, 0), box("b", 0, 0)) == {"right of"}
    assert relations(box("a", 3.5, 0), box("b", 0, 0)) == set()


def test_verdicts_on_boxes() -> None:
    two = Prompt("counting", "two dogs", (Wanted("dog", 2),), (Wanted("dog", 3),))
    dogs = [box("dog", 40 * i, 0) for i in range(3)]
    assert judge_boxes(two, dogs[:2]) == []
    assert judge_boxes(two, dogs) == ["fewer than 3 dog wanted, 3 found"]
    assert judge_boxes(two, dogs[:1]) == ["2 dog wanted, 1 found"]
    unsure = box("dog", 90, 0, confidence=0.5)
    assert judge_boxes(two, [*dogs[:2], unsure]) == [], "counting wants 0.9"
    assert judge_boxes(Prompt("single_object", "a dog", (Wanted("dog", 1),)), [unsure]) == []
    colored = Prompt("color_attr", "", (Wanted("dog", 1, "red"), Wanted("cat", 1, "blue")))
    assert judge_boxes(colored, [box("dog", 0, 0, color="red"), box("cat", 0, 0, color="blue")]) == []
    swapped = judge_boxes(colored, [box("dog", 0, 0, color="blue"), box("cat", 0, 0, color="red")])
    assert len(swapped) == 2 and swapped[0] == "1 red dog wanted, colours are blue"
    surest = [
        box("dog", 0, 0, color="blue"),
        box("dog", 0, 0, color="red", confidence=0.4),
        box("cat", 0, 0, color="blue"),
    ]
    assert len(judge_boxes(colored, surest)) == 1, "only the surest dog counts"
    placed = Prompt("position", "", (Wanted("dog", 1), Wanted("cat", 1, None, ("left of", 0))))
    assert judge_boxes(placed, [box("dog", 50, 0), box("cat", 0, 0)]) == []
    assert judge_boxes(placed, [box("dog", 0, 0), box("cat", 50, 0)]) == ["cat is not left of dog"]
    assert judge_boxes(placed, [box("cat", 0, 0)]) == ["1 dog wanted, 0 found", "nothing for cat to be left of"]


def test_prompts_are_read_and_a_detector_is_plugged_in(tmp_path: Path) -> None:
    """The checker of `shapes` as a detector: shapes are classes, colours are colours."""
    dataset = ShapesDataset(split="val", seed=0, length=1024)
    lines, images = [], []
    for index in range(30):
        record = dataset[index]
        facts = parse(record.caption or "")
        assert facts is not None and record.image is not None
        include = [{"class": kind.shape, "count": 1, "color": kind.colour} for kind in facts.kinds]
        if len(include) == 2 and include[0]["class"] != include[1]["class"]:
            subject, relation, other = facts.relations[0]
            assert (subject, other) == (0, 1)
            include = [include[1], {**include[0], "position": [relation, 0]}]
            lines.append(json.dumps({"tag": "position", "include": include, "prompt": record.caption}))
            images.append(record.image)
        elif len(include) == 1:
            lines.append(json.dumps({"tag": "colors", "include": include, "prompt": record.caption}))
            images.append(record.image)
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(lines) + "\n")
    prompts = read_prompts(file)

    def detector(image: Tensor) -> list[Box]:
        found = read_picture(image)
        return [Box(str(o.shape), 1.0, o.x - 0.1, o.y - 0.1, o.x + 0.1, o.y + 0.1, o.colour) for o in found]

    scores = overall(geneval(detector, prompts, images))
    assert scores == {"colors": 1.0, "position": 1.0, "overall": 1.0}
    shuffled = overall(geneval(detector, prompts, images[1:] + images[:1]))
    assert shuffled["overall"] < 0.3
    with pytest.raises(UserError, match=r"pictures and .* prompts: give one picture"):
        geneval(detector, prompts, images[:-1])
    with pytest.raises(UserError, match="more pictures than"):
        geneval(detector, prompts[:-1], images)


def test_files_that_hold_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*give GenEval's evaluation_metadata\.jsonl"):
        read_prompts(tmp_path / "none.jsonl")
    dog = {"class": "dog", "count": 1}
    for line, problem in (
        ({"tag": "x"}, "is no GenEval prompt, it lacks 'include': it needs tag, prompt and include"),
        (
            {"tag": "x", "prompt": "y", "include": [{"class": "dog"}]},
            r": include\[0\] is no GenEval prompt, it lacks 'co",
        ),
        ({"tag": "x", "prompt": "y", "include": [[]]}, r"include\[0\] is \[\]: expected an object"),
        ({"tag": "x", "prompt": "y", "include": 10**30}, "include is 10.*: expected a list"),
        (
            {"tag": "x", "prompt": "y", "include": [dog | {"count": 1e308}]},
            "count is 1e[+]308: expected a whole number",
        ),
        (
            {"tag": "x", "prompt": "y", "include": [dog | {"position": ["left of", 0]}]},
            "position of 'dog' points at cl",
        ),
        ({"tag": [], "prompt": "y", "include": []}, r"tag is \[\]: expected text"),
        ({"tag": "x", "prompt": float("nan"), "include": []}, "NaN is no JSON number"),
        (3, "the prompt is 3: expected an object"),
    ):
        text = json.dumps(line)
        (tmp_path / "bad.jsonl").write_text('{"tag": "a", "prompt": "b", "include": []}\n' + text)
        with pytest.raises(UserError, match=f"bad.jsonl, line 2.*{problem}") as caught:
            read_prompts(tmp_path / "bad.jsonl")
        assert "\n" not in str(caught.value)
    (tmp_path / "bad.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(tmp_path / "bad.jsonl")


def test_shapes_are_laid_out_as_geneval() -> None:
    dataset = ShapesDataset(split="val", seed=0, length=1024)
    records = [dataset[index] for index in range(60)]
    captions = [record.caption or "" for record in records]
    images = [record.image for record in records if record.image is not None]
    right = by_category([check(i, c) for i, c in zip(images, captions, strict=True)], captions)
    names = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    assert overall(right) == dict.fromkeys([*names, "overall"], 1.0)
    single = next(i for i, caption in enumerate(captions) if len(right[i]) == 3)
    colour = next(word for word in ("red", "green", "blue", "yellow", "purple", "orange", "black", "cyan")
                  if word in captions[single])  # fmt: skip
    other = captions[single].replace(colour, "red" if colour != "red" else "blue")
    tasks = by_category([check(images[single], other)], [other])
    assert tasks == [{"counting": True, "single_object": True, "colors": False}]
    scores = overall([{"counting": True, "colors": False}, {"counting": False}])
    assert scores == {"counting": 0.5, "colors": 0.0, "overall": 0.25}, "the mean over tasks, not over pictures"
