"""Questions about shapes scenes: the language, the answers, the balance."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache
from itertools import permutations

import pytest

from unitok.data.shapes.naming import such
from unitok.data.shapes.questions import KINDS_OF_QUESTION, NUMBERS, Question, answer_of, ask, kind_of, meant
from unitok.data.shapes.scenes import RELATIONS, SLANT, Kind, Object, Scene, describe, sample_scene

COUNT = 20_000


@cache
def scenes_of(split: str) -> list[Scene]:
    return [sample_scene(0, split, i) for i in range(COUNT)]


@cache
def asked_of(split: str) -> list[Question]:
    return [ask(scene, 0, i) for i, scene in enumerate(scenes_of(split))]


CIRCLE = Object(Kind("large", "red", "circle"), 0.25, 0.5)
SQUARE = Object(Kind("small", "blue", "square"), 0.75, 0.375)
OTHER_SQUARE = Object(Kind("large", "orange", "square"), 0.3125, 0.9375)
SCENE = Scene((CIRCLE, SQUARE, OTHER_SQUARE))


def of_kind(split: str, kind: str) -> list[Question]:
    return [question for question in asked_of(split) if question.kind == kind]


def guesses(questions: list[Question]) -> dict[str, str]:
    """The most frequent answer to each text, and to each kind of question."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        seen[question.text][question.answer] += 1
        seen[question.kind][question.answer] += 1
    return {text: answers.most_common(1)[0][0] for text, answers in seen.items()}


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("how many objects are there", "three"),
        ("how many squares are there", "two"),
        ("how many crosses are there", "zero"),
        ("how many large objects are there", "two"),
        ("what colour is the circle", "red"),
        ("what colour is the large square", "orange"),
        ("is there a square", "yes"),
        ("is there a small circle", "no"),
        ("is there an orange square", "yes"),
        ("is there a blue circle", "no"),
        ("is there a small blue square", "yes"),
        ("is the circle left of the small square", "yes"),
        ("is the blue square left of the red circle", "no"),
        ("is the large orange square below the circle", "yes"),
        ("is the circle below the small square", "no"),
        ("  is the circle   above the orange square ", "yes"),
        ("how many large squares are there", "one"),
        ("how many small crosses are there", "zero"),
        ("how many objects are left of the blue square", "one"),
        ("how many objects are above the orange square", "two"),
        ("is the red circle larger than the blue square", "yes"),
        ("is the red circle smaller than the blue square", "no"),
        ("is the red circle larger than the orange square", "no"),
        ("which is larger, the circle or the blue square", "circle"),
        ("which is smaller, the circle or the blue square", "blue square"),
        ("which is further left, the blue square or the red circle", "red circle"),
        ("which is further right, the blue square or the red circle", "blue square"),
        ("which is higher, the circle or the blue square", "blue square"),
        ("which is lower, the orange square or the circle", "orange square"),
        ("where is the circle", "left"),
        ("where is the orange square", "bottom"),
    ],
)
def test_answers(text: str, answer: str) -> None:
    assert answer_of(text, SCENE) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "how many",
        "how many dogs are there",
        "how many circle are there",
        "how many objects are there?",
        "How many objects are there",
        "what colour is the sky",
        "what colour is the red circle",
        "is there an red circle",
        "is there a orange square",
        "is there a circle red",
        "is the circle near the square",
        "is the circle left of a square",
        "how many objects are near the square",
        "how many circles are left of the square",
        "is the circle further left than the square",
        "is the circle larger than a square",
        "which is larger the circle or the blue square",
        "which is redder, the circle or the square",
        "where is a circle",
        "a large red circle",
    ],
)
def test_other_texts_are_no_questions(text: str) -> None:
    assert kind_of(text) is None and answer_of(text, SCENE) is None


@pytest.mark.parametrize(
    "text",
    [
        "what colour is the square",
        "what colour is the cross",
        "is the circle above the square",
        "how many objects are above the square",
        "where is the square",
        "which is larger, the circle or the square",
    ],
)
def test_the_object_must_be_one(text: str) -> None:
    assert kind_of(text) is not None and answer_of(text, SCENE) is None


def test_the_answer_must_be_clear() -> None:
    assert answer_of("which is larger, the circle or the orange square", SCENE) is None, "both are large"
    for x, y, answer in (
        (0.5, 0.5, "in the middle"),
        (0.5625, 0.4375, "in the middle"),
        (0.375, 0.5, None),
        (0.8125, 0.5, "right"),
        (0.8125, 0.625, "right"),
        (0.8125, 0.75, None),
        (0.625, 0.1875, "top"),
    ):
        alone = Scene((Object(Kind("small", "red", "circle"), x, y),))
        assert answer_of("where is the circle", alone) == answer, (x, y)


