"""What a published family is: a table of names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import TokenizerConfig
from ..errors import Problems, UserError

Shape = tuple[int, ...]
Settings = Mapping[str, Any]


TRAINING = frozenset([
    "target", "class_path", "_class_name", "_diffusers_version", "ckpt_path", "ignore_keys", "image_key", "monitor",
    "colorize_nlabels", "lossconfig", "beta", "dropout", "use_checkpoint", "use_ema", "stage", "base_learning_rate",
    "learning_rate", "min_learning_rate", "resume_lr", "lr_drop_epoch", "lr_drop_rate", "scheduler_config",
    "scheduler_type", "sche_type", "warmup_epochs", "wpe", "wp", "wp0", "wp_iter", "max_iter", "gradient_clip_val",
])  # fmt: skip
"""Settings in the authors' configurations that change nothing once a model is trained."""
MOST_LEVELS, MOST_BLOCKS, LARGEST = 12, 64, 2**24
"""Of a network whose sizes are believed: more levels, blocks of a level, or channels would take hours to lay out."""
_WHY = {
    "double_z": "means and variances are what a KL autoencoder makes, and it has no codes",
    "remap": "the remapped indices would be others than the model's",
}


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from."""

    name: str
    """The published tensor."""
    shape: Shape | None
    """Its published shape; None where another source of the same name says it."""
    take: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Ours, from the published one."""


