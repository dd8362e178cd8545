"""Model folders: round trips to the bit, and what a wrong folder gets."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.digests import unverified
from unitok.model import UniTok
from unitok.sample.pipeline import draw_codes
from unitok.sampling import SampleSettings
from unitok.text import load_text_tokenizer, train_bpe


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_are_inverse(make_model: Callable[..., UniTok], tmp_path: Path, tied: bool) -> None:
    model = make_model("masked_token", tied_head=tied)
    model.save_pretrained(tmp_path / "model")
    loaded = UniTok.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config and loaded.fingerprint() == model.fingerprint()
    for (name, one), (_, two) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(one, two), name
    assert loaded.image_tokenizer.fingerprint() == model.image_tokenizer.fingerprint()
    assert loaded.text_tokenizer.encode("a red circle") == model.text_tokenizer.encode("a red circle")
    assert (loaded.ids.head.weight is loaded.ids.embedding.weight) == tied


def test_saving_again_replaces_and_keeps_other_files(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    make_model(seed=0).save_pretrained(tmp_path)
    (tmp_path / "log.jsonl").write_text("mine")
    second = make_model(seed=1)
    second.save_pretrained(tmp_path)
    assert UniTok.from_pretrained(tmp_path).fingerprint() == second.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "image_tokenizer", "log.jsonl", "model.safetensors", "text_tokenizer"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "image_tokenizer/config.json",
        "image_tokenizer/model.safetensors",
        "text_tokenizer/tokenizer.json",
    ],
)
def test_a_flipped_bit_anywhere_is_seen(make_model: Callable[..., UniTok], tmp_path: Path, file: str) -> None:
    """Also one that leaves every file readable: the last digit of a number, the last bit of a weight."""
    make_model().save_pretrained(tmp_path)
    path = tmp_path / file
    data = bytearray(path.read_bytes())
    place = len(data) - 4 if file.endswith("safetensors") else max(data.rfind(digit) for digit in b"13579")
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is not what was written|is damaged|is not valid JSON") as caught:
        UniTok.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_changed_setting_is_refused_unless_digests_are_not_compared(
    make_model: Callable[..., UniTok], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    spoil_config(tmp_path, text_length=40)
    with pytest.raises(UserError, match=r"config.json is not what was written: .*--no_verify if you changed it on pur"):
        UniTok.from_pretrained(tmp_path)
    with unverified():
        assert UniTok.from_pretrained(tmp_path).config.text_length == 40


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("digests", [True, False])
def test_weights_that_are_not_finite_are_refused(
    make_model: Callable[..., UniTok],
    without_digests: Callable[[Path], None],
    tmp_path: Path,
    value: float,
    digests: bool,
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.trunk.norm.weight[1] = value
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(
        UserError, match=r"model.safetensors is not written: trunk.norm.weight has (NaN|infinite values)"
    ):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and UniTok.from_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["trunk.norm.weight"][1] = value
    save_file(state, tmp_path / "model.safetensors")
    if not digests:
        without_digests(tmp_path)
    with pytest.raises(UserError, match="is damaged" if digests else r"trunk.norm.weight has (NaN|infinite values)"):
        UniTok.from_pretrained(tmp_path)


def test_weights_of_another_dtype_are_refused(
    make_model: Callable[..., UniTok], without_digests: Callable[[Path], None], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    without_digests(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["trunk.norm.weight"] = state["trunk.norm.weight"].half()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"has trunk.norm.weight as float16 instead of float32: weights and configuration"
    ):
        UniTok.from_pretrained(tmp_path)


def test_sizes_beyond_all_memory_are_refused_before_they_are_taken(
    make_model: Callable[..., UniTok], without_digests: Callable[[Path], None], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    without_digests(tmp_path)
    trunk = json.loads((tmp_path / "config.json").read_text())["trunk"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for width in (2**15, 2**26):  # 50 gigabytes, which the system may promise, and more than any model has
        spoil_config(tmp_path, trunk={**trunk, "width": width, "depth": 4})
        with pytest.raises(UserError, match=r"instead of|trunk.width is 67108864: choose at most"):
            UniTok.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kilobytes


def test_a_folder_from_before_digests_opens(
    make_model: Callable[..., UniTok], without_digests: Callable[[Path], None], tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    without_digests(tmp_path)
    assert "files" not in json.loads((tmp_path / "image_tokenizer" / "config.json").read_text())
    assert UniTok.from_pretrained(tmp_path).fingerprint() == model.fingerprint()


def spoil_config(folder: Path, **values: object) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **values}))


def spoil_span(folder: Path, name: str, size: int) -> None:
    data = json.loads((folder / "config.json").read_text())
    spoil_config(folder, vocabulary=[[n, size if n == name else s] for n, s in data["vocabulary"]])


@pytest.mark.parametrize("objective", ["next_token", "var"])
@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_folders_of_format_1_open(
    make_model: Callable[..., UniTok],
    without_digests: Callable[[Path], None],
    tmp_path: Path,
    objective: str,
    tied: bool,
) -> None:
    """As unitok 0.1 wrote them: other names of weights, and sizes instead of spans."""
    model = make_model(objective, tied_head=tied)
    model.save_pretrained(tmp_path)
    without_digests(tmp_path)
    old = {"ids.embedding.weight": "embedding.weight", "ids.head.weight": "head.weight"}
    old["ports.image.projection.weight"] = "projection.weight"
    state = load_file(tmp_path / "model.safetensors")
    save_file({old.get(n, n.removeprefix("trunk.")): t for n, t in state.items()}, tmp_path / "model.safetensors")
    data = json.loads((tmp_path / "config.json").read_text())
    sizes = dict(data.pop("vocabulary"))
    del data["tasks"]
    features = sum(port["size"] for port in data.pop("ports").values())
    data["objective"] = {"var": "next_scale"}.get(objective, objective)  # the name that it had
    data |= {"format": 1, "text_size": sizes["text"], "codebook_size": sizes["image"], "features": features}
    (tmp_path / "config.json").write_text(json.dumps(data))
    loaded = UniTok.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    settings = SampleSettings(guidance=2.0)
    assert torch.equal(*(draw_codes(one, ["a red circle"], settings, [0]) for one in (model, loaded)))


@pytest.mark.parametrize(
    ("version", "name", "now"), [(2, "masked_token", "maskgit"), (2, "next_scale", "var"), (3, "next_scale", "var")]
)
@torch.inference_mode()
def test_an_objective_of_older_formats_has_its_name_of_today(
    make_model: Callable[..., UniTok],
    without_digests: Callable[[Path], None],
    tmp_path: Path,
    version: int,
    name: str,
    now: str,
) -> None:
    model = make_model(now)
    model.save_pretrained(tmp_path)
    without_digests(tmp_path)
    spoil_config(tmp_path, format=version, objective=name)
    loaded = UniTok.from_pretrained(tmp_path)
    assert loaded.config.objective == now
    settings = SampleSettings(guidance=2.0, steps=4)
    assert torch.equal(*(draw_codes(one, ["a red circle"], settings, [0]) for one in (model, loaded)))


def test_a_vocabulary_grows_at_its_end_alone(make_model: Callable[..., UniTok], tmp_path: Path) -> None:
    """A model that was written before spans were invented opens, and its ids mean what they meant."""
    old = make_model()
    old.save_pretrained(tmp_path)
    grown = old.vocabulary.grown("location", 256).grown("second image", 32)
    for name, _ in old.vocabulary.spans:
        assert grown[name] == old.vocabulary[name]
    assert (grown.eos, grown.mask, grown.image_start) == (
        old.vocabulary.eos,
        old.vocabulary.mask,
        old.vocabulary.image_start,
    )
    assert grown["second image"].stop == grown.size == old.vocabulary.size + 288
    assert UniTok.from_pretrained(tmp_path).vocabulary == old.vocabulary
    with pytest.raises(UserError, match="vocabulary has 'location' twice: keep one"):
        grown.grown("location", 8)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([["text", 300]], "vocabulary has no eos, bos, boi, mask, pad, image: a model needs these spans"),
        ([["text", 300], ["image", 64]] + [[n, 1] for n in ("eos", "bos", "boi", "mask", "pad")], "has eos elsewhere"),
        ([["text", 2**40]], "vocabulary: 'text' is 1099511627776: choose at most"),
        ("abc", "vocabulary is 'abc': expected a list"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(
    make_model: Callable[..., UniTok], without_digests: Callable[[Path], None], tmp_path: Path, spans: Any, message: str
) -> None:
    make_model().save_pretrained(tmp_path)
    without_digests(tmp_path)
    spoil_config(tmp_path, vocabulary=spans)
    with pytest.raises(UserError, match=message):
        UniTok.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_text("x"),
            "model.safetensors cannot be read as safetensors",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: spoil_config(folder, family="gpt"), "is not a unitok model: family is 'gpt'"),
        (lambda folder: spoil_config(folder, format=99), "has format 99, this unitok reads up to 4"),
        (
            lambda folder: spoil_config(folder, colour="red"),
            "has an unknown key .colour.: known are classes, image_tokenizer",
        ),
        (lambda folder: spoil_span(folder, "image", 7), "the model knows 7 image codes"),
        (lambda folder: spoil_span(folder, "text", 7), "the model knows 7 text ids"),
        (lambda folder: spoil_config(folder, image_tokenizer="0" * 64), "is not the tokenizer this model was trained"),
        (lambda folder: (folder / "text_tokenizer" / "tokenizer.json").write_text("{}"), "is not a tokenizer file"),
    ],
)
def test_a_wrong_folder_is_refused_in_one_line(
    make_model: Callable[..., UniTok],
    without_digests: Callable[[Path], None],
    tmp_path: Path,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    make_model().save_pretrained(tmp_path)
    without_digests(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        UniTok.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_foreign_tensors_are_listed(
    make_model: Callable[..., UniTok], without_digests: Callable[[Path], None], tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path)
    without_digests(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["other"] = state.pop("trunk.norm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"2 problems:\n.*lacks trunk.norm.weight: .*\n.*has unexpected other: "):
        UniTok.from_pretrained(tmp_path)


def test_missing_folder() -> None:
    with pytest.raises(UserError, match="model folder nowhere does not exist"):
        UniTok.from_pretrained("nowhere")


def test_byte_level_bpe_writes_any_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(["a red circle", "a blue circle"], 300)
    for text in ("a red circle", "naïve 😀 zebra", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode("😀 a red circle")) < tokenizer.size <= 300
    assert len(tokenizer.encode("a red circle")) < 6
    tokenizer.save(tmp_path)
    assert load_text_tokenizer(tmp_path).encode("a blue one") == tokenizer.encode("a blue one")


def test_text_tokenizer_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text_vocabulary is 100: choose at least 256"):
        train_bpe(["a"], 100)
    with pytest.raises(UserError, match="not found: give a folder with tokenizer"):
        load_text_tokenizer(tmp_path / "nothing.json")
