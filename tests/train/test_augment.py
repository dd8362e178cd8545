"""Training pictures that are mirrored, cropped and moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_vq.base import load_tokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png, to_float
from unitok.data.codes.shards import CodesDataset
from unitok.data.open import open_data
from unitok.data.records import Record
from unitok.seeding import keyed_generator
from unitok.train.commands import encode
from unitok.train.config import AugmentConfig, SourceConfig
from unitok.train.pictures import augment


def test_augmentation_is_keyed_and_each_setting_stands_alone() -> None:
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)

    def changed(config: AugmentConfig, index: int) -> torch.Tensor:
        result = augment(Record("x", image=image), config, keyed_generator(0, "augment", 0, index)).image
        assert result is not None and result.dtype == torch.uint8 and result.shape == image.shape
        return result

    both = AugmentConfig(flip=0.5, crop=0.6)
    assert all(torch.equal(changed(both, index), changed(both, index)) for index in range(5))
    flips = [torch.equal(changed(AugmentConfig(flip=0.5), index), image.flip(-1)) for index in range(200)]
    assert 70 < sum(flips) < 130
    assert all(torch.equal(changed(AugmentConfig(), index), image) for index in range(5))
    crops = [changed(AugmentConfig(crop=0.6), index) for index in range(200)]
    assert len({crop.numpy().tobytes() for crop in crops}) > 50
    for index, flipped in enumerate(flips[:20]):
        expected = changed(AugmentConfig(crop=0.6), index)
        mirrored = augment(
            Record("x", image=image.flip(-1)), AugmentConfig(crop=0.6), keyed_generator(0, "augment", 0, index)
        ).image
        assert torch.equal(changed(both, index), mirrored if flipped else expected)  # type: ignore[arg-type]


def test_pictures_are_moved_and_their_border_is_repeated() -> None:
    image = torch.arange(3 * 5 * 6, dtype=torch.uint8).reshape(3, 5, 6)
    rows, columns = torch.arange(5), torch.arange(6)
    places = {
        image[:, (rows - down).clamp(0, 4)][:, :, (columns - right).clamp(0, 5)].numpy().tobytes()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    found = set()
    for index in range(100):
        moved = augment(Record("x", image=image), AugmentConfig(shift=1), keyed_generator(0, "augment", 0, index)).image
        assert moved is not None
        found.add(moved.numpy().tobytes())
    assert found == places


def test_augmented_runs_differ_from_plain_ones(tmp_path: Path, train_small_tokenizer: Any) -> None:
    plain = train_small_tokenizer(tmp_path / "plain", steps=2)
    mirrored = train_small_tokenizer(tmp_path / "mirrored", steps=2, augment=AugmentConfig(flip=1.0))
    first, second = ([entry["loss"] for entry in log if entry["kind"] == "train"] for log in (plain, mirrored))
    assert first != second
    record = json.loads((tmp_path / "mirrored" / "run.json").read_text())
    assert record["settings"]["augment"]["flip"] == 1.0


def test_pictures_are_changed_and_codes_are_not(
    tmp_path: Path, tiny_tokenizer_folder: Path, train_small_generator: Any
) -> None:
    """Beside each other in a step: the source with pixels is augmented, the one with codes as it was."""
    encode(data="shapes?limit=64", image_tokenizer=tiny_tokenizer_folder, out=tmp_path / "codes")
    drawn, read = {"text_to_image": 1.0}, {"image_to_text": 1.0}

    def losses(name: str, pixels: dict[str, float], codes: dict[str, float], **settings: Any) -> list[Any]:
        data = [
            SourceConfig(data="shapes?limit=64", tasks=pixels),
            SourceConfig(data=str(tmp_path / "codes"), tasks=codes),
        ]
        records = train_small_generator(tmp_path / name, data=data, steps=2, seed=4, **settings)
        return [
            (one["loss/text_to_image"], one["loss/image_to_text"]) for one in records if "loss/image_to_text" in one
        ]

    moved = AugmentConfig(shift=3, flip=0.5)
    plain, changed = losses("plain", read, drawn), losses("changed", read, drawn, augment=moved)
    assert plain[0][0] == changed[0][0] and plain[0][1] != changed[0][1]
    with pytest.raises(UserError, match=r"codes holds codes, which --augment does not change: give the pictures"):
        train_small_generator(tmp_path / "out", data=str(tmp_path / "codes"), steps=1, augment=moved)
    for records, task in (("ground", "ground"), ("edit", "edit"), ("story", "interleaved")):
        with pytest.raises(UserError, match=rf"has boxes or further pictures \({task}\), which --augment would"):
            data = [SourceConfig(data=f"shapes?task={records}&limit=64", tasks={task: 1.0})]
            train_small_generator(tmp_path / "out", data=data, steps=1, augment=moved)
    assert not (tmp_path / "out").exists()


def test_changed_copies_are_encoded_each_in_its_own_way(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    def encoded(name: str, **settings: Any) -> CodesDataset:
        encode(data="shapes@val?limit=6", image_tokenizer=tiny_tokenizer_folder, out=tmp_path / name, **settings)
        return CodesDataset(tmp_path / name)

    moved = AugmentConfig(flip=0.5, shift=3)
    plain = encoded("plain")
    whole = encoded("whole", augment=moved, copies=3, caption_suffix=", moved", shard_size=4)
    # Begun and gone on with, in other shards: a copy follows from its number alone.
    again = encoded("again", augment=moved, copies=3, caption_suffix=", moved", batch_size=5)
    assert len(whole) == 18 and len(plain) == 6
    assert [whole[n].caption for n in range(18)] == [f"{plain[n // 3].caption}, moved" for n in range(18)]
    codes = [whole[n].codes for n in range(18)]
    assert all(torch.equal(one, again[n].codes) for n, one in enumerate(codes))
    assert len({one.numpy().tobytes() for one in codes}) > 12
    pictures, tokenizer = open_data("shapes@val?limit=6", 32), load_tokenizer(tiny_tokenizer_folder)
    changed = augment(pictures[2], moved, keyed_generator("copies", 7)).image
    assert changed is not None and torch.equal(tokenizer.encode(to_float(changed[None]))[0], codes[7])
    with pytest.raises(UserError, match="other pictures"):
        encoded("whole", augment=moved, copies=3, caption_suffix=", turned")
    with pytest.raises(UserError, match="other pictures"):
        encoded("plain", augment=moved)


def test_copies_that_would_be_wrong_or_equal_are_refused(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    def encoded(data: str, **settings: Any) -> None:
        encode(data=data, image_tokenizer=tiny_tokenizer_folder, out=tmp_path / "codes", **settings)

    with pytest.raises(UserError, match="equal copies teach nothing, so give --augment too"):
        encoded("shapes@val?limit=6", copies=2)
    with pytest.raises(UserError, match="--copies is 0: choose 1 or more"):
        encoded("shapes@val?limit=6", copies=0, augment=AugmentConfig(flip=0.5))
    save_png(tmp_path / "a.png", torch.zeros(3, 32, 32, dtype=torch.uint8))
    record = {"image": "a.png", "caption": "a circle", "phrase": "a circle", "boxes": [[0.1, 0.2, 0.5, 0.6]]}
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="has boxes, which would be wrong once its picture is changed"):
        encoded(str(tmp_path / "records.jsonl"), augment=AugmentConfig(flip=0.5))
    whole = tmp_path / "whole"  # nothing is moved
    encode(
        data=str(tmp_path / "records.jsonl"),
        image_tokenizer=tiny_tokenizer_folder,
        out=whole,
        caption_suffix=", whole",
    )
    assert CodesDataset(whole)[0].caption == "a circle, whole"
