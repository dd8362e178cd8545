"""Measuring: pictures -> features -> statistics -> number, and reports that say where each number comes from.

Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captioning import measure_captioning
    from .clipscore import clip_score
    from .features import FeatureNetwork, ImageTextNetwork, extract, load_features, load_image_text
    from .frechet import fit_gaussian, frechet_distance, gaussian_distance
    from .generation import measure_generation
    from .kid import kernel_distance
    from .measure import measure_tokenizer
    from .output import print_report, write_report
    from .report import Report, Section
    from .sets import compare_sets, score_pairs

_HOMES = {
    "FeatureNetwork": "features",
    "ImageTextNetwork": "features",
    "Report": "report",
    "Section": "report",
    "clip_score": "clipscore",
    "compare_sets": "sets",
    "extract": "features",
    "fit_gaussian": "frechet",
    "frechet_distance": "frechet",
    "gaussian_distance": "frechet",
    "kernel_distance": "kid",
    "load_features": "features",
    "load_image_text": "features",
    "measure_captioning": "captioning",
    "measure_generation": "generation",
    "measure_tokenizer": "measure",
    "print_report": "output",
    "score_pairs": "sets",
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
