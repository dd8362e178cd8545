"""Frechet and kernel distance: closed forms, other tools on the same features, direction, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.eval.metrics.frechet import Gaussian, fit_gaussian, frechet_distance, gaussian_distance, too_few
from unitok.eval.metrics.kid import kernel_distance, polynomial_mmd


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    return torch.randn(count, dim, generator=generator) @ mixing + shift


def test_two_gaussians_with_commuting_covariances_have_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    var_a, var_b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 0.0]).double()
    a, b = Gaussian(mean_a, var_a.diag(), 10, ""), Gaussian(mean_b, var_b.diag(), 10, "")
    expected = 1 + 4 + float((var_a.sqrt() - var_b.sqrt()).square().sum())
    assert gaussian_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_from_samples() -> None:
    a, b = torch.randn(500, 1), 3 + 2 * torch.randn(400, 1)
    expected = (a.double().mean() - b.double().mean()) ** 2 + (a.double().std() - b.double().std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_equal_sets_have_distance_zero_and_never_less() -> None:
    for count in (300, 20):
        a = features(count, 32, 0)
        assert 0 <= frechet_distance(a, a) < 1e-6


@pytest.mark.parametrize("count", [200, 40])
def test_equals_torchmetrics_formula(count: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = features(count, 64, 0), features(count + 7, 64, 1, shift=0.2)
    one, other = fit_gaussian(a), fit_gaussian(b)
    reference = float(_compute_fid(one.mean, one.covariance, other.mean, other.covariance))
    # With 40 samples in 64 dimensions the reference takes roots of rounding noise, about 1e-8 of the largest value.
    assert frechet_distance(a, b) == pytest.approx(reference, rel=1e-6 if count < 64 else 1e-9)


def test_singular_value_path_equals_eigenvalue_path() -> None:
    a, b = features(50, 80, 0), features(70, 80, 1, shift=0.1)
    assert frechet_distance(a, b) == pytest.approx(gaussian_distance(fit_gaussian(a), fit_gaussian(b)), rel=1e-6)


def test_order_of_samples_and_of_sets_does_not_matter() -> None:
    a, b = features(300, 32, 0), features(250, 32, 1, shift=0.3)
    value = frechet_distance(a, b)
    assert frechet_distance(a[torch.randperm(300)], b.flip(0)) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(value, rel=1e-9)


def test_distance_grows_with_the_shift() -> None:
    a = features(300, 32, 0)
    values = [frechet_distance(a, features(300, 32, 1, shift=shift)) for shift in (0.0, 0.2, 0.5)]
    assert values == sorted(values) and values[2] > 2 * values[0]


def test_kid_equals_torch_fidelity_on_the_same_features() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = features(120, 48, 0), features(120, 48, 1, shift=0.2)
    reference = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=120, rng_seed=0, verbose=False)
    # torch-fidelity computes in float32
    assert polynomial_mmd(a, b) == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-4)


def test_kid_is_near_zero_within_its_spread_for_one_distribution_and_grows_with_the_shift() -> None:
    a = features(400, 32, 0)
    same, apart = kernel_distance(a, features(400, 32, 1)), kernel_distance(a, features(400, 32, 1, shift=0.3))
    assert abs(same.mean) < 2 * same.std and same.subset_size == 200
    assert apart.mean > 5 * apart.std
    assert kernel_distance(a, features(400, 32, 1)) == same, "equal seeds give equal subsets"


def test_too_few_pictures_are_warned_of() -> None:
    assert too_few(2048, 2048) == []
    assert "100 pictures with 2048-dimensional" in str(too_few(100, 2048))


def test_refusals() -> None:
    good, bad = features(20, 8, 0), features(20, 8, 1)
    bad[3, 2] = math.nan
    with pytest.raises(UserError, match=r"1 of 20 pictures have features that are not finite.*number 3"):
        frechet_distance(good, bad)
    with pytest.raises(UserError, match="not finite"):
        kernel_distance(good, bad)
    with pytest.raises(UserError, match=r"1 picture\(s\) are too few"):
        frechet_distance(good[:1], good)
    with pytest.raises(UserError, match="too few for KID"):
        kernel_distance(good[:3], good)
    with pytest.raises(UserError, match="of 8 and of 4 dimensions"):
        frechet_distance(good, good[:, :4])
    with pytest.raises(UserError, match="statistics of different networks"):
        gaussian_distance(fit_gaussian(good, "aaaa"), fit_gaussian(good, "bbbb"))
