"""What the model of a run is: from what it starts from, and what it is to learn."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from unitok.boxes import LOCATION, SPANS, WAVES
from unitok.config import CODES, ModelConfig, PortConfig, TrunkConfig
from unitok.model import UniTok
from unitok.objectives import get_objective
from unitok.reader.config import ReaderConfig
from unitok.sample.masks import check_places
from unitok.sampling import SampleSettings
from unitok.tasks import TASKS, modalities_of, way
from unitok.text import TextTokenizer
from unitok.vocabulary import Vocabulary


def described(
    start: UniTok | None,
    network: Any,
    objective: str,
    images: ImageTokenizer,
    texts: TextTokenizer,
    wanted: set[str],
    drawn: SampleSettings,
    text_length: int,
    code_vectors: bool,
    reader: ReaderConfig | None,
) -> ModelConfig:
    """A model of a trunk that learns the tasks `wanted`, beside those of the model that it starts from.

    Args:
        network: Its trunk.
        drawn: How its pictures are drawn.
        code_vectors: Whether codes begin with the vectors of the image tokenizer.

    Raises:
        UserError: the model, or the image tokenizer, cannot learn one of them.
    """
    if start is not None:
        vocabulary, ports = start.vocabulary, dict(start.config.ports)
    else:
        ports = get_objective(objective, images).ports(images.layout)
        if code_vectors:
            ports[CODES] = PortConfig(CODES, images.code_features().shape[-1])
        vocabulary = Vocabulary.of(texts.size, images.codebook_size)
    if way("inpaint", wanted) is not None:
        check_places(images)
    used = modalities_of(wanted)
    spans = {name: size for modality, own in SPANS.items() if modality in used for name, size in own.items()}
    for name, size in spans.items():
        if name == LOCATION and name not in vocabulary:
            ports[name] = PortConfig("waves", WAVES)
        vocabulary = vocabulary if name in vocabulary else vocabulary.grown(name, size)
    before = set() if start is None else set(start.config.tasks)
    if network.captions != TrunkConfig.captions and not wanted <= before:
        raise UserError(
            f"a model whose captions are no texts learns {', '.join(sorted(before))} alone: set the shares of "
            f"{', '.join(sorted(wanted - before))} to 0, as in --tasks.{min(wanted - before)}.share 0"
        )
    return ModelConfig(
        network,
        objective,
        vocabulary.spans,
        text_length,
        images.fingerprint(),
        ports,
        tuple(task for task in TASKS if task in wanted | before),
        dataclasses.asdict(drawn),
        reader,
        None if start is None else start.config.text_encoder,
    )