@dataclass(frozen=True)
class Family:
    """One published family of tokenizers."""

    released: tuple[dict[str, Any], ...]
    """Settings of the released models, by the authors' names; a file is tried against each."""
    configure: Callable[[Settings], TokenizerConfig]
    """Our configuration for such settings."""
    source: Callable[[str, Shape, TokenizerConfig], Source]
    """Where our tensor of this name and shape comes from."""
    named: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """The tensors of a file by the names that `source` gives, where releases have several."""
    wrappers: tuple[str, ...] = ()
    """Dotted keys under which a file may hold the weights, the best first; else the file is the weights."""
    ignored: tuple[str, ...] = ()
    """Beginnings of published names that a tokenizer does not need: training losses, statistics, constants."""
    surplus: bool = False
    """Whether a file may hold further tensors, which its authors' own code passes over; they are named and left out."""
    ema: bool = False
    """Where the file has a moving average of the weights (`model_ema.` and the name without dots), it is the model."""
    files: tuple[str, ...] = ()
    """File names on the hub, the usual one first."""
    elsewhere: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Of a part that a file may leave to a second file: the setting that names that file -> (beginning of the part's
    published names, which stand without it there; the file's usual name). Of it, only what is needed is read."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Further names of settings in the authors' configurations -> ours."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the authors' that can have one value here; those of groups too."""
    unused: frozenset[str] = frozenset()
    """Settings that change nothing once the model is trained, beside `TRAINING`; those of groups too."""

    def settings(self, released: Settings, given: Settings) -> dict[str, Any]:
        """Released settings, changed by what the user gave; groups such as `ddconfig` are merged or may be left out.

        `given` may be the authors' whole configuration, of which the model's part counts.

        Raises:
            UserError: a name that the family does not have, or a value that cannot be followed.
        """
        given = self._known(_model_part(given))
        groups = [name for name, value in released.items() if isinstance(value, dict)]
        merged = {name: dict(value) if name in groups else value for name, value in released.items()}
        problems = Problems()
        for name, value in given.items():
            inside = name not in merged and name in merged.get("ddconfig", {})
            owner, known = (merged["ddconfig"], released["ddconfig"]) if inside else (merged, released)
            if name not in known:
                names = ", ".join([*released, *released.get("ddconfig", {}), *self.elsewhere])
                problems.check(False, f"unknown setting {name!r}: known are {names}")
            elif name in groups:
                _merge(owner[name], value, known[name], f"setting {name}", problems)
            else:
                _merge(owner, {name: value}, known, "settings", problems)
        problems.raise_if_any()
        return merged

    def _known(self, given: Settings) -> Settings:
        """The given settings under our names, without those that change nothing. Raises UserError for values that
        cannot be followed."""
        kept: dict[str, Any] = {}
        for name, value in given.items():
            ours = self.renamed.get(name, name)
            if name in self.fixed:
                only(given, **{name: self.fixed[name]})
            elif name in TRAINING or name in self.unused:
                continue
            elif kept.get(ours, value) != value:
                raise UserError(f"settings {name} is {value!r}, but {ours} is {kept[ours]!r}: make them equal")
            else:
                kept[ours] = self._known(value) if isinstance(value, Mapping) else value
        return kept


def _model_part(given: Settings) -> Settings:
    """Of a configuration file of Lightning or OmegaConf, what the model's class is given."""
    for name in ("model", "params", "init_args"):
        if isinstance(inner := given.get(name), Mapping):
            given = inner
    return given


def _merge(into: dict[str, Any], given: object, released: Settings, where: str, problems: Problems) -> None:
    """Puts given values into a group of settings; notes unknown names and values of another kind than the released."""
    if not isinstance(given, Mapping):
        problems.check(False, f"{where} is {given!r}: give values by name, known are {', '.join(released)}")
        return
    for name, value in given.items():
        if name not in released:
            problems.check(False, f"{where} has {name}: known are {', '.join(released)}")
        elif not _alike(value, released[name]):
            problems.check(False, f"{where} has {name} {value!r}: give a value like the released {released[name]!r}")
        elif not _in_bounds(name, value):
            problems.check(False, f"{where} has {name} {str(value)[:80]}: no network of this family is that large")
        else:
            into[name] = value


def _alike(value: object, released: object) -> bool:
    """Whether a value is of the released value's kind: whole numbers for a list of them, and so on."""
    if released is None:  # may be left out
        return value is None or type(value) is int or _alike(value, ())
    if isinstance(released, tuple):
        return isinstance(value, list | tuple) and all(type(item) is int for item in value)
    return type(value) is type(released) or (isinstance(released, float) and type(value) is int)


def _in_bounds(name: str, value: object) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    largest = MOST_BLOCKS if name == "num_res_blocks" else LARGEST
    lowest = 1 if name == "num_res_blocks" else 0
    most = MOST_LEVELS if name in ("ch_mult", "num_res_blocks") else 2 * MOST_BLOCKS
    return len(numbers) <= most and all(lowest <= number <= largest for number in numbers if type(number) is int)


def only(settings: Settings, **allowed: object) -> None:
    """Raises UserError for settings with another value than the one this program can follow."""
    problems = Problems()
    for name, value in allowed.items():
        found = settings.get(name, value)
        why = f", for {_WHY[name]}" if name in _WHY else ""
        problems.check(found == value, f"setting {name} is {found!r}: only {value!r} can be imported{why}")
    problems.raise_if_any()


def attention_fields(levels: list[int], number: int) -> dict[str, Any]:
    """Fields of `ConvVQConfig` for attention in the middle and after the blocks of these levels."""
    lowest = number - 1 in levels
    further = tuple(level for level in levels if level != number - 1)
    return {"attention": "lowest" if lowest else "middle", "attention_levels": further}


def taming_encoder(dd: Settings) -> dict[str, Any]:
    """Fields of `ConvVQConfig` for a `ddconfig` of taming-transformers.

    Attention follows the blocks of the levels whose nominal resolution, that of the configuration and never that of
    the picture, is listed.
    """
    only(dd, in_channels=3, out_ch=3)
    number = len(dd["ch_mult"])
    levels = [level for level in range(number) if dd["resolution"] // 2**level in dd["attn_resolutions"]]
    return {
        "image_size": dd["resolution"],
        "channels": dd["ch"],
        "channel_multipliers": dd["ch_mult"],
        "blocks": dd["num_res_blocks"],
        "latent_dim": dd["z_channels"],
        **attention_fields(levels, number),
    }


def codebook_source(name: str, shape: Shape, table: str = "quantize.embedding.weight") -> Source | None:
    """Source of the tensors of `vq` and `cosine`, which keep a moving average beside the table; None for others."""
    before, _, part = name.rpartition("._codebook.")
    if not before:
        return None
    if part in ("embed", "embed_avg"):
        return Source(table, shape[1:], lambda tensor: tensor[None].clone())
    # The moving average starts as if every code had been used once, by its own vector, and k-means is done.
    dtype = torch.bool if part == "initted" else torch.float32
    return Source(table, None, lambda tensor: torch.ones(shape, dtype=dtype))


def check_bits(bits: int, codebook_size: int) -> None:
    """Raises UserError unless so many channels of one bit each make a codebook of that size."""
    if codebook_size != 2**bits:
        raise UserError(f"setting codebook_size is {codebook_size}: {bits} channels of one bit make {2**bits}")


def bit_values(shape: Shape, beside: str) -> Source:
    """Source of what each bit of a code counts, the first the most: known from the number of bits, read from no file
    (`beside` is any tensor of the family)."""
    return Source(beside, None, lambda tensor: 2 ** torch.arange(shape[0] - 1, -1, -1))
