"""`load_published`: a checkpoint of a published family becomes a tokenizer of ours, after every tensor was checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import ImageTokenizer, build_tokenizer
from ..config import TokenizerConfig
from ..errors import UserError, shown, some_of
from ..networks.conv import fast_weights
from . import emu3_vq, ibq, infinity_vae, llamagen_vq, open_magvit2, seed, showo_magvitv2, taming_vqgan, var_vae
from .family import Family, Settings, Shape, Source
from .read import locate, read_weights
from .tensors import alike, check_family, check_numbers, misfits

PUBLISHED: dict[str, Family] = {
    "taming_vqgan": taming_vqgan.FAMILY,
    "llamagen_vq": llamagen_vq.FAMILY,
    "var_vae": var_vae.FAMILY,
    "showo_magvitv2": showo_magvitv2.FAMILY,
    "open_magvit2": open_magvit2.FAMILY,
    "ibq": ibq.FAMILY,
    "seed": seed.FAMILY,
    "infinity_vae": infinity_vae.FAMILY,
    "emu3_vq": emu3_vq.FAMILY,
}


AVERAGE = "model_ema."
"""Lightning's moving averages: this, and the name of the tensor without its dots."""


def load_published(family: str, path: str | Path, /, **config: Any) -> ImageTokenizer:
    """The tokenizer in a published checkpoint, in evaluation mode, float32 on the CPU.

    Same codes as the authors' code, pictures equal to 1e-4. Which released model the file is shows in its shapes;
    `config` changes settings under the authors' names, such as `ch=32`, `ddconfig={"ch": 32}` or
    `patch_nums=[1, 2, 3, 4, 6, 9, 13, 18, 24, 32]`. The authors' own configuration of the model is taken as it is.

    Args:
        family: A key of `PUBLISHED`.
        path: .pt, .pth, .ckpt, .bin or .safetensors; `hf:owner/name` or `hf:owner/name/file` fetches from the hub.

    Raises:
        UserError: an unknown family or setting, a file that cannot be had or read, tensors that are missing,
            unexpected, misshapen, of another kind, or not finite.
    """
    if family not in PUBLISHED:
        raise UserError(f"unknown family {family!r}: choose one of {', '.join(PUBLISHED)}")
    table = PUBLISHED[family]
    config, second = _without_files(table, config)
    _attempts(table, config)  # settings that cannot be used are told before anything is fetched
    weights = read_weights(locate(str(path), table.files), table.wrappers)
    try:
        return tokenizer_of(family, weights, path, config, _elsewhere(table, weights, path, second))
    except UserError:
        check_family(path, family, likeness(weights))
        raise


def tokenizer_of(
    family: str,
    weights: dict[str, Tensor],
    path: str | Path,
    config: Settings,
    more: Mapping[str, Tensor] | None = None,
) -> ImageTokenizer:
    """The tokenizer of these tensors, which a file holds, and of those of `more` that it needs; the rest as of
    `load_published`."""
    table = PUBLISHED[family]
    attempts, weights = _attempts(table, config), table.named(weights)
    closest: tuple[int, str] | None = None
    for wanted in dict.fromkeys(attempts):
        sources = _sources(table, wanted)
        names = {source.name for source in sources.values()}
        held = {name: tensor for name, tensor in (more or {}).items() if name in names} | weights
        chosen = _chosen(table, held, sources)
        number, complaint = _compare(table, chosen, sources)
        if number == 0:
            check_numbers(path, chosen, names, "tokenizer")
            left = sorted(name for name in chosen if name not in names and not name.startswith(table.ignored))
            if left:
                said = f"{path}: left out what is not of the tokenizer, {len(left)} tensors: {some_of(left)}"
                print(said, file=sys.stderr)
            return _build(wanted, chosen, sources)
        if closest is None or number < closest[0]:
            closest = number, complaint
    assert closest is not None
    raise UserError(
        f"{path} is no {family} of these settings: {closest[1]}; give another family, or the settings that the model "
        "was trained with"
    )


