"""A published generator becomes a model like any other, after every tensor of its file was checked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.published.load import likeness
from tokenizers_vq.published.read import beside, locate, read_weights
from tokenizers_vq.published.tensors import alike, check_family, check_numbers, misfits
from tokenizers_vq.storage.files import read_json
from tokenizers_vq.storage.weights import build_empty

from .conditions import caption_ports
from .config import ModelConfig
from .model import UniTok
from .objectives import get_objective, objective_class
from .ports import ATTENDED, STATES
from .reader.config import READER
from .text import FILE as TEXT_FILE
from .text import TextTokenizer, load_text_tokenizer, number_tokenizer
from .trunk.published import PUBLISHED, PublishedTrunk, published_family
from .trunk.published.family import Family, Settings, Weights, flat
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .trunk.published.janus_reading import Reading

NEARLY = 0.02
"""By how much two codebooks may differ, as a share of the largest number: one of them may have been kept in bf16."""


def import_generator(
    family: str,
    path: str | Path,
    image_tokenizer: ImageTokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
    text_encoder: str | None = None,
) -> UniTok:
    """The model in a published checkpoint, in evaluation mode, float32 on the CPU.

    Gives the codes of the authors' code where the most likely ones are taken, and its logits to 1e-4. Sizes are read
    off the shapes of the tensors; where captions are texts, `tokenizer.json` and `config.json` are read beside them.

    Args:
        family: A key of `unitok.trunk.published.PUBLISHED`.
        path: .pt, .pth, .ckpt, .bin, .safetensors, the .index.json of several, or the folder that holds it;
            `hf:owner/name` or `hf:owner/name/file` fetches from the hub.
        image_tokenizer: the tokenizer that the model was trained with, for pictures of the model's size. None: the file
            holds it too.
        settings: what no shape says, under the authors' names; their whole configuration may be given
            (`unused_settings` names what is not read).
        text_encoder: a folder, or hf:owner/name: makes the states that the model reads captions as. The model keeps its
            name and digest, not its weights.

    Raises:
        UserError: an unknown family, a file that cannot be had or read, tensors that are missing, unexpected,
            misshapen, or not finite; a tokenizer of another model; a text tokenizer that is not there;
            a text encoder that is not there, or makes states of another size.
    """
    table = published_family(family)
    if image_tokenizer is None and not table.holds_tokenizer:
        raise UserError(f"{family} draws codes of an image tokenizer: give its folder with --image_tokenizer")
    file = locate(str(path), table.files)
    read = read_weights(file, table.wrappers)
    given = _settings(table, str(path), file, settings or {})
    try:
        return _imported(family, path, file, read, given, image_tokenizer, text_encoder)
    except UserError:
        check_family(path, family, likeness_to_families(read, given))
        raise


def _imported(
    family: str,
    path: str | Path,
    file: Path,
    read: Weights,
    given: Settings,
    image_tokenizer: ImageTokenizer | None,
    text_encoder: str | None,
) -> UniTok:
    """The model in the tensors of a file; the rest as of `import_generator`."""
    table = published_family(family)
    named = table.named({name: one for name, one in read.items() if not name.endswith(table.ignored)}, given)
    if image_tokenizer is None:
        image_tokenizer = table.image_tokenizer(named, given, str(path))
    weights = {name: tensor for name, tensor in named.items() if not name.startswith(table.left_out)}
    _check_name(table, file, image_tokenizer)
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        trunk, classes, codes = table.read(shapes, table.configuration(given), image_tokenizer.layout)
        number, complaint = misfits(weights, table.shapes(trunk, classes, codes))
    except (KeyError, IndexError, ZeroDivisionError):  # a tensor that says the sizes is missing, or has no sizes
        number, complaint = 1, ""
    if number:
        raise UserError(f"{path} is no {family}: {_nearest(table, weights, complaint)}; give another family or file")
    kind = objective_class(table.objective)
    own = kind.ids_of(image_tokenizer)
    if codes != own:
        raise UserError(
            f"{path} draws {codes} {kind.counted}, the image tokenizer has {own}: give the folder "
            f"that unitok import {table.tokenizer} made"
        )
    _check_codebook(table.codebook(weights), image_tokenizer, f"{path}")
    check_numbers(path, weights, weights.keys(), "generator")
    reading = table.reading(named, given, str(path))
    tokens = {**table.tokens, **(table.reads if reading else {})}
    trunk = table.reading_trunk(trunk) if reading else trunk
    texts = _texts(tokens, str(path), file, given, classes) if tokens else number_tokenizer(max(1, classes))
    config = published_config(table, trunk, image_tokenizer, texts, codes, reading)
    config = replace(config, image_tokenizer=image_tokenizer.fingerprint())
    images = image_tokenizer
    model = build_empty(lambda: UniTok(config, images, texts), str(path))
    state = table.state(trunk, weights, model.vocabulary, texts)
    if reading:
        assert model.reader is not None
        number, complaint = misfits(reading.weights, _shapes(model.reader))
        if number:
            raise UserError(f"{path} reads pictures by another network than {family}: {complaint}; give another file")
        state |= {f"ports.{READER}.{name}": tensor for name, tensor in reading.weights.items()}
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()} | _own(model))
    if text_encoder is not None:
        model.config.text_encoder = model.caption_states.named(text_encoder)
    return model.eval()


def published_config(
    table: Family,
    trunk: PublishedTrunk,
    image_tokenizer: ImageTokenizer,
    texts: TextTokenizer,
    codes: int,
    reading: Reading | None = None,
) -> ModelConfig:
    """What a model of a family is, with a trunk of these sizes that draws so many codes; without the fingerprint of its
    image tokenizer."""
    vocabulary = Vocabulary.of(texts.size, codes)
    for span in (*table.spans, *(table.reads if reading else ())):
        vocabulary = vocabulary.grown(span, 1)
    ports = get_objective(table.objective, image_tokenizer, trunk.plain_inputs).ports(image_tokenizer.layout)
    return ModelConfig(
        trunk,
        table.objective,
        vocabulary.spans,
        {"text": table.text_length, "class": 1, "states": STATES, "attended": ATTENDED}[trunk.captions],
        ports=ports | caption_ports(trunk.captions, trunk.state_width),
        tasks=table.reading_tasks if reading else table.tasks,
        sampling=table.sampling(trunk),
        reader=reading and reading.config,
    )


def unused_settings(family: str, settings: Mapping[str, Any]) -> list[str]:
    """The names of those settings that an import does not read: training's, and those that the tensors say too."""
    return sorted({name for name, _ in flat(settings)} - published_family(family).settings)


