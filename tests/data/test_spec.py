from __future__ import annotations

import pytest

from tokenizers_vq.errors import UserError
from unitok.data.spec import DataSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("shapes", DataSpec("shapes")),
        ("shapes@val?size=32", DataSpec("shapes", "val", {"size": "32"})),
        ("pictures/", DataSpec("pictures/")),
        ("emoji/@val", DataSpec("emoji/", "val")),
        ("emoji/?caption={text}, {style} style", DataSpec("emoji/", None, {"caption": "{text}, {style} style"})),
        ("hf:owner/name@train?config=big&limit=5", DataSpec("hf:owner/name", "train", {"config": "big", "limit": "5"})),
        ("shards/part-?.tar", DataSpec("shards/part-?.tar")),
        ("shards/part-?.tar?image=jpg", DataSpec("shards/part-?.tar", None, {"image": "jpg"})),
        ("a@2x/pictures", DataSpec("a@2x/pictures")),
        ("photo@2x.parquet", DataSpec("photo@2x.parquet")),
        ("vqa/?question=q&answer={a}", DataSpec("vqa/", None, {"question": "q", "answer": "{a}"})),
        ("shapes@val?task=story&limit=400", DataSpec("shapes", "val", {"task": "story", "limit": "400"})),
        ("p/?caption={a} & {b}? yes&limit=2", DataSpec("p/", None, {"caption": "{a} & {b}? yes", "limit": "2"})),
    ],
)
def test_every_form_is_read_and_written_back(text: str, spec: DataSpec) -> None:
    assert parse_spec(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "p/?captoin=text",
            "'captoin': choose from answer, cache, caption, config, description, every, except, image, instruction, "
            "kind, label, limit, outside, phrase, prompt, question, seed, size, task",
        ),
        ("p/?limit=3&limit=4", "'limit' is given twice"),
        ("p/?limit=", "'limit' has no value"),
        ("p/?limit=0", "limit is '0': give a whole number from 1 up"),
        ("p/?limit=-3", "limit is '-3'"),
        ("p/?limit=2.5", "limit is '2.5'"),
        ("p/?limit=²", "limit is '²'"),
        ("", "names no source"),
        ("@val", "names no source"),
        ("?limit=3", "names no source"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_spec(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_the_source_does_not_take_is_refused() -> None:
    spec = parse_spec("shapes?caption=text")
    with pytest.raises(UserError, match="shapes takes no 'caption', only size, seed, limit"):
        spec.check_keys("size", "seed", "limit")
