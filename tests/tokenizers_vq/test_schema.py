"""Files of ours against their schema: what fits is kept as it is, what does not is told in a line with its key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from tokenizers_vq.config import TOKENIZER_PRESETS, config_from_dict, config_to_dict
from tokenizers_vq.errors import SHOWN, Problems, UserError
from tokenizers_vq.storage.schema import read_dataclass


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size is {self.size}: choose at least 1")


@dataclass(frozen=True)
class Whole:
    kind: Literal["a", "b"]
    share: float = 0.5
    flag: bool = False
    side: int | tuple[int, int] = 8
    grids: tuple[int | tuple[int, int], ...] = ()
    names: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    part: Part = field(default=Part("p"))
    other: Part | None = None
    anything: Any = None


FULL = {
    "kind": "a",
    "share": 1,
    "flag": True,
    "side": [4, 8],
    "grids": [1, [2, 4]],
    "names": ["x"],
    "facts": {"n": 2},
    "part": {"name": "q", "size": 1},
    "other": {"name": "r"},
    "anything": [{"x": None}],
}


def test_what_fits_is_kept_as_it_is() -> None:
    whole = read_dataclass(Whole, FULL, "file")
    assert whole == Whole("a", 1, True, (4, 8), (1, (2, 4)), ["x"], {"n": 2}, Part("q", 1), Part("r"), [{"x": None}])
    assert type(whole.share) is int, "another number would change the fingerprint of what was written with it"
    assert read_dataclass(Whole, {"kind": "b"}, "file") == Whole("b")
    ready = Part("here")
    assert read_dataclass(Whole, {"kind": "b", "part": ready}, "file").part is ready


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "c"}, "file: kind is 'c': expected one of 'a', 'b'; restore the file"),
        ({"share": "1"}, "file: share is '1': expected a number; restore the file"),
        ({"share": float("nan")}, "file: share is nan: expected a number; restore the file"),
        ({"share": True}, "file: share is True: expected a number; restore the file"),
        ({"share": 10**400}, "expected a number"),
        ({"flag": 1}, "file: flag is 1: expected true or false; restore the file"),
        ({"side": 1e308}, "file: side is 1e+308: expected a whole number or a list of 2; restore the file"),
        ({"side": [1, 2, 3]}, "file: side is [1, 2, 3]: expected a whole number or a list of 2; restore the file"),
        ({"grids": [1, [2, "x"]]}, "file: grids[1] is [2, 'x']: expected a whole number or a list of 2"),
        ({"names": "x"}, "file: names is 'x': expected a list, each text; restore the file"),
        ({"names": ["x", 3]}, "file: names[1] is 3: expected text; restore the file"),
        ({"facts": {"n": None}}, "file: facts.n is None: expected a whole number; restore the file"),
        ({"part": 3}, "file: part is 3: expected an object with keys; restore the file"),
        ({"part": {"name": "x", "size": 0}}, "file: part: size is 0: choose at least 1"),
        ({"part": {"size": 2}}, "file: part lacks the key 'name': the file is not complete, restore it"),
        ({"other": {"name": "x", "colour": 1}}, "file: other has an unknown key 'colour': known are name, size"),
        ({"other": []}, "file: other is []: expected an object with keys or null; restore the file"),
        ({"newer": 1}, "file has an unknown key 'newer': known are anything, facts"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_dataclass(Whole, {**FULL, **change}, "file")
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("values", [3, [], None, "x", True])
def test_what_is_no_object_is_refused(values: object) -> None:
    with pytest.raises(UserError, match=r"^file is .*: expected an object with keys; restore the file$"):
        read_dataclass(Whole, values, "file")


def test_keys_that_may_be_missing_can_be_named() -> None:
    with pytest.raises(UserError, match=r"lacks the key 'size'"):
        read_dataclass(Part, {"name": "x"}, "file", may_lack=())
    assert read_dataclass(Part, {"name": "x"}, "file", may_lack=("size",)) == Part("x")


def test_all_that_is_wrong_is_told_up_to_a_bound() -> None:
    values = {"kind": 1, "share": "x", **{f"u{i:05}": 0 for i in range(20_000)}}
    with pytest.raises(UserError) as caught:
        read_dataclass(Whole, values, "file")
    first, *rest = str(caught.value).split("\n  ")
    assert (first, len(rest), rest[-1]) == ("20002 problems:", SHOWN + 1, f"and {20_002 - SHOWN} more")


def test_a_single_problem_stays_a_single_line() -> None:
    problems = Problems()
    problems.check(False, "one")
    with pytest.raises(UserError, match=r"^one$"):
        problems.raise_if_any()


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_every_key_of_a_tokenizer_refuses_every_wrong_type(preset: str) -> None:
    good = json.loads(json.dumps(config_to_dict(TOKENIZER_PRESETS[preset]())))
    assert config_to_dict(config_from_dict(good)) == config_to_dict(TOKENIZER_PRESETS[preset]())
    for group in (good, good["quantizer"]):
        for key, value in list(group.items()):
            for wrong in (None, "x", 1.5, 1e308, True, [], {}, [[]], {"a": 1}, -(10**30), [1e308] * 4):
                if type(wrong) is type(value) or (key == "vision" and isinstance(wrong, str | None)):
                    continue
                group[key] = wrong
                try:
                    config_from_dict(good)  # some fit: an empty list may stand for several keys
                except UserError as error:
                    assert str(error).startswith("config.json")
            group[key] = value
