"""`load_published`: a checkpoint of a published family becomes a tokenizer of ours, after every tensor was checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import ImageTokenizer, build_tokenizer
from ..config import TokenizerConfig
from ..conv import fast_weights
from ..errors import UserError
from . import emu3_vq, ibq, llamagen_vq, open_magvit2, showo_magvitv2, taming_vqgan, var_vae
from .family import Family, Settings, Shape, Source
from .read import locate, read_weights
from .tensors import check_numbers, misfits

PUBLISHED: dict[str, Family] = {
    "taming_vqgan": taming_vqgan.FAMILY,
    "llamagen_vq": llamagen_vq.FAMILY,
    "var_vae": var_vae.FAMILY,
    "showo_magvitv2": showo_magvitv2.FAMILY,
    "open_magvit2": open_magvit2.FAMILY,
    "ibq": ibq.FAMILY,
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
    _attempts(table, config)  # settings that cannot be used are told before anything is fetched
    return tokenizer_of(family, read_weights(locate(str(path), table.files), table.wrappers), path, config)


def tokenizer_of(family: str, weights: dict[str, Tensor], path: str | Path, config: Settings) -> ImageTokenizer:
    """The tokenizer of these tensors, which a file holds; the rest as of `load_published`."""
    table = PUBLISHED[family]
    attempts, weights = _attempts(table, config), table.named(weights)
    closest: tuple[int, str] | None = None
    for wanted in dict.fromkeys(attempts):
        sources = _sources(table, wanted)
        chosen = _chosen(table, weights, sources)
        number, complaint = _compare(table, chosen, sources)
        if number == 0:
            check_numbers(path, chosen, {source.name for source in sources.values()}, "tokenizer")
            return _build(wanted, chosen, sources)
        if closest is None or number < closest[0]:
            closest = number, complaint
    assert closest is not None
    raise UserError(
        f"{path} is no {family} of these settings: {closest[1]}; give another family, or the settings that the model "
        "was trained with"
    )


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
    needed = {n: t for n, t in weights.items() if n in shapes or not n.startswith(table.ignored)}
    return misfits(needed, shapes)


def _build(config: TokenizerConfig, weights: dict[str, Tensor], sources: dict[str, Source]) -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer(config)
    tokenizer.load_state_dict({name: source.take(weights[source.name].float()) for name, source in sources.items()})
    fast_weights(tokenizer)
    return tokenizer.eval()
