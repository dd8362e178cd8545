"""The model that would be trained, and a batch for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tokenizers_vq.base import CONFIG_FILE, ImageTokenizer, build_tokenizer
from tokenizers_vq.config import TOKENIZER_PRESETS, config_from_dict
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import UserError, shown
from tokenizers_vq.published.load import released_configs
from tokenizers_vq.storage.digests import read_configuration
from tokenizers_vq.storage.files import part
from tokenizers_vq.storage.hub import local_folder
from tokenizers_vq.storage.weights import build_empty
from unitok.conditions import TextStates
from unitok.config import TRUNK_PRESETS, ModelConfig, TrunkConfig
from unitok.importing import published_config
from unitok.modalities import Picture
from unitok.model import CONFIG, IMAGE_TOKENIZER, TEXT_TOKENIZER, UniTok, modalities
from unitok.objectives import get_objective, objective_class
from unitok.objectives.base import Draw
from unitok.reader.config import READER, ReaderConfig, ReaderSettings
from unitok.reader.encoders import read_encoder
from unitok.seeding import keyed_generator
from unitok.sequence import PackedBatch, pack
from unitok.tasks import TASKS, documents, needs
from unitok.text import TextTokenizer, load_text_tokenizer, number_tokenizer
from unitok.trunk.hf import HFTrunk
from unitok.trunk.hf.reading import HF, read_trunk
from unitok.trunk.published import PUBLISHED, published_family
from unitok.trunk.published.family import Family
from unitok.tuning.adapter import is_adapter, tune
from unitok.tuning.config import LoraConfig
from unitok.vocabulary import Vocabulary

from ..packing import NUMBERS
from ..tuning.start import thaw

PLAIN = 4096
"""Ids of a text tokenizer that is trained on captions."""

TEXT_LENGTH = 128
"""Longest text of a training, where nothing else is said."""


@dataclass(frozen=True)
class Wanted:
    """Which model, and what of it is trained; as the options of a training."""

    model: str
    tokenizer: str | None
    """None: the one that the model has; of a preset or a language model, base."""
    objective: str
    text_vocabulary: int | None
    reader: ReaderSettings
    trainable: list[str]
    lora: LoraConfig


def build(wanted: Wanted) -> UniTok:
    """The model, whose weights have no memory, but for those of its image tokenizer; what is trained has gradients.

    Raises:
        UserError: no such model, or what a training would refuse of it.
    """
    config, images, texts = _parts(wanted)
    if wanted.reader.encoder is not None:
        if config.reader is not None:
            raise UserError("--reader.encoder: the model has a reader already: leave it out")
        config = replace(config, reader=_reader(wanted.reader, images))
    config = replace(config, trunk=replace(config.trunk, attention="sdpa"))
    with torch.device("meta"):
        model = UniTok(config, images, texts)
        thaw(model, wanted.trainable)
        tune(model, model, wanted.trainable, wanted.lora)
    return model.train()


def _parts(wanted: Wanted) -> tuple[ModelConfig, ImageTokenizer, TextTokenizer]:
    if wanted.model in TRUNK_PRESETS:
        return _fresh(wanted, TRUNK_PRESETS[wanted.model]())
    if wanted.model.startswith(HF) and not _is_model(wanted.model):
        return _fresh(wanted, read_trunk(wanted.model))
    for family in map(published_family, PUBLISHED):
        if wanted.model in family.released():
            return _released(wanted, family)
    folder = local_folder(wanted.model)
    if is_adapter(folder):
        raise UserError(f"{folder} is an adapter: give the model that it tunes, and --lora.rank")
    if not part(folder, CONFIG).is_file():
        names = ", ".join(TRUNK_PRESETS)
        raise UserError(
            f"{shown(wanted.model)} is neither a preset ({names}), nor the folder of a model, nor hf: and a language "
            "model, nor a released file such as var_d30.pth: choose one"
        )
    where = part(folder, CONFIG)
    config = ModelConfig.from_json(read_configuration(where)[0], str(where))
    return config, _tokenizer(part(folder, IMAGE_TOKENIZER)), load_text_tokenizer(part(folder, TEXT_TOKENIZER))


def _is_model(name: str) -> bool:
    """Whether `hf:` and a path name a model of ours in a folder of that path."""
    return part(Path(name.removeprefix(HF)), IMAGE_TOKENIZER).is_dir()


def _fresh(wanted: Wanted, trunk: TrunkConfig | HFTrunk) -> tuple[ModelConfig, ImageTokenizer, TextTokenizer]:
    """A model of our own, or one around a language model."""
    images = _given_tokenizer(wanted.tokenizer or "base")
    own = trunk.read.vocab_size if isinstance(trunk, HFTrunk) else PLAIN
    texts = number_tokenizer(wanted.text_vocabulary or own)
    ports = get_objective(wanted.objective, images).ports(images.layout)
    spans = Vocabulary.of(texts.size, images.codebook_size).spans
    most = trunk.places if isinstance(trunk, HFTrunk) else None
    length = TEXT_LENGTH if most is None else max(1, min(TEXT_LENGTH, most - 1))
    return ModelConfig(trunk, wanted.objective, spans, length, ports=ports, tasks=("text_to_image",)), images, texts


def _released(wanted: Wanted, family: Family) -> tuple[ModelConfig, ImageTokenizer, TextTokenizer]:
    """A model of its authors, known by its name."""
    trunk, texts, codes = family.released()[wanted.model]
    if wanted.tokenizer is not None:
        images = _given_tokenizer(wanted.tokenizer)
    else:
        kind, grids = objective_class(family.objective), family.grids(trunk)
        built = (_empty(config) for config in _sized(released_configs(family.tokenizer), grids))
        found = next((one for one in built if kind.ids_of(one) == codes), None)
        if found is None:
            raise UserError(
                f"the image tokenizer of {wanted.model} is not known by its name: give the folder that unitok import "
                f"{family.tokenizer} made with --tokenizer"
            )
        images = found
    words = number_tokenizer(max(1, texts))
    return published_config(family, trunk, images, words, codes), images, words


def _sized(configs: Sequence[TokenizerConfig], grids: tuple[tuple[int, int], ...]) -> Iterator[TokenizerConfig]:
    """The configurations for pictures of these grids of codes; none: of any."""
    for config in configs:
        scales = config.layout_for(*config.size).scales
        if not grids or scales == grids:
            yield config
            continue
        height, width = (side * new // old for side, new, old in zip(config.size, grids[-1], scales[-1], strict=True))
        with suppress(UserError):
            resized = config.resized(height, width)
            if getattr(resized, "scales", ()):
                resized = replace(resized, scales=grids)  # type: ignore[call-arg]
            if resized.layout_for(height, width).scales == grids:
                yield resized


def _given_tokenizer(name: str) -> ImageTokenizer:
    """The image tokenizer of a preset, or of a folder."""
    if name in TOKENIZER_PRESETS:
        return _empty(TOKENIZER_PRESETS[name]())
    folder = local_folder(name)
    if not part(folder, CONFIG_FILE).is_file():
        names = ", ".join(TOKENIZER_PRESETS)
        raise UserError(f"tokenizer is {shown(name)}: choose one of {names}, or give the folder of an image tokenizer")
    return _tokenizer(folder)


def _tokenizer(folder: Path) -> ImageTokenizer:
    where = part(folder, CONFIG_FILE)
    return _empty(config_from_dict(read_configuration(where)[0], str(where)))


def _empty(config: TokenizerConfig) -> ImageTokenizer:
    """An image tokenizer without its weights; its codes have vectors by chance, for objectives ask how these lie."""
    images = build_empty(lambda: build_tokenizer(config), "the image tokenizer").eval()
    chance = torch.Generator().manual_seed(0)
    for name, tensor in images.state_dict().items():
        if name.startswith("quantizer.") and tensor.is_floating_point():
            tensor.normal_(generator=chance)
    return images


def _reader(reader: ReaderSettings, images: ImageTokenizer) -> ReaderConfig:
    """What a model says of an encoder, which is read for that."""
    return read_encoder(reader, images)[0]


def batch_of(model: UniTok, task: str, rows: int, caption_tokens: int) -> PackedBatch:
    """A micro-batch of pictures with captions of so many tokens, to learn a task. The model has its first tensors.

    Raises:
        UserError: a task that needs more than pictures and captions.
    """
    if task not in TASKS or not needs([task]) <= {"caption", "image"}:
        able = ", ".join(name for name in TASKS if needs([name]) <= {"caption", "image"})
        raise UserError(f"task is {shown(task)}: choose one of {able}")
    images = model.image_tokenizer
    length = max(model.config.text_length, caption_tokens)

    def encode(text: str) -> list[int]:
        return [0] * caption_tokens if text else []

    for name, port in model.ports.items():
        if name != READER:
            port.to_empty(device="cpu")
    captions = model.captions(encode)
    own = modalities(model.vocabulary, encode, length, model.layout, model.objective, None, captions, model.seen)
    codes = torch.zeros(images.layout.length, dtype=torch.int64)
    height, width = images.image_size
    image = codes if model.reader is None else Picture(torch.zeros(3, height, width, dtype=torch.uint8), codes)
    caption = caption_of(model, caption_tokens)
    record = {"name": "planned", "caption": caption, "image": image}
    draws = [Draw(keyed_generator(0, "plan", row), 0.5) for row in range(rows)]
    made = documents([task] * rows, [record] * rows, draws, own, {}, NUMBERS)
    return pack(made, pad=model.vocabulary.pad)


def caption_of(model: UniTok, tokens: int) -> object:
    """A caption of so many tokens, as a record of the model holds it."""
    trunk = model.config.trunk
    states = TextStates(torch.zeros(max(1, tokens), max(1, trunk.state_width)), max(1, tokens))
    return {"text": [0] * tokens, "class": [0], "states": states, "attended": states}[trunk.captions]
