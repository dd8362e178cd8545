"""Exact checks on shapes, caption scores, retrieval, reconstruction scores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.networks.embedded import WEIGHTS
from unitok.data.shapes.dataset import ShapesDataset
from unitok.data.shapes.scenes import describe
from unitok.eval.metrics.alignment import (
    are_shapes,
    check_pictures,
    exact_share,
    nearest_group,
    true_share,
    wrong_attributes,
)
from unitok.eval.metrics.frechet import frechet_distance
from unitok.eval.metrics.reconstruction import BEST_PSNR, ReconstructionMeter, psnr, reconstruct, ssim
from unitok.eval.networks.encoder.data import EDITS, edit, is_true, picture
from unitok.eval.networks.encoder.measure import scene_discrimination
from unitok.eval.networks.encoder.model import load_encoder
from unitok.eval.networks.features import load_features
from unitok.model import UniTok


def test_encoder_prefers_the_true_caption_to_one_that_is_wrong_in_one_attribute() -> None:
    assert WEIGHTS.stat().st_size <= 5_000_000
    found = scene_discrimination(load_encoder(), count=150, seed=7)
    # On 1,000 scenes: 0.967, 1.000, 0.999, 0.872, 0.668 (encoder/README.md). Less three standard errors of 150 scenes.
    least = {"shape": 0.92, "colour": 0.98, "size": 0.98, "relation": 0.78, "binding": 0.54}
    assert {name: found[name] >= least[name] for name in least} == dict.fromkeys(EDITS, True), found


def test_false_captions_of_training_are_false_and_canonical() -> None:
    import random

    dataset = ShapesDataset(split="val", length=1024)
    false = dict.fromkeys(EDITS, 0)
    for index in range(60):
        scene = dataset.scene(index)
        assert is_true(describe(scene), scene)
        for what in EDITS:
            other = edit(scene, what, random.Random(index))
            false[what] += other is not None and not is_true(describe(other), scene)
    assert false["shape"] == false["colour"] == false["size"] == 60
    assert false["relation"] > 25 and false["binding"] > 25, "scenes of one object have neither"


def test_shapes_pictures_are_checked_exactly() -> None:
    dataset = ShapesDataset(split="val", length=1024)
    records = [dataset[index] for index in range(6)]
    captions = [record.caption or "" for record in records]
    images = torch.stack([record.image for record in records if record.image is not None])
    assert are_shapes(captions) and not are_shapes([*captions, "a dog"]) and not are_shapes([])
    assert all(verdict.all for verdict in check_pictures(images, captions))
    wrong = check_pictures(images[:1], ["a large purple cross"])[0]
    assert not wrong.all and wrong_attributes(wrong)
    assert true_share(images, captions) == 1
    assert true_share(images, [*captions[:3], "a dog", "", "a small red"]) == 0.5


def test_exact_captions_ignore_only_white_space() -> None:
    assert exact_share(["a  dog ", "a cat", "A dog"], ["a dog", "a dog", "a dog"]) == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="no captions to compare"):
        exact_share([], [])


def test_retrieval_by_the_nearest_picture_of_a_group() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.7, 0.7]])
    groups = ["crab", "dog", "sun", "dog"]
    queries = torch.tensor([[2.0, 0.1], [0.5, 0.6], [-1.0, 0.9]])
    right = ["crab", "dog", "crab"]
    assert nearest_group(queries, right, gallery, groups, top=(1, 2, 3)) == pytest.approx(
        {"top1": 2 / 3, "top2": 2 / 3, "top3": 1.0}
    )
    with pytest.raises(UserError, match=r"1 names of what the pictures should show.*'cat'"):
        nearest_group(queries, ["cat", "dog", "dog"], gallery, groups)


def test_psnr_and_ssim() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert psnr(images, images).tolist() == [BEST_PSNR] * 3
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    black, grey = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    assert psnr(black, grey).item() == pytest.approx(-20 * torch.log10(torch.tensor(0.2)).item(), rel=1e-6)
    slightly = (images.float() + 5 * torch.randn(images.shape)).clamp(0, 255).byte()
    badly = (images.float() + 50 * torch.randn(images.shape)).clamp(0, 255).byte()
    assert (psnr(images, slightly) > psnr(images, badly)).all() and (ssim(images, slightly) > ssim(images, badly)).all()


def test_scenes_are_drawn_at_the_size_of_the_encoder() -> None:
    scene = ShapesDataset(split="val", length=1024).scene(0)
    for size in (32, 64):
        assert picture(scene, size).shape == (3, 64, 64)


def test_reconstruction_scores_are_those_of_all_pictures_at_once_and_nothing_grows(
    make_model: Callable[..., UniTok],
) -> None:
    network, tokenizer, dataset = (
        load_features(),
        make_model().image_tokenizer.eval(),
        ShapesDataset(split="val", length=1024),
    )
    images = torch.stack([image for index in range(400) if (image := dataset[index].image) is not None])
    for count in (60, 400):  # fewer and more than the network has dimensions
        some, meter = images[:count], ReconstructionMeter(tokenizer, network, "shapes")
        for part in some.split(40):
            meter.update(part)
            assert all(sum(map(len, one.rows._rows)) <= 2 * network.dim + 40 for one in (meter.before, meter.after))
        scores, (back, _) = meter.scores(), reconstruct(tokenizer, some)
        assert scores.rfid == pytest.approx(frechet_distance(network.features(some), network.features(back)), rel=1e-4)
        assert scores.psnr == pytest.approx(float(psnr(some, back).mean()), rel=1e-5)
        assert scores.ssim == pytest.approx(float(ssim(some, back).mean()), rel=1e-5)
        assert scores.count == scores.originals["pictures"] == count and scores.originals["image size"] == "32x32"