@pytest.mark.parametrize("split", ["train", "val"])
def test_asked_answers_are_those_of_the_scene(split: str) -> None:
    for question, scene in zip(asked_of(split)[:5000], scenes_of(split)[:5000], strict=True):
        assert answer_of(question.text, scene) == question.answer, (describe(scene), question)
        assert kind_of(question.text) == question.kind


# --- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("how many objects are there", [CIRCLE, SQUARE, OTHER_SQUARE]),
        ("how many crosses are there", []),
        ("how many objects are below the circle", [OTHER_SQUARE, CIRCLE]),
        ("what colour is the large square", [OTHER_SQUARE]),
        ("is there a small circle", []),
        ("is there a blue square", [SQUARE]),
        ("is the blue square left of the red circle", [SQUARE, CIRCLE]),
        ("which is larger, the blue square or the circle", [SQUARE, CIRCLE]),
        ("where is the circle", [CIRCLE]),
    ],
)
def test_what_a_question_is_about(text: str, things: list[Object]) -> None:
    assert meant(text, SCENE) == things


def test_the_number_of_what_is_meant_is_the_answer() -> None:
    for scene, question in zip(scenes_of("val")[:3000], asked_of("val")[:3000], strict=True):
        things = meant(question.text, scene)
        if question.kind == "count":
            beside = question.text.startswith("how many objects are") and not question.text.endswith("there")
            assert len(things) - beside == NUMBERS.index(question.answer)
        elif question.kind == "presence":
            assert bool(things) == (question.answer == "yes")
        else:
            assert len(things) == (2 if question.kind in ("relation", "compare") else 1)
    with pytest.raises(ValueError, match="'what is this' is no question"):
        meant("what is this", SCENE)


def test_questions_are_pinned() -> None:
    """Equal on every machine and version; when this fails, every result on questions must be measured again."""
    asked = [(q.text, q.answer) for split in ("train", "val") for q in asked_of(split)[4:9]]
    assert asked == [
        ("what colour is the large square", "black"),
        ("is the small square right of the green triangle", "no"),
        ("where is the small red cross", "left"),
        ("which is lower, the cross or the square", "cross"),
        ("is the large red cross left of the large circle", "no"),
        ("is the small cyan square left of the small circle", "yes"),
        ("is the green circle above the square", "no"),
        ("where is the circle", "bottom"),
        ("what colour is the small square", "purple"),
        ("is there a large square", "yes"),
    ]
    assert ask(SCENE, 0, 0) == ask(SCENE, 0, 0)


def test_one_scene_has_many_questions() -> None:
    asked = [ask(SCENE, 0, index) for index in range(500)]
    assert len({question.text for question in asked}) > 80
    assert {question.kind for question in asked} == set(KINDS_OF_QUESTION)
    assert asked[:20] != [ask(SCENE, 1, index) for index in range(20)]


def test_only_what_a_scene_allows_is_asked() -> None:
    alone = {ask(Scene((CIRCLE,)), 0, index).kind for index in range(200)}
    assert alone == {"count", "colour", "presence", "where"}
    twins = Scene((CIRCLE, Object(Kind("large", "blue", "circle"), 0.75, 0.95)))  # alike but for colour, and diagonal
    assert {ask(twins, 0, index).kind for index in range(200)} == {"count", "presence", "compare", "where"}


def test_relations_are_clearly_true_or_false() -> None:
    """The two stand along one axis, and a false relation has not even the direction right."""
    for question, scene in zip(asked_of("train"), scenes_of("train"), strict=True):
        if question.kind == "relation":
            name = next(name for name in RELATIONS if f" {name} the " in question.text)
            first, second = question.text.removeprefix("is the ").split(f" {name} the ")
            offsets = [
                (a.x - b.x, a.y - b.y)
                for a, b in permutations(scene.objects, 2)
                if set(first.split()) <= set(str(a.kind).split()) and set(second.split()) <= set(str(b.kind).split())
            ]
            assert len(offsets) == 1
            [(dx, dy)], (x, y) = offsets, RELATIONS[name]
            assert min(abs(dx), abs(dy)) <= SLANT * max(abs(dx), abs(dy))
            assert (x * dx + y * dy > 0) == (question.answer == "yes")


