"""Settings of a model. Free of torch, so that the command line can show them quickly.

Presets are functions that return a full configuration; `TRUNK_PRESETS` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Final, Literal

from tokenizers_vq.errors import Problems, UserError, shown
from tokenizers_vq.storage.schema import read_dataclass

from .reader.config import FUSIONS, ReaderConfig
from .text_encoder.config import TextEncoderConfig
from .trunk.hf import HFTrunk
from .trunk.published import PublishedTrunk, published_family
from .trunk.traits import Traits
from .vocabulary import Vocabulary

FORMAT = 4
"""Version of the model folder's layout. Formats 1 to 3 (unitok 0.1) are read too."""

RENAMED = {3: {"masked_token": "maskgit"}, 4: {"next_scale": "var"}}
"""Format -> objectives that have had another name since."""
HEAD = "ids.head.weight"
FORMAT_1 = {
    "ids.embedding.weight": "embedding.weight",
    HEAD: "head.weight",
    "ports.image.projection.weight": "projection.weight",
}
"""Name of a tensor -> the one of format 1."""


@dataclass
class TrunkConfig(Traits):
    """The decoder-only transformer."""

    kind: ClassVar[str] = "native"
    captions: ClassVar[str] = "text"
    """What a caption is to the model: a text before the picture (`unitok/conditions.py` has others)."""
    state_width: ClassVar[int] = 0
    head_bias: ClassVar[bool] = False
    wording: ClassVar[str] = "{}"
    """What a caption that is given is put into, in place of {}, before it is encoded."""
    left_out: ClassVar[str] = ""
    """What stands in place of a caption that is left out, without a begin of a text; empty: see `Traits`."""

    width: int = 768
    """Size of a token's vector; a multiple of 8 * heads."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Query heads; width / heads is the head size."""
    kv_heads: int | None = None
    """Key and value heads for grouped-query attention; must divide heads. None: as many as heads."""
    hidden: int | None = None
    """Inner size of the SwiGLU. None: 8/3 of the width, rounded up to a multiple of 64."""
    dropout: float = 0.0
    """Share of a block's output that is dropped while training."""
    tied_head: bool = False
    """Whether the output head uses the embedding table."""
    attention: Literal["sdpa", "flex", "xformers"] = "sdpa"
    """Attention backend; flex and xformers need a CUDA device."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, least, most in (("depth", 1, 1024), ("width", 8, 2**16), ("heads", 1, 2**12), ("hidden", 1, 2**18)):
            value = getattr(self, name)
            problems.check_range(f"trunk.{name}", value if value is not None else least, least, most)
        problems.check(
            self.heads < 1 or self.width % (8 * self.heads) == 0,
            f"trunk.width is {self.width} with trunk.heads {self.heads}: choose a multiple of 8 * heads",
        )
        problems.check(
            self.kv_heads is None or (self.kv_heads >= 1 and self.heads % self.kv_heads == 0),
            f"trunk.kv_heads is {self.kv_heads}: choose a divisor of trunk.heads ({self.heads})",
        )
        problems.check(0 <= self.dropout < 1, f"trunk.dropout is {self.dropout}: choose a value from 0 to below 1")
        problems.raise_if_any()

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def inner(self) -> int:
        return self.hidden or -(-self.width * 8 // 3 // 64) * 64

    def parameters(self, vocabulary_size: int, features: int = 0) -> dict[str, int]:
        """Parameter counts by part, without building anything; `features` is the number of vectors of the ports."""
        attention = self.width * self.head_size * (2 * self.heads + 2 * self.key_heads) + 2 * self.head_size
        block = attention + 3 * self.width * self.inner + 2 * self.width
        counts = {
            "embedding": (vocabulary_size + features) * self.width,
            "blocks": self.depth * block + self.width,
            "head": 0 if self.tied_head else vocabulary_size * self.width,
        }
        return {**counts, "total": sum(counts.values())}


def debug() -> TrunkConfig:
    """Tiny; trains in seconds on a CPU."""
    return TrunkConfig(width=64, depth=2, heads=2)


def shapes() -> TrunkConfig:
    """For the rendered shapes: minutes on two CPU cores."""
    return TrunkConfig(width=128, depth=6, heads=4)


def emoji() -> TrunkConfig:
    """For some thousand small pictures: an hour on two CPU cores, minutes on a GPU."""
    return TrunkConfig(width=384, depth=8, heads=6, dropout=0.1)


def small() -> TrunkConfig:
    """About 100 M parameters with a vocabulary of some 10,000 ids."""
    return TrunkConfig(width=768, depth=12, heads=12)


def base() -> TrunkConfig:
    """About 350 M parameters with a vocabulary of some 20,000 ids."""
    return TrunkConfig(width=1024, depth=24, heads=16)


def large() -> TrunkConfig:
    """About 800 M parameters with a vocabulary of some 20,000 ids."""
    return TrunkConfig(width=1536, depth=26, heads=24)


TRUNK_PRESETS: dict[str, Callable[[], TrunkConfig]] = {
    preset.__name__: preset for preset in (debug, shapes, emoji, small, base, large)
}


@dataclass
class TaskConfig:
    """One thing the model learns to do."""

    share: float = 0.0
    """Share of the batch's records that are used for this task; the shares are normalised to sum to 1."""
    weight: float = 1.0
    """Weight of the task's mean loss in the sum."""


