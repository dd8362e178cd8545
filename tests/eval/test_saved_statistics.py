"""Where pictures and statistics come from, what is saved of them, and how numbers say how they were made."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from random_pictures import pictures, rows
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from unitok.eval.commands import eval_clipscore, eval_fid, eval_statistics
from unitok.eval.feature_network import FeatureNetwork
from unitok.eval.metrics.distances import distances
from unitok.eval.metrics.statistics import (
    Statistics,
    fid,
    measure_statistics,
    statistics_of_features,
)
from unitok.eval.provenance import PictureSet, difference, require_same
from unitok.eval.saved import load_statistics, npz_pictures, save_statistics
from unitok.eval.sources import load_set

# --- sources and saved files ------------------------------------------------------------------------------------------


def test_any_iterable_of_tensors_is_a_source(network: FeatureNetwork) -> None:
    def generator() -> Iterator[Tensor]:
        yield from pictures(40).split(16)

    one = measure_statistics(network, generator(), "generated")
    assert one.gaussian.count == 40 and one.provenance["image size"] == "32x32"
    assert one.provenance["sha256"] == load_set("shapes@val", network, limit=40).provenance["sha256"]


def test_saved_statistics_stand_for_the_pictures_on_either_side(tmp_path: Path, network: FeatureNetwork) -> None:
    file = tmp_path / "val.npz"
    eval_statistics("shapes@val?limit=200", file)
    eval_fid("shapes@train?limit=200", str(file), out=tmp_path / "right")
    eval_fid("shapes@train?limit=200", "shapes@val?limit=200", out=tmp_path / "pictures")
    right, whole = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("right", "pictures"))
    assert right["fid"]["fid"] == pytest.approx(whole["fid"]["fid"], rel=1e-6)
    assert "kid" not in right["fid"] and any("KID, precision" in line for line in right["warnings"])
    assert right["provenance"]["fid.fid"]["reference_sha256"] == whole["provenance"]["fid.fid"]["reference_sha256"]
    assert right["provenance"]["fid.fid"]["reference pictures"] == 200
    eval_fid(str(file), "shapes@train?limit=200", out=tmp_path / "left")
    left = json.loads((tmp_path / "left" / "report.json").read_text())
    assert left["fid"]["fid"] == pytest.approx(right["fid"]["fid"], rel=1e-6)


def test_pytorch_fid_reads_what_is_written(tmp_path: Path) -> None:
    from pytorch_fid.fid_score import compute_statistics_of_path

    statistics = statistics_of_features(rows(100, 8, 0), "ab" * 32)
    save_statistics(tmp_path / "one.npz", statistics)
    mean, covariance = compute_statistics_of_path(str(tmp_path / "one.npz"), None, 1, 8, "cpu")
    assert np.array_equal(mean, statistics.gaussian.mean.numpy())
    assert np.array_equal(covariance, statistics.gaussian.covariance.numpy())
    back = load_statistics(tmp_path / "one.npz")
    assert torch.equal(back.gaussian.covariance, statistics.gaussian.covariance)
    assert back.gaussian.count == 100 and back.gaussian.network == "ab" * 32


def test_adm_files_give_fid_their_statistics_and_the_rest_their_pictures(
    tmp_path: Path, network: FeatureNetwork
) -> None:
    images = pictures(40)
    samples = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "samples.npz", samples)
    assert torch.equal(torch.cat(list(npz_pictures(tmp_path / "samples.npz", 7))), images)
    assert torch.equal(torch.cat(list(npz_pictures(tmp_path / "samples.npz", 7, 10))), images[:10])
    whole = measure_statistics(network, [pictures(300)], "whole").gaussian
    spatial = {"mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "ref.npz", arr_0=samples, mu=whole.mean.numpy(), sigma=whole.covariance.numpy(), **spatial)
    reference = load_set(str(tmp_path / "ref.npz"), network)
    assert torch.equal(reference.gaussian.mean, whole.mean) and reference.gaussian.count == 0
    assert reference.features is not None and len(reference.features) == 40
    numbers, warnings = distances(load_set(str(tmp_path / "samples.npz"), network), reference, network)
    assert {"fid", "kid", "precision"} <= numbers.keys()
    assert any("ref.npz does not say which network made it" in line for line in warnings)


def test_bad_files_get_one_line(tmp_path: Path, network: FeatureNetwork) -> None:
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "empty.npz", other=np.zeros(3))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(160), sigma=np.eye(3))
    np.savez(tmp_path / "nan.npz", mu=np.full(160, np.nan), sigma=np.eye(160))
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "float.npz", np.zeros((2, 8, 8, 3)))
    (tmp_path / "text.npz").write_text("no archive")
    other = statistics_of_features(rows(200, 160, 0), "cd" * 32)
    save_statistics(tmp_path / "other.npz", other)
    for name, message in {
        "none": "there is no file",
        "foreign": "has 2048 dimensions, embedded has 160.*another network",
        "empty": "holds other: give a file with mu and sigma",
        "shape": "no mean and covariance",
        "nan": "not finite",
        "pickle": "mu holds Python objects, which are not read",
        "float": "pictures are uint8",
        "text": "cannot be read as .npz|is not an .npz file",
        "other": "was made with features None \\(cdcdcdcdcdcd\\), not with embedded",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            load_set(str(tmp_path / f"{name}.npz"), network)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"is not an \.npz file: give a name such as"):
        eval_statistics("shapes@val", tmp_path / "out.txt")


def test_a_header_that_says_more_than_the_file_holds_takes_no_memory(tmp_path: Path, network: FeatureNetwork) -> None:
    for name in ("mu", "arr_0"):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            for key in (name, "sigma"):
                with archive.open(f"{key}.npy", "w") as file:
                    shape = (10**6, 512, 512, 3) if name == "arr_0" else (10**12,)
                    header = {"descr": "|u1" if name == "arr_0" else "<f8", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(UserError, match=f"{name} says .* which is not what the file holds: fetch it again"):
            load_set(str(tmp_path / f"{name}.npz"), network)


def test_a_set_has_one_size(tmp_path: Path, network: FeatureNetwork) -> None:
    """Pictures of several sizes are refused before the network sees the second, unless they are scaled first."""
    for number, image in enumerate(pictures(8)):
        save_png(tmp_path / f"{number}.png", image if number < 4 else image[:, :20])
        (tmp_path / f"{number}.txt").write_text("a picture")
    message = r"has pictures of 32x32 and of 32x20, and a set is measured at one size: .*--image_size N"
    for measure in (
        lambda: load_set(str(tmp_path), network),
        lambda: measure_statistics(network, [pictures(4), pictures(4)[:, :, :20]], "my generator"),
        lambda: eval_statistics(str(tmp_path), tmp_path / "statistics.npz"),
        lambda: eval_clipscore(str(tmp_path)),
    ):
        with pytest.raises(UserError, match=message) as caught:
            measure()
        assert "\n" not in str(caught.value)
    eval_clipscore(str(tmp_path), image_size=32)
    alike, even = load_set(str(tmp_path), network, image_size=32), load_set("shapes@val", network, limit=8)
    assert alike.provenance["image size"] == "32x32 (scaled and cropped before the network)"
    assert not any("size" in line for line in distances(alike, even, network)[1])
    low = measure_statistics(network, [pictures(8)[:, :, :20]], "low")
    assert any("the pictures are 32x20 and 32x32" in line for line in distances(low, even, network)[1])


def test_features_that_are_not_finite_name_the_picture(network: FeatureNetwork) -> None:
    class Broken(type(network)):  # type: ignore[misc]
        def features(self, images: Tensor) -> Tensor:
            values = super().features(images)
            return torch.where(images.flatten(1).eq(0).all(dim=1)[:, None], torch.nan, values)

    images = pictures(10)
    images[7] = 0
    with pytest.raises(UserError, match=r"1 of 4 pictures have features that are not finite.*number 7"):
        measure_statistics(Broken(torch.device("cpu")), images.split(4), "broken")
    with pytest.raises(UserError, match="there are no pictures to measure"):
        measure_statistics(network, [], "nothing")


# --- provenance -------------------------------------------------------------------------------------------------------


def test_numbers_made_in_different_ways_are_refused_in_one_table() -> None:
    a = {
        "features": "inception",
        "features_sha256": "ab" * 32,
        "pictures": 500,
        "model_sha256": "1",
        "versions": "x 1, y 2",
    }
    same = {**a, "model_sha256": "2"}
    fewer = {**a, "pictures": 50, "features_sha256": "cd" * 32, "versions": "x 1, y 3"}
    assert difference(a, same) is None, "the model is what is compared"
    assert difference(a, {**a, "features": "a copy elsewhere"}) is None, "the hash says that it is the same"
    assert difference(a, fewer) == ("features_sha256 abababababab and cdcdcdcdcdcd, pictures 500 and 50, y 2 and y 3")
    assert require_same({"A": a, "B": same}, "fid") == []
    with pytest.raises(
        UserError, match=r"fid of A and of C were made in different ways: .*pictures 500 and 50.*--force"
    ):
        require_same({"A": a, "B": same, "C": fewer}, "fid")
    assert len(require_same({"A": a, "B": same, "C": fewer}, "fid", force=True)) == 1


def test_every_number_says_how_it_was_made(tmp_path: Path) -> None:
    eval_fid("shapes@val?limit=40", "shapes@train?limit=40", out=tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    wanted = {
        "metric", "features", "features_sha256", "resize", "pictures", "image size", "reference", "reference_sha256",
        "reference pictures", "seed", "versions",
    }  # fmt: skip
    assert data["fid"].keys() >= {"fid", "kid", "precision", "recall", "density", "coverage"}
    for key in data["fid"]:
        origin = data["provenance"][f"fid.{key}"]
        assert wanted <= origin.keys() and origin["metric"] == key


def test_hash_of_pictures_ignores_order_and_batches_alone() -> None:
    images = pictures(6)

    def digest(*batches: Tensor, captions: list[str] | None = None) -> str:
        seen = PictureSet("set")
        for batch in batches:
            seen.update(batch, captions)
        return seen.hexdigest()

    assert digest(images) == digest(images[3:], images[:3])
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    different = [digest(images), digest(changed), digest(images[:5]), digest(images, images[:1])]
    different += [digest(images, captions=list("abcdef")), digest(images, captions=list("abcdeg"))]
    assert len(set(different)) == 6


def test_statistics_without_features_still_give_fid() -> None:
    a, b = statistics_of_features(rows(100, 8, 0)), statistics_of_features(rows(90, 8, 1, 0.5))
    assert fid(Statistics(a.gaussian), Statistics(b.gaussian)) == pytest.approx(fid(a, b), rel=1e-12)
