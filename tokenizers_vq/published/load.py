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
from ..weights import check_finite
from . import ibq, llamagen_vq, open_magvit2, showo_magvitv2, taming_vqgan, var_vae
from .family import Family, Settings, Source
from .read import locate, read_weights

PUBLISHED: dict[str, Family] = {
    "taming_vqgan": taming_vqgan.FAMILY,
    "llamagen_vq": llamagen_vq.FAMILY,
    "var_vae": var_vae.FAMILY,
    "showo_magvitv2": showo_magvitv2.FAMILY,
    "open_magvit2": open_magvit2.FAMILY,
    "ibq": ibq.FAMILY,
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
    attempts = _attempts(table, config)
    weights = read_weights(locate(str(path), table.files), table.wrappers)
    closest: tuple[int, str] | None = None
    for wanted in dict.fromkeys(attempts):
        sources = _sources(table, wanted)
        chosen = _chosen(table, weights, sources)
        number, complaint = _compare(table, chosen, sources)
        if number == 0:
            _check_numbers(path, chosen, sources)
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
    names = {source.name for source in sources.values()}
    shapes = {source.name: source.shape for source in sources.values() if source.shape is not None}
    missing = sorted(names - weights.keys())
    unexpected = sorted(name for name in weights.keys() - names if not name.startswith(table.ignored))
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in sorted(shapes.items())
        if name in weights and tuple(weights[name].shape) != shape
    ]
    kinds = (("it lacks", missing), ("it has unexpected", unexpected), ("it has", misshapen))
    parts = [f"{verb} {_some(list_)}" for verb, list_ in kinds if list_]
    return len(missing) + len(unexpected) + len(misshapen), "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _check_numbers(path: str | Path, weights: dict[str, Tensor], sources: dict[str, Source]) -> None:
    """Raises UserError for tensors that are no floating-point numbers, or not finite."""
    used = sorted({source.name for source in sources.values()})
    kinds = [f"{name} ({weights[name].dtype})" for name in used if not weights[name].is_floating_point()]
    if kinds:
        raise UserError(f"{path} has whole numbers where weights should be: {_some(kinds)}; export the weights again")
    what = f"{path} holds weights that no tokenizer works with"
    check_finite({name: weights[name].float() for name in used}, what, "fetch it again, or take an older checkpoint")


def _build(config: TokenizerConfig, weights: dict[str, Tensor], sources: dict[str, Source]) -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer(config)
    tokenizer.load_state_dict({name: source.take(weights[source.name].float()) for name, source in sources.items()})
    fast_weights(tokenizer)
    return tokenizer.eval()