@dataclass
class TasksConfig:
    """What a batch is made of. Loss = sum over tasks of weight x mean loss (weights after Show-o,
    arXiv:2408.12528)."""

    text_to_image: TaskConfig = field(default_factory=lambda: TaskConfig(share=0.75, weight=1.0))
    """Draw the picture of a caption."""
    image_to_text: TaskConfig = field(default_factory=lambda: TaskConfig(share=0.2, weight=1.0))
    """Write the caption of a picture."""
    text_only: TaskConfig = field(default_factory=lambda: TaskConfig(share=0.05, weight=0.1))
    """Write captions without a picture."""
    question: TaskConfig = field(default_factory=TaskConfig)
    """Answer a question about a picture."""
    edit: TaskConfig = field(default_factory=TaskConfig)
    """Draw a picture changed by an instruction."""
    ground: TaskConfig = field(default_factory=TaskConfig)
    """Say where in a picture something is, as boxes."""
    interleaved: TaskConfig = field(default_factory=TaskConfig)
    """Write texts and draw pictures in the order of the record's parts."""
    describe: TaskConfig = field(default_factory=TaskConfig)
    """Say what is in a box of a picture."""
    ground_caption: TaskConfig = field(default_factory=TaskConfig)
    """Write the caption of a picture with a box behind each thing that it names."""
    layout_to_image: TaskConfig = field(default_factory=TaskConfig)
    """Draw the picture of a caption with boxes."""
    inpaint: TaskConfig = field(default_factory=TaskConfig)
    """Draw the rest of a picture of which a part is known, by its caption."""
    pointed_question: TaskConfig = field(default_factory=TaskConfig)
    """Say where in a picture what a question is about is, as boxes, then answer."""
    pointed_edit: TaskConfig = field(default_factory=TaskConfig)
    """Say where in a picture what an instruction is about is, as boxes, then draw it changed."""
    pointed_inpaint: TaskConfig = field(default_factory=TaskConfig)
    """Say with boxes where all that a caption names is, or is to be, then draw the rest of the picture."""
    pointed_text_to_image: TaskConfig = field(default_factory=TaskConfig)
    """Say with boxes where all that a caption names is to be, then draw the picture."""
    caption_dropout: float = 0.1
    """Share of records whose caption or instruction is replaced by an empty one, which guidance needs."""
    image_dropout: float = 0.0
    """Share of records whose source picture is left out, for guidance over pictures (InstructPix2Pix,
    arXiv:2211.09800)."""
    box_noise: float = 0.2
    """In every other record the sides of boxes that are given move by up to this share of a box's size, for people draw
    boxes roughly."""

    def __post_init__(self) -> None:
        problems = Problems()
        for name, task in self.items():
            problems.check(task.share >= 0, f"tasks.{name}.share is {task.share}: choose 0 or more")
            problems.check(task.weight >= 0, f"tasks.{name}.weight is {task.weight}: choose 0 or more")
        total = sum(max(task.share, 0) for _, task in self.items())
        problems.check(total > 0, "all tasks have share 0: give at least one task a share above 0")
        problems.check(
            total <= 0 or any(task.share > 0 and task.weight > 0 for _, task in self.items()),
            "no task has both a share and a weight, so nothing would be learned: give one task a weight above 0",
        )
        for name in ("caption_dropout", "image_dropout"):
            value = getattr(self, name)
            problems.check(0 <= value <= 1, f"tasks.{name} is {value}: choose a value from 0 to 1")
        problems.check(0 <= self.box_noise <= 0.5, f"tasks.box_noise is {self.box_noise}: choose a value from 0 to 0.5")
        problems.raise_if_any()

    def items(self) -> list[tuple[str, TaskConfig]]:
        """(name, settings) of every task, in the order of the task ids."""
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in values if isinstance(value, TaskConfig)]

    def shares(self) -> dict[str, float]:
        """The tasks that take part, and their shares."""
        return {name: task.share for name, task in self.items() if task.share > 0}


