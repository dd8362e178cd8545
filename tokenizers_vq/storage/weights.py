"""Files of weights: written when they are finite, read when they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import Problems, UserError

M = TypeVar("M", bound=nn.Module)

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Names of safetensors."""


def write_weights(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors. `facts` stand in the file's header.

    Raises:
        UserError: a tensor is not finite.
        OSError: the file cannot be written.
    """
    check_finite(tensors, f"{path.name} is not written", "the training has diverged: lower optim.lr and start again")
    try:
        header = {"metadata": dict(facts)} if facts else {}
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, **header)
    except SafetensorError as error:  # it keeps only the text of the system's error
        raise OSError(None, str(error)) from error


def read_weights(path: Path, wanted: Mapping[str, Tensor], advice: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. `wanted` says names, shapes and dtypes; its values are not read.

    Nothing is taken into memory before names, shapes and dtypes fit.

    Raises:
        UserError: the file cannot be read, does not fit, or holds a number that is not finite.
    """
    check_fits(path, wanted, advice)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error, advice) from error
    check_finite(tensors, f"{path} holds weights that are NaN or infinite", advice)
    return tensors


def read_header(path: Path, advice: str) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> (shape, dtype) of the tensors of a file.

    Raises:
        UserError: the file cannot be read.
    """
    given: dict[str, tuple[tuple[int, ...], Any]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                view = file.get_slice(name)
                given[name] = (tuple(view.get_shape()), _DTYPES.get(view.get_dtype(), view.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error, advice) from error
    return given


def check_fits(path: Path, wanted: Mapping[str, Tensor], advice: str) -> None:
    """Compares the header of a file with what a model wants. Raises UserError that lists what does not fit."""
    given = read_header(path, advice)
    missing, foreign = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    both = sorted(wanted.keys() & given.keys())
    shapes = [
        f"{name} {given[name][0]} instead of {tuple(wanted[name].shape)}"
        for name in both
        if given[name][0] != tuple(wanted[name].shape)
    ]
    dtypes = [
        f"{name} as {given[name][1]} instead of {wanted[name].dtype}".replace("torch.", "")
        for name in both
        if given[name][1] != wanted[name].dtype
    ]
    problems = Problems()
    problems.check(not missing, f"{path} lacks {_some(missing)}: {advice}")
    problems.check(not foreign, f"{path} has unexpected {_some(foreign)}: {advice}")
    problems.check(not shapes, f"{path} has {_some(shapes)}: {advice}")
    problems.check(not dtypes, f"{path} has {_some(dtypes)}: {advice}")
    problems.raise_if_any()


def check_finite(tensors: Mapping[str, Tensor], what: str, advice: str) -> None:
    """Raises UserError that names the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.numel() and tensor.is_floating_point():
            low, high = (float(value) for value in tensor.detach().aminmax())  # a NaN wins over every number
            if not (math.isfinite(low) and math.isfinite(high)):
                worst = "NaN" if math.isnan(low) or math.isnan(high) else "infinite values"
                raise UserError(f"{what}: {name} has {worst}: {advice}")


def build_empty(build: Callable[[], M], where: str) -> M:
    """A module with weights that are not drawn, to be loaded from a file. Memory is not committed before they are.

    Leaves torch's random state as it was. `where` names what says the sizes.

    Raises:
        UserError: the sizes ask for more memory than can be had.
    """
    try:
        with torch.random.fork_rng(devices=[]), _NoFill():
            return build()
    except (RuntimeError, MemoryError, OverflowError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not any(word in text for word in ("alloc", "overflow", "invalid size")):
            raise
        raise UserError(f"{where} asks for more memory than this machine has: restore the file") from error


class _NoFill(TorchFunctionMode):
    """Leaves random fills out."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _FILLS:
            return args[0] if args else kwargs["tensor"]
        if function in (Tensor.normal_, Tensor.uniform_):
            # `trunc_normal_` draws until all values lie within its bounds: memory as it comes might never do.
            return args[0].zero_()
        if function in (torch.randn, torch.rand):
            function = torch.empty
        return function(*args, **kwargs)


_FILLS = frozenset(
    [getattr(nn.init, name) for name in ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")]
    + [getattr(nn.init, name) for name in ("uniform_", "normal_", "trunc_normal_", "orthogonal_")]
)
"""Those of `nn.init` that ask the mode. It is off while it handles a function."""


def _unreadable(path: Path, error: Exception, advice: str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path} cannot be read as safetensors ({reason}): {advice}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def each_once(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once: those that share their memory have several names, and a file holds one."""
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in tensors.items():
        place = place_of(tensor)
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            yield name, tensor


def place_of(tensor: Tensor) -> tuple[int, torch.Size]:
    """What tensors that share their memory have in common, unless they are empty."""
    # A tensor that is spread over processes has no address: it is the same where the object is.
    return tensor.data_ptr() or id(tensor), tensor.shape
