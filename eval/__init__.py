"""Measuring: pictures -> features -> statistics -> number, and reports that say where each number comes from.

Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clipscore import clip_score
    from .features import FeatureNetwork, ImageTextNetwork, extract, load_features, load_image_text
    from .frechet import fit_gaussian, frechet_distance, gaussian_distance
    from .kid import kernel_distance
    from .measure import compare_sets, measure_captioning, measure_generation, measure_tokenizer, score_pairs
    from .output import print_report, write_report
    from .report import Report, Section

_HOMES = {
    "FeatureNetwork": "features",
    "ImageTextNetwork": "features",
    "Report": "report",
    "Section": "report",
    "clip_score": "clipscore",
    "compare_sets": "measure",
    "extract": "features",
    "fit_gaussian": "frechet",
    "frechet_distance": "frechet",
    "gaussian_distance": "frechet",
    "kernel_distance": "kid",
    "load_features": "features",
    "load_image_text": "features",
    "measure_captioning": "measure",
    "measure_generation": "measure",
    "measure_tokenizer": "measure",
    "print_report": "output",
    "score_pairs": "measure",
    "write_report": "output",
}

__all__ = [
    "FeatureNetwork",
    "ImageTextNetwork",
    "Report",
    "Section",
    "clip_score",
    "compare_sets",
    "extract",
    "fit_gaussian",
    "frechet_distance",
    "gaussian_distance",
    "kernel_distance",
    "load_features",
    "load_image_text",
    "measure_captioning",
    "measure_generation",
    "measure_tokenizer",
    "print_report",
    "score_pairs",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
