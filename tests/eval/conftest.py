"""A feature network that needs no weights."""

from __future__ import annotations

import pytest

from unitok.eval.feature_network import FeatureNetwork
from unitok.eval.networks.features import load_features


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return load_features("embedded")
