"""A published generator becomes a model like any other, after every tensor of its file was checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.read import locate, read_weights
from tokenizers_vq.published.tensors import check_numbers, misfits
from tokenizers_vq.weights import build_empty

from .conditions import caption_ports
from .config import ModelConfig
from .model import UniTok
from .objectives import get_objective
from .ports import STATES
from .text import number_tokenizer
from .trunk.published import published_family
from .trunk.published.family import Family, Weights
from .vocabulary import Vocabulary


def import_generator(
    family: str, path: str | Path, image_tokenizer: ImageTokenizer, settings: Mapping[str, Any] | None = None
) -> UniTok:
    """The model in a published checkpoint, in evaluation mode, float32 on the CPU.

    Gives the codes of the authors' code where the most likely ones are taken, and its logits to 1e-4. Sizes are read
    off the shapes of the tensors.

    Args:
        family: A key of `unitok.trunk.published.PUBLISHED`.
        path: .pt, .pth, .ckpt, .bin, .safetensors, the .index.json of several, or the folder that holds it;
            `hf:owner/name` or `hf:owner/name/file` fetches from the hub.
        image_tokenizer: the tokenizer that the model was trained with, for pictures of the model's size.
        settings: what no shape says, under the authors' names; their whole configuration may be given
            (`unused_settings` names what is not read).

    Raises:
        UserError: an unknown family, a file that cannot be had or read, tensors that are missing, unexpected,
            misshapen, or not finite; a tokenizer of another model.
    """
    table = published_family(family)
    file = locate(str(path), table.files)
    read = read_weights(file, table.wrappers)
    weights = {name: tensor for name, tensor in read.items() if not name.endswith(table.ignored)}
    _check_name(table, file, image_tokenizer)
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        trunk, classes, codes = table.read(shapes, dict(_flat(settings or {})), image_tokenizer.layout)
        number, complaint = misfits(weights, table.shapes(trunk, classes, codes))
    except (KeyError, IndexError, ZeroDivisionError):  # a tensor that says the sizes is missing, or has no sizes
        number, complaint = 1, ""
    if number:
        raise UserError(f"{path} is no {family}: {_nearest(table, weights, complaint)}; give another family or file")
    if codes != image_tokenizer.codebook_size:
        raise UserError(
            f"{path} draws {codes} codes, the image tokenizer has {image_tokenizer.codebook_size}: give the folder "
            f"that unitok import {table.tokenizer} made"
        )
    check_numbers(path, weights, weights.keys(), "generator")
    texts = number_tokenizer(max(1, classes))
    vocabulary = Vocabulary.of(texts.size, codes)
    ports = get_objective(table.objective, image_tokenizer, trunk.plain_inputs).ports(image_tokenizer.layout)
    config = ModelConfig(
        trunk,
        table.objective,
        vocabulary.spans,
        1 if classes else STATES,
        image_tokenizer.fingerprint(),
        ports | caption_ports(trunk.captions, trunk.state_width),
        ("text_to_image",),
        table.sampling(trunk),
    )
    model = build_empty(lambda: UniTok(config, image_tokenizer, texts), str(path))
    state = table.state(trunk, weights, vocabulary)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()} | _own(model))
    return model.eval()


def unused_settings(family: str, settings: Mapping[str, Any]) -> list[str]:
    """The names of those settings that an import does not read: training's, and those that the tensors say too."""
    return sorted({name for name, _ in _flat(settings)} - published_family(family).settings)


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings of a configuration, without the groups that they stand in."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(name), value


def _own(model: UniTok) -> dict[str, Any]:
    """What a model holds beside that of its own file."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("image_tokenizer.")}


def _check_name(table: Family, file: Path, image_tokenizer: ImageTokenizer) -> None:
    """Raises UserError where a released file's name tells of another picture size, which no tensor may tell."""
    if file.name in table.released():
        wanted, own = table.grids(table.released()[file.name][0]), image_tokenizer.layout.scales
        if len(wanted) != len(own) or wanted[-1] != own[-1]:
            height, width = wanted[-1]
            raise UserError(
                f"{file.name} draws {height}x{width} codes, the image tokenizer makes "
                f"{image_tokenizer.layout.names[-1]}: import the tokenizer for the model's picture size"
            )


def _nearest(table: Family, weights: Weights, complaint: str) -> str:
    """What does not fit, and which released model comes nearest."""
    found = {name: misfits(weights, table.shapes(*sizes)) for name, sizes in table.released().items()}
    name = min(found, key=lambda one: found[one][0])
    return f"{complaint or found[name][1]} (the nearest released model is {name})"
