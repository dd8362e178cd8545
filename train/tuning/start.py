"""What a run takes from the model that it starts from. Free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers_vq.config import TOKENIZER_PRESETS
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import Problems, UserError
from tokenizers_vq.storage.hub import local_folder
from unitok.config import ObjectiveSettings, TrunkConfig, small
from unitok.reader.config import NO_READER, ReaderConfig, ReaderSettings
from unitok.trunk.hf import HFTrunk
from unitok.trunk.published import PublishedTrunk
from unitok.tuning.config import LoraConfig, as_patterns

if TYPE_CHECKING:
    from tokenizers_vq.base import ImageTokenizer
    from unitok.model import UniTok
    from unitok.objectives.base import Objective
    from unitok.reader.encoders import Encoder
    from unitok.trunk.hf.reading import LanguageModel
    from unitok.tuning.adapter import Adapter


READER = "ports.reader."
"""How the names of the weights by which pictures are read begin."""
ENCODER = f"{READER}encoder."
"""How those of their encoder begin."""


@dataclass(frozen=True)
class Start:
    """A generator that is trained on."""

    model: UniTok
    folder: Path
    fingerprint: str
    trainable: list[str]
    """Patterns of the weights that are trained; none: all, or the adapters alone."""
    lora: LoraConfig

    @classmethod
    def of(cls, name: Path, trainable: list[str], lora: LoraConfig) -> Start:
        """The model of --init: a folder, or hf:owner/name."""
        from unitok.model import UniTok

        folder = local_folder(name)
        model = UniTok.from_pretrained(folder)
        return cls(model, folder, model.fingerprint(), trainable, lora)

    def begin(self, model: UniTok) -> Adapter | None:
        """Gives a fresh model what this one has learned, makes ready what is trained, and says which adapters."""
        from unitok.tuning.adapter import Adapter, tune

        model.start_from(self.model)
        thaw(model, self.trainable)
        targets = tune(model, self.model, self.trainable, self.lora)
        lora = self.lora
        if lora.rank is None:
            return None
        return Adapter(str(self.folder), self.fingerprint, lora.rank, lora.alpha, targets, lora.quantize)


@dataclass(frozen=True)
class LanguageStart:
    """A language model that goes on learning as the trunk of a fresh generator."""

    language: LanguageModel
    fingerprint: str
    trainable: list[str]
    """Patterns of the weights that are trained; none: all."""

    @classmethod
    def of(cls, name: str, trainable: list[str]) -> LanguageStart:
        """The one of --trunk hf:NAME."""
        from unitok.trunk.hf.reading import read_language_model

        language = read_language_model(name)
        return cls(language, language.fingerprint(), trainable)

    def begin(self, model: UniTok) -> None:
        """Puts the language model into a fresh generator, and makes ready what is trained of it.

        Raises:
            UserError: a pattern that matches nothing; what is new would not be trained: ports, weights for pictures
                alone, and ids, unless the model writes texts alone and reads pictures by an encoder.
        """
        from tokenizers_vq.parts import train_only, trainable_names
        from unitok.trunk.fusion import part_of_fusion

        self.language.fill(model)
        thaw(model, self.trainable)
        if self.trainable:
            known = ("trunk.", "ids.") if _ids_are_known(model) else ("trunk.",)
            new = {name for name in trainable_names(model) if not name.startswith(known) or part_of_fusion(name)}
            train_only(model, self.trainable)
            left = sorted(new - set(trainable_names(model)))
            if left:
                part = part_of_fusion(left[0]) or f"{left[0].partition('.')[0]}.*"
                raise UserError(f"{left[0]} is new to the language model: name it in --trainable too, as in '{part}'")


@dataclass(frozen=True)
class ReaderStart:
    """An encoder that has learned to see, for a model that begins to read pictures by it."""

    encoder: Encoder
    inner: Start | LanguageStart | None
    """What else the run starts from."""
    trainable: list[str]

    @classmethod
    def of(
        cls, reader: ReaderSettings, images: ImageTokenizer, inner: Start | LanguageStart | None, trainable: list[str]
    ) -> tuple[ReaderConfig, ReaderStart]:
        """The encoder of --reader.encoder, and what a model says of it."""
        from unitok.reader.encoders import read_encoder

        config, encoder = read_encoder(reader, images)
        return config, cls(encoder, inner, trainable)

    def begin(self, model: UniTok) -> Adapter | None:
        """Puts the encoder into a fresh model, and what else the run starts from."""
        assert model.reader is not None, "the model was built with it"
        model.reader.encoder.load_state_dict(self.encoder.state_dict())
        adapter = None if self.inner is None else self.inner.begin(model)
        if self.inner is None:
            thaw(model, self.trainable)
            if self.trainable:
                from tokenizers_vq.parts import train_only

                train_only(model, self.trainable)
        if model.fusion is not None:
            model.fusion.begin(model.trunk)
        return adapter


def _ids_are_known(model: UniTok) -> bool:
    """Whether all that a model with a language model reads and writes as ids is its texts."""
    from unitok.modalities import TEXTS
    from unitok.tasks import draws_pictures, modalities_of

    tasks = model.config.tasks
    return model.reader is not None and not draws_pictures(tasks) and modalities_of(tasks) <= {*TEXTS, "image"}


Beginning = Start | LanguageStart | ReaderStart


def begin_from(
    init: Path | None, trunk: object, trainable: list[str], lora: LoraConfig, reader: ReaderSettings
) -> Start | LanguageStart | None:
    """What --init or --trunk hf:NAME names, read; None where all of the model is fresh.

    Raises:
        UserError: it cannot be read, or does not go with `reader`.
    """
    if init is None:
        return LanguageStart.of(trunk, trainable) if isinstance(trunk, str) else None
    start = Start.of(init, trainable, lora)
    check_reader(reader, start, lora)
    if start.model.config.trunk.state_width:
        start.model.caption_states.encoder()
    return start


def thaw(model: UniTok, patterns: Sequence[str]) -> None:
    """Lets the weights of an encoder of pictures learn that patterns name, by its own name: no wider one means them."""
    for name, weight in model.named_parameters():
        named = [pattern for pattern in patterns if pattern.startswith(ENCODER)]
        weight.requires_grad_(weight.requires_grad or any(fnmatchcase(name, pattern) for pattern in named))


def check_reached(names: Collection[str], tasks: Collection[str]) -> None:
    """Raises UserError if all weights that are trained read pictures, and no task gives one: they would stand still."""
    from unitok.tasks import reads_pictures
    from unitok.trunk.fusion import part_of_fusion

    if all(name.startswith(READER) or part_of_fusion(name) for name in names) and not reads_pictures(tasks):
        raise UserError(
            "--trainable trains only weights that read pictures, and no task here reads one "
            f"({', '.join(sorted(tasks))}): name other weights too, or give a task such as image_to_text"
        )


def check_reader(reader: ReaderSettings, start: Start, lora: LoraConfig) -> None:
    """Raises UserError for a reader that a model which is started from cannot get."""
    if reader.encoder is None:
        return
    if start.model.reader is not None:
        raise UserError("--reader.encoder: the model in --init has a reader already, which is kept: leave it out")
    if lora.rank is not None:
        raise UserError(
            "--reader.encoder brings weights that an adapter does not hold: train the connector first, with "
            "--trainable 'ports.reader.*' and without --lora.rank, then tune that model with --lora.rank"
        )


def given_patterns(
    trainable: str | list[str] | None, init: Path | None, trunk: object = None, reader: ReaderSettings = NO_READER
) -> list[str]:
    """Those of --trainable; none of them trains everything."""
    patterns = [] if trainable is None else as_patterns(trainable)
    if trainable is not None and not patterns:
        raise UserError("--trainable names nothing: give names of weights, such as 'decoder.*', or leave it out")
    if patterns and init is None and not isinstance(trunk, str) and reader.encoder is None:
        raise UserError("--trainable trains a part of a model that has learned: give its folder with --init")
    return patterns


def check_tokenizer_start(tokenizer: TokenizerConfig) -> None:
    """Raises UserError for a network, where that of --init is taken."""
    if tokenizer != TOKENIZER_PRESETS["small"]():
        raise UserError("--tokenizer and --preset are those of the tokenizer in --init: leave them out")


def check_start(settings: dict[str, Any]) -> None:
    """Raises UserError for what a generator that is started from brings itself."""
    fresh: dict[str, Any] = {
        "image_tokenizer": None,
        "image_size": None,
        "objective": "next_token",
        "text_tokenizer": None,
        "text_vocabulary": 4096,
    }
    fresh |= {"text_length": 128, "code_vectors": False, "trunk": dataclasses.asdict(small())}
    problems = Problems()
    for name, value in fresh.items():
        problems.check(settings.get(name, value) == value, f"--{name} is that of the model in --init: leave it out")
    problems.raise_if_any()


def settled(
    given: ObjectiveSettings, kind: type[Objective], trunk: TrunkConfig | HFTrunk | PublishedTrunk
) -> ObjectiveSettings:
    """Of a run that starts from a model. Unless the authors of a published one say otherwise, nothing of the codes
    is hidden or changed."""
    if isinstance(trunk, PublishedTrunk):
        left = {name: kind.authors.get(name, 0.0) for name in kind.settings if getattr(given, name) is None}
        given = dataclasses.replace(given, **left)
    return kind.settled(given)
