"""The chain: streamed statistics, sources, saved files, provenance. Closed forms, other tools on the same features."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_pictures import pictures, rows
from torch import Tensor

from unitok.eval.feature_network import FeatureNetwork
from unitok.eval.metrics import statistics
from unitok.eval.metrics.distances import distances
from unitok.eval.metrics.frechet import fit_gaussian, gaussian_distance
from unitok.eval.metrics.inception_score import inception_score
from unitok.eval.metrics.kid import polynomial_mmd
from unitok.eval.metrics.statistics import (
    CHUNK,
    KeptRows,
    RunningGaussian,
    fid,
    measure_statistics,
    statistics_of_features,
)

# --- statistics -------------------------------------------------------------------------------------------------------


def test_two_gaussians_have_the_closed_form_through_the_stream() -> None:
    """Rows with exactly the wanted mean and covariance, fed in uneven batches."""

    def exact(mean: Tensor, deviations: Tensor, seed: int) -> Tensor:
        x = rows(3000, 3, seed).double()
        x = x - x.mean(dim=0)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (len(x) - 1))).T
        return x * deviations + mean

    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    std_a, std_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    gaussians = []
    for values in (exact(mean_a, std_a, 0), exact(mean_b, std_b, 1)):
        running = RunningGaussian(3)
        for part in values.split(377):
            running.update(part)
        gaussians.append(running.gaussian())
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    assert gaussian_distance(*gaussians) == pytest.approx(expected, rel=1e-9)


def test_streamed_statistics_do_not_depend_on_batches_and_survive_a_large_offset() -> None:
    values = rows(2 * CHUNK + 77, 16, 0) + 3000.0  # sums of squares would lose eight digits here
    whole = fit_gaussian(values)
    results = []
    for size in (1, 50, CHUNK, len(values)):
        running = RunningGaussian(16)
        for part in values.split(size):
            running.update(part)
        results.append(running.gaussian())
    torch.testing.assert_close(results[0].covariance, whole.covariance, rtol=1e-9, atol=1e-9)
    for other in results[1:]:
        assert torch.equal(other.mean, results[0].mean) and torch.equal(other.covariance, results[0].covariance)
    backwards = RunningGaussian(16)
    backwards.update(values.flip(0))
    torch.testing.assert_close(backwards.gaussian().covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_what_is_held_does_not_grow() -> None:
    running, kept = RunningGaussian(4), KeptRows(50)
    for number in range(300):
        running.update(rows(10, 4, number))
        kept.update(rows(10, 4, number))
        assert running._rows < CHUNK and sum(map(len, kept._rows)) <= 2 * 50 + 10
    assert running.gaussian().count == 3000 and len(kept.result()) == 50


def test_kept_rows_are_a_random_subset_that_batches_do_not_change() -> None:
    values = torch.arange(3000.0)[:, None]
    chosen = []
    for size in (1, 64, 3000):
        kept = KeptRows(400, seed=3)
        for part in values.split(size):
            kept.update(part)
        chosen.append(kept.result())
    assert all(torch.equal(one, chosen[0]) for one in chosen)
    assert chosen[0].squeeze().diff().min() > 0, "in order, each once"
    assert abs(float(chosen[0].mean()) - 1499.5) < 150, "from everywhere"


@pytest.mark.parametrize(("count", "dim"), [(400, 64), (50, 64)])
def test_fid_equals_pytorch_fid_and_torch_fidelity(count: int, dim: int) -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = rows(count, dim, 0) @ rows(dim, dim, 9), rows(count + 9, dim, 1, 0.3) @ rows(dim, dim, 8)
    ours = fid(statistics_of_features(a), statistics_of_features(b))
    x, y = a.double().numpy(), b.double().numpy()
    outside = calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert ours == pytest.approx(float(outside), rel=1e-3 if count < dim else 1e-7)
    other = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    assert ours == pytest.approx(other["frechet_inception_distance"], rel=1e-3)


def test_kid_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = rows(150, 64, 0), rows(150, 64, 1, 0.2)
    outside = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=150, rng_seed=0, verbose=False)
    assert polynomial_mmd(a, b) == pytest.approx(outside["kernel_inception_distance_mean"], rel=1e-3)


def blur(images: Tensor) -> Tensor:
    x = images.float()
    for _ in range(3):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x.round().byte()


def noise(images: Tensor) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 40 * drawn).round().clamp(0, 255).byte()


def test_damage_moves_the_right_metric_the_right_way(network: FeatureNetwork) -> None:
    real = measure_statistics(network, pictures(240).split(60), "real")

    def values(images: Tensor) -> dict[str, float]:
        found, _ = distances(measure_statistics(network, images.split(60), "drawn"), real, network)
        return {key: number.value for key, number in found.items() if isinstance(number.value, float)}

    other = pictures(240, seed=1)
    clean, blurred, noisy = values(other), values(blur(other)), values(noise(other))
    dropped = values(other[:12].repeat(20, 1, 1, 1))
    for damaged in (blurred, noisy):  # the pictures are bad
        assert damaged["fid"] > 2 * clean["fid"] and damaged["kid"] > clean["kid"] + clean["kid_std"]
        assert damaged["precision"] < clean["precision"] - 0.2 and damaged["density"] < clean["density"] - 0.2
    assert dropped["fid"] > 1.5 * clean["fid"] and dropped["kid"] > clean["kid"]  # good pictures, always the same
    assert dropped["recall"] < clean["recall"] - 0.3 and dropped["coverage"] < clean["coverage"] - 0.3
    assert dropped["precision"] > clean["precision"] - 0.15, "repetition is no loss of fidelity"


def test_holding_all_features_changes_no_number(network: FeatureNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--save_features` keeps all; KID, precision and the like are of those that are kept without it."""
    monkeypatch.setattr(statistics, "KEPT", 50)
    found = []
    for keep in (50, None):
        one = measure_statistics(network, [pictures(120)], "one", keep=keep)
        other = measure_statistics(network, [pictures(80, seed=1)], "other", keep=keep)
        numbers, _ = distances(one, other, network)
        assert numbers["kid"].provenance["features used"] == "50 and 50"
        found.append({key: number.value for key, number in numbers.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)  # FID is rounded differently where all are at hand


def test_inception_score_is_of_all_pictures_however_few_features_are_held(network: FeatureNetwork) -> None:
    class Classifying(type(network)):  # type: ignore[misc]
        def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
            values = self.features(images)
            return values, 20 * values[:, :30]

    classifying, images = Classifying(torch.device("cpu")), pictures(120)
    real = measure_statistics(classifying, [pictures(40, seed=1)], "real")
    expected = inception_score(classifying.features_and_logits(images)[1])
    for keep in (20, None):
        numbers, _ = distances(measure_statistics(classifying, images.split(50), "drawn", keep=keep), real, classifying)
        assert numbers["inception_score"].value == pytest.approx(expected.mean, rel=1e-4) and expected.mean > 1.05
        assert numbers["inception_score"].provenance["pictures"] == 120
    assert "inception_score" not in distances(measure_statistics(network, [images], "drawn"), real, network)[0]


def test_batch_size_and_order_do_not_change_the_numbers(network: FeatureNetwork) -> None:
    images, other = pictures(120), measure_statistics(network, [pictures(120, seed=1)], "other")
    results = []
    for batches in (images.split(120), images.split(7), images.flip(0).split(50)):
        one = measure_statistics(network, batches, "one")
        numbers, _ = distances(one, other, network)
        results.append((numbers["fid"].value, numbers["recall"].value, one.provenance["sha256"]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    assert results[2][0] == pytest.approx(results[0][0], rel=1e-4)
    assert results[0][1:] == results[1][1:] == results[2][1:]


def test_fid_is_quick() -> None:
    """A quarter of Inception's dimension and fewer rows; benchmarks/frechet.py has the full size."""
    started = time.process_time()
    sums = [RunningGaussian(512) for _ in range(2)]
    for number, one in enumerate(sums):
        for part in rows(2000, 512, number).split(64):
            one.update(part)
    gaussian_distance(sums[0].gaussian(), sums[1].gaussian())
    assert time.process_time() - started < 5, "about half a second of a core"