def test_what_is_compared_clearly_differs() -> None:
    """A size is not told by a name, and both objects are named first as often."""
    first = which = 0
    for split in ("train", "val"):
        for question, scene in zip(asked_of(split), scenes_of(split), strict=True):
            if question.kind != "compare":
                continue
            by_size = "larger" in question.text or "smaller" in question.text
            assert not (by_size and {"large", "small"} & set(question.text.split()))
            if question.text.startswith("which"):
                names = question.text.split(", the ")[1].split(" or the ")
                a, b = (thing for name in names for thing in such(name, scene))
                assert by_size or max(abs(a.x - b.x), abs(a.y - b.y)) >= 2 / 16
                first, which = first + (question.answer == names[0]), which + 1
    assert 0.45 < first / which < 0.55


def test_a_false_presence_is_near_the_truth() -> None:
    """It differs in one word from an object, and often all of its words are in the scene."""
    mixed = several = 0
    for question, scene in zip(asked_of("train"), scenes_of("train"), strict=True):
        if question.kind == "presence" and question.answer == "no":
            words = set(question.text.split()[3:])
            objects = [set(str(thing.kind).split()) for thing in scene.objects]
            assert min(len(words - own) for own in objects) == 1
            if len(objects) > 1 and len(words) > 1:
                several += 1
                mixed += words <= set.union(*objects)
    assert several > 300 and mixed > 0.4 * several


# --- balance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_kinds_and_answers_are_balanced(split: str) -> None:
    """Of 20,000 records of train and val: count 21 and 21 %, colour 20 and 18 %, presence 20 and 17 %, relation 13 and
    16 %, compare 11 and 15 %, where 15 and 12 %. The most frequent answer to each kind: 47 and 40 % ("one"), 13 and
    13 % (a colour of eight), 50 and 50 %, 51 and 51 %, 7 and 6 % ("yes"; nearly as often "no"), 22 and 23 % (a
    side)."""
    for kind in KINDS_OF_QUESTION:
        assert 0.09 < len(of_kind(split, kind)) / COUNT < 0.23
    answers = {kind: Counter(question.answer for question in of_kind(split, kind)) for kind in KINDS_OF_QUESTION}
    assert set(answers["count"]) == set(NUMBERS) and len(answers["colour"]) == 8
    assert set(answers["where"]) == {"left", "right", "top", "bottom", "in the middle"}
    assert 0.7 < answers["compare"]["yes"] / answers["compare"]["no"] < 1.4
    most = {kind: max(counts.values()) / sum(counts.values()) for kind, counts in answers.items()}
    limits = {"count": 0.49, "colour": 0.15, "presence": 0.53, "relation": 0.53, "compare": 0.1, "where": 0.26}
    assert {kind: most[kind] < limit for kind, limit in limits.items()} == dict.fromkeys(limits, True), most


def test_words_do_not_tell_the_answer() -> None:
    """The best guess by the text of a question alone, learned on 20,000 other train records, is right on 20,000 of
    train and of val: count 47 and 41 %, colour 15 and 8 %, presence 50 and 50 %, relation 50 and 49 %, compare 14 and
    11 %, where 23 and 22 %. Colours of val lie below chance because a single object of val has a colour that a single
    object of train with this size and shape never has."""
    learned = guesses([ask(sample_scene(1, "train", i), 1, i) for i in range(COUNT // 2)])  # they teach as much
    limits = {"count": 0.49, "colour": 0.18, "presence": 0.53, "relation": 0.53, "compare": 0.2, "where": 0.26}
    for split in ("train", "val"):
        for kind, limit in limits.items():
            asked = of_kind(split, kind)
            right = sum(learned.get(one.text, learned[kind]) == one.answer for one in asked) / len(asked)
            assert right < limit, (split, kind, right)


def test_held_out_kinds_are_no_hint() -> None:
    """In scenes of one object, the kinds that are asked for are those that are shown, whatever the answer."""
    for split in ("train", "val"):
        asked: dict[str, set[str]] = {"yes": set(), "no": set()}
        for question, scene in zip(asked_of(split), scenes_of(split), strict=True):
            if question.kind == "presence" and len(scene.objects) == 1 and len(question.text.split()) == 6:
                asked[question.answer].add(question.text)
        assert asked["yes"] == asked["no"] and len(asked["yes"]) == {"train": 48, "val": 16}[split]