def likeness(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Family -> how alike the names of tensors are to those of its released tokenizers, from 0 to 1."""
    found = {}
    for family, table in PUBLISHED.items():
        names = [name for name in table.named(dict(weights)) if not name.startswith((AVERAGE, *table.ignored))]
        found[family] = max(alike(names, known) for known in _known(family))
    return found


@cache
def _known(family: str) -> tuple[frozenset[str], ...]:
    """The names of the tensors of each released tokenizer of a family."""
    sources = [_sources(PUBLISHED[family], config) for config in released_configs(family)]
    return tuple({frozenset(source.name for source in some.values()) for some in sources})


def _without_files(table: Family, config: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the settings, without those that name a second file; those)."""
    second = {name: value for name, value in config.items() if name in table.elsewhere}
    for name, value in second.items():
        if not isinstance(value, str):
            raise UserError(f"setting {name} is {shown(value)}: give the path of a file, or hf:owner/name/file")
    return {name: value for name, value in config.items() if name not in second}, second


def _elsewhere(table: Family, weights: dict[str, Tensor], path: str | Path, second: Settings) -> dict[str, Tensor]:
    """The tensors of the second files that are named, by their names in the first; only of parts that this lacks.

    Raises:
        UserError: a part is missing, and no file of it named.
    """
    found: dict[str, Tensor] = {}
    for setting, (start, usual) in table.elsewhere.items():
        if any(name.startswith(start) for name in weights):
            continue
        if setting not in second:
            raise UserError(
                f"{path} holds no {start.rstrip('.')}, which its authors read from {usual}: give that file with "
                f'--settings \'{{"{setting}": "{usual}"}}\''
            )
        read = read_weights(locate(second[setting], (usual,)), table.wrappers)
        found |= {start + name: tensor for name, tensor in read.items()}
    return found


def released_configs(family: str) -> list[TokenizerConfig]:
    """The configurations of the released tokenizers of a family."""
    return _attempts(PUBLISHED[family], {})


def _attempts(table: Family, given: Settings) -> list[TokenizerConfig]:
    """The released configurations, changed as said, as far as they can be."""
    found: list[TokenizerConfig] = []
    first: UserError | None = None
    for released in table.released:
        try:
            found.append(_configure(table, released, given))
        except UserError as error:
            first = first or error
    if first is not None and not found:
        raise first
    return found


def _configure(table: Family, released: Settings, given: Settings) -> TokenizerConfig:
    settings = table.settings(released, given)
    try:
        return table.configure(settings)
    except UserError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"settings {dict(given)} cannot be used ({error}): give values like the released {dict(released)}"
        ) from error


def _sources(table: Family, config: TokenizerConfig) -> dict[str, Source]:
    """Our tensor names -> where each comes from."""
    with torch.device("meta"):
        skeleton = build_tokenizer(config)
    return {name: table.source(name, tuple(t.shape), config) for name, t in skeleton.state_dict().items()}


def _chosen(table: Family, weights: dict[str, Tensor], sources: dict[str, Source]) -> dict[str, Tensor]:
    """The weights to use, by published names: the moving average where the file has one. It may be an average of the
    whole training module, losses included."""
    averages = {name.removeprefix(AVERAGE): t for name, t in weights.items() if name.startswith(AVERAGE)}
    if not table.ema or not averages:
        return weights
    dotted = {source.name.replace(".", ""): source.name for source in sources.values()}
    left_out = tuple(start.replace(".", "") for start in table.ignored)
    return {
        dotted.get(name, AVERAGE + name): tensor
        for name, tensor in averages.items()
        if name in dotted or not (name in ("decay", "num_updates") or name.startswith(left_out))
    }


def _compare(table: Family, weights: dict[str, Tensor], sources: dict[str, Source]) -> tuple[int, str]:
    """(number of tensors that do not fit, what to say about them)."""
    shapes: dict[str, Shape | None] = dict.fromkeys((source.name for source in sources.values()), None)
    shapes.update({source.name: source.shape for source in sources.values() if source.shape is not None})
    needed = {n: t for n, t in weights.items() if n in shapes or not (table.surplus or n.startswith(table.ignored))}
    return misfits(needed, shapes)


def _build(config: TokenizerConfig, weights: dict[str, Tensor], sources: dict[str, Source]) -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer(config)
    tokenizer.load_state_dict({name: source.take(weights[source.name].float()) for name, source in sources.items()})
    fast_weights(tokenizer)
    return tokenizer.eval()