@dataclass
class ObjectiveSettings:
    """How an objective is trained; each takes some of these (`unitok/objectives/`). None is its own value."""

    code_dropout: float | None = None
    """Largest share of the input codes that is hidden from `next_token`, `masked_token`, `random_order` or `next_scale`
    in training; each picture draws its own share. What cannot be copied from a neighbour or a coarser map must be read
    in the caption (word dropout, arXiv:1511.06349)."""
    code_noise: float | None = None
    """Largest noise added to the input maps of `next_scale`; 1 is as strong as the maps themselves. Each picture draws
    its own share. Targets stay true, so each map learns to correct those before it. Infinity: largest share of wrong
    bits, and each scale draws its own."""
    permuted_until: float | None = None
    """Share of the run in which `random_order` and `masked_token` permute the codes of every picture (RAR,
    arXiv:2411.00776)."""
    ordered_from: float | None = None
    """Share of the run from which codes come in the order in which they are drawn; in between, ever more pictures."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(
            self.code_dropout is None or 0 <= self.code_dropout <= 1,
            f"objective_settings.code_dropout is {self.code_dropout}: choose a value from 0 to 1",
        )
        if self.code_noise is not None:
            problems.check_range("objective_settings.code_noise", self.code_noise, 0, 1000)
        first, second = self.permuted_until, self.ordered_from
        problems.check(
            (first is None or first >= 0) and (first is None or second is None or first <= second),
            f"objective_settings.permuted_until is {first} and ordered_from {second}: "
            "choose two shares of the run, the second not below the first",
        )
        problems.raise_if_any()


PORT_KINDS = ("linear", "table", "states", "attended", "waves", "codes")
CODES: Final = "codes"
ALIKE = ("waves", CODES)
"""Those that are about ids themselves: what like ones have in common."""


@dataclass
class PortConfig:
    """What stands beside the ids of some positions."""

    kind: Literal["linear", "table", "states", "attended", "waves", "codes"]
    """Vectors through a linear map, numbers with a learned vector each, states of a caption through two layers, those
    that positions attend to; or what ids have in common (`Alike` in `unitok/ports.py`): waves, for a span of the
    vocabulary whose ids are steps of a scale, or the vectors that the image tokenizer has for its codes."""
    size: int
    """Length of the vectors, the number of numbers, or the number of waves."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check(
            self.kind in PORT_KINDS, f"port kind is {shown(self.kind)}: choose one of {', '.join(PORT_KINDS)}"
        )
        problems.check_range("port size", self.size, 2 if self.kind == "waves" else 1, 2**22)
        problems.raise_if_any()

    @property
    def vectors(self) -> int:
        """Vectors of the trunk's width that it learns."""
        return {"waves": 4 * (self.size // 2), "codes": 2 * self.size}.get(self.kind, self.size)


@dataclass
class ModelConfig:
    """Everything that `config.json` of a model folder says."""

    trunk: TrunkConfig | HFTrunk | PublishedTrunk
    objective: str
    vocabulary: tuple[tuple[str, int], ...]
    """(name, number of ids) of every span, in the order of the ids."""
    text_length: int = 128
    """Longest text in tokens."""
    image_tokenizer: str = ""
    """Fingerprint of the image tokenizer that the model was trained with."""
    ports: dict[str, PortConfig] = field(default_factory=dict)
    """What stands beside ids, by name: the objective's business, and what ids have in common."""
    tasks: tuple[str, ...] = ()
    """What the model was trained to do; empty in models of format 1."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling settings stored with the model; used unless the user sets others."""
    reader: ReaderConfig | None = None
    """How pictures that are given are read; None: as codes."""
    text_encoder: TextEncoderConfig | None = None
    """What makes states of captions, where the model reads such; None: they come ready."""
    classes: tuple[str, ...] = ()
    """Names of the first classes, where captions are such; a class without one goes by its number."""
    restates: bool = False
    """Whether captions with boxes that lead to pictures have the caption's words, as in its data: only boxes differ."""

    def __post_init__(self) -> None:
        problems = Problems()
        problems.check_range("text_length", self.text_length, 1, 2**20)
        places = self.trunk.places if isinstance(self.trunk, HFTrunk) else None
        problems.check(
            places is None or self.text_length < places,
            f"text_length is {self.text_length}, and the language model has learned {places} positions: choose fewer",
        )
        if self.reader is not None and self.reader.fusion != FUSIONS[0]:
            fusion = f"reader.fusion is {self.reader.fusion}"
            problems.check(
                self.trunk.captions == TrunkConfig.captions,
                f"{fusion}, and the trunk reads captions as no texts: take another trunk",
            )
            problems.check(self.trunk.attention != "flex", f"{fusion}, and trunk.attention is flex: choose sdpa")
        problems.raise_if_any()
        Vocabulary(self.vocabulary)
        named = [one for one in self.classes if one == one.strip() != "" and not one.isdecimal()]
        if len(set(named)) < len(self.classes) or len(named) > dict(self.vocabulary)["text"]:
            raise UserError(
                f"classes are {shown(self.classes)}, expected names that are no numbers, at most one for each class; "
                "restore the file"
            )

    def to_json(self) -> dict[str, Any]:
        data = {"format": FORMAT, "family": "unitok", **asdict(self)}
        # Without one of these the fingerprint is that of a model from before.
        for name in ("reader", "text_encoder", "classes", "restates"):
            if not data[name]:
                del data[name]
        if self.reader is not None:
            data["reader"] = self.reader.to_json()
        if self.trunk.kind != TrunkConfig.kind:
            data["trunk"] = {"kind": self.trunk.kind, **data["trunk"]}
        return data

    @classmethod
    def from_json(cls, data: Any, where: str) -> ModelConfig:
        """The inverse of `to_json`; UserError, naming `where`, when it is not one of ours."""
        if not isinstance(data, Mapping):
            raise UserError(f"{where} is {shown(data)}: expected the configuration of a unitok model; restore the file")
        data = dict(data)
        family, version = data.pop("family", None), data.pop("format", None)
        if family != "unitok":
            raise UserError(f"{where} is not a unitok model: family is {shown(family)}, expected 'unitok'")
        if type(version) is not int or version not in range(1, FORMAT + 1):
            raise UserError(
                f"{where} has format {shown(version)}, this unitok reads up to {FORMAT}: update unitok or retrain"
            )
        if version == 1:
            data = _from_format_1(data, where)
        for since, names in RENAMED.items():
            if version < since and isinstance(data.get("objective"), str):
                data["objective"] = names.get(data["objective"], data["objective"])
        trunk = data.get("trunk")
        if isinstance(trunk, Mapping):
            trunk = dict(trunk)
            kind = trunk.pop("kind", TrunkConfig.kind)
            own: dict[str, type[Any]] = {TrunkConfig.kind: TrunkConfig, HFTrunk.kind: HFTrunk}
            config = own[kind] if isinstance(kind, str) and kind in own else published_family(kind).config
            data["trunk"] = read_dataclass(config, trunk, f"{where}: trunk")
        return read_dataclass(cls, data, where)


def name_of_format_1(name: str) -> str:
    """What format 1 called a tensor."""
    return FORMAT_1.get(name, name.removeprefix("trunk."))


def _from_format_1(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Format 1 gave sizes, from which the ids followed, and one kind of features."""
    sizes = {name: data.pop(name, None) for name in ("text_size", "codebook_size")}
    features = data.pop("features", 0)
    problems = Problems()
    for name, value in (*sizes.items(), ("features", features)):
        whole = type(value) is int
        problems.check(whole, f"{where}: {name} is {shown(value)}, expected a whole number")
        if whole:
            problems.check_range(name, value, 0 if name == "features" else 1, 2**24)
    problems.raise_if_any()
    data["vocabulary"] = Vocabulary.of(**sizes).spans
    if features:
        data["ports"] = {"image": {"kind": "linear", "size": features}}
    return data
