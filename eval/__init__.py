"""Measuring: pictures -> features -> statistics -> number, and reports that say where each number comes from.

    pictures    sources (a folder, a data spec, a model, a saved file), or any iterable of uint8 (B, 3, H, W)
    features    networks.features.load_features: embedded, efficientnet_lite0, inception, clip:<name>, dinov2:<name>
    statistics  metrics.statistics.measure_statistics; saved.save_statistics keeps them
    number      metrics: fid, kid, prdc, cmmd, inception_score, clipscore, r_precision, captions, geneval

Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captioning import measure_captioning
    from .feature_network import FeatureNetwork, ImageTextNetwork, extract
    from .generation import measure_generation
    from .measure import measure_tokenizer
    from .metrics.captions import bleu, cider
    from .metrics.clipscore import clip_score
    from .metrics.frechet import fit_gaussian, frechet_distance, gaussian_distance
    from .metrics.geneval import read_prompts
    from .metrics.kid import kernel_distance
    from .metrics.memorisation import measure_memorisation
    from .metrics.statistics import Statistics, fid, measure_statistics, statistics_of_features
    from .networks.features import load_features, load_image_text
    from .provenance import difference, require_same
    from .questions import measure_questions
    from .report import Report, Section
    from .reports.output import print_report, read_items, write_report
    from .saved import load_statistics, npz_pictures, save_statistics
    from .sets import compare_sets, score_pairs
    from .sources import dataset_pictures, load_set, model_pictures

_HOMES = {
    "FeatureNetwork": "feature_network",
    "ImageTextNetwork": "feature_network",
    "Report": "report",
    "Section": "report",
    "Statistics": "metrics.statistics",
    "bleu": "metrics.captions",
    "cider": "metrics.captions",
    "clip_score": "metrics.clipscore",
    "compare_sets": "sets",
    "dataset_pictures": "sources",
    "difference": "provenance",
    "extract": "feature_network",
    "fid": "metrics.statistics",
    "fit_gaussian": "metrics.frechet",
    "frechet_distance": "metrics.frechet",
    "gaussian_distance": "metrics.frechet",
    "kernel_distance": "metrics.kid",
    "load_features": "networks.features",
    "load_image_text": "networks.features",
    "load_set": "sources",
    "load_statistics": "saved",
    "measure_captioning": "captioning",
    "measure_generation": "generation",
    "measure_memorisation": "metrics.memorisation",
    "measure_questions": "questions",
    "measure_statistics": "metrics.statistics",
    "measure_tokenizer": "measure",
    "model_pictures": "sources",
    "npz_pictures": "saved",
    "print_report": "reports.output",
    "read_items": "reports.output",
    "read_prompts": "metrics.geneval",
    "require_same": "provenance",
    "save_statistics": "saved",
    "score_pairs": "sets",
    "statistics_of_features": "metrics.statistics",
    "write_report": "reports.output",
}

__all__ = [
    "FeatureNetwork",
    "ImageTextNetwork",
    "Report",
    "Section",
    "Statistics",
    "bleu",
    "cider",
    "clip_score",
    "compare_sets",
    "dataset_pictures",
    "difference",
    "extract",
    "fid",
    "fit_gaussian",
    "frechet_distance",
    "gaussian_distance",
    "kernel_distance",
    "load_features",
    "load_image_text",
    "load_set",
    "load_statistics",
    "measure_captioning",
    "measure_generation",
    "measure_memorisation",
    "measure_questions",
    "measure_statistics",
    "measure_tokenizer",
    "model_pictures",
    "npz_pictures",
    "print_report",
    "read_items",
    "read_prompts",
    "require_same",
    "save_statistics",
    "score_pairs",
    "statistics_of_features",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