def _settings(table: Family, path: str, file: Path, given: Settings) -> Settings:
    """The settings that are given, else those of the authors' configuration beside the file."""
    if not table.tokens:
        return given
    where = beside(path, file, "config.json")
    found = read_json(where) if where.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{where} holds a {type(found).__name__}, not a configuration: restore the file")
    return {**found, **given}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _texts(tokens: Mapping[str, str], path: str, file: Path, settings: Settings, rows: int) -> TextTokenizer:
    """The text tokenizer that is named, else the one beside a file. Raises UserError where there is none, or that of
    another model."""
    named = settings.get("text_tokenizer")
    where = Path(named) if isinstance(named, str) else beside(path, file, TEXT_FILE)
    if not isinstance(named, str) and not where.is_file():
        raise UserError(
            f"{path} has no {TEXT_FILE} beside it, which turns captions into ids: put the model's own there, or name "
            "it with --settings '{\"text_tokenizer\": ...}'"
        )
    texts = load_text_tokenizer(where)
    lacking = [token for token in tokens.values() if texts.tokenizer.token_to_id(token) is None]
    if lacking:
        raise UserError(f"{where} has no {', '.join(lacking)}: give the text tokenizer of the model")
    if texts.size > rows:
        raise UserError(f"{where} has {texts.size} ids, the model {rows}: give the text tokenizer of the model")
    return texts


def _own(model: UniTok) -> dict[str, Tensor]:
    """What a model holds beside that of its own file."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("image_tokenizer.")}


def _check_name(table: Family, file: Path, image_tokenizer: ImageTokenizer) -> None:
    """Raises UserError where a released file's name tells of another picture size, which no tensor may tell."""
    if file.name in table.released():
        wanted, own = table.grids(table.released()[file.name][0]), image_tokenizer.layout.scales
        if wanted and (len(wanted) != len(own) or wanted[-1] != own[-1]):
            height, width = wanted[-1]
            raise UserError(
                f"{file.name} draws {height}x{width} codes, the image tokenizer makes "
                f"{image_tokenizer.layout.names[-1]}: import the tokenizer for the model's picture size"
            )


def _check_codebook(book: Tensor | None, image_tokenizer: ImageTokenizer, where: str) -> None:
    """Raises UserError where a file says that its model was trained with another image tokenizer."""
    if book is None:
        return
    own = image_tokenizer.code_vectors()[0]
    if own.shape != book.shape or (own - book.float()).abs().max() > NEARLY * own.abs().max():
        raise UserError(f"{where} holds the codebook of another image tokenizer: give the one of the model")


def likeness_to_families(weights: Weights, settings: Settings) -> dict[str, float]:
    """Family -> how alike the names of a file's tensors are to those of its released models, from 0 to 1. Families of
    tokenizers are among them."""
    empty = {name: tensor.to("meta") for name, tensor in weights.items()}
    found = likeness(empty)
    for family in PUBLISHED:
        table = published_family(family)
        with suppress(UserError, LookupError, RuntimeError):  # which are not what this family has under its names
            names = table.named(
                {name: one for name, one in empty.items() if not name.endswith(table.ignored)}, settings
            )
            own = [name for name in names if not name.startswith(table.left_out)]
            found[family] = max(alike(own, table.shapes(*sizes)) for sizes in table.released().values())
    return found


def _nearest(table: Family, weights: Weights, complaint: str) -> str:
    """What does not fit, and which released model comes nearest."""
    found = {name: misfits(weights, table.shapes(*sizes)) for name, sizes in table.released().items()}
    name = min(found, key=lambda one: found[one][0])
    return f"{complaint or found[name][1]} (the nearest released model is {name})"
