"""Training a part of a network: the rest is frozen, and stays as it is to the bit."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from .errors import Problems, UserError, shown


class Tunable(nn.Module):
    """A network of which parts may be frozen."""

    def train(self, mode: bool = True) -> Tunable:
        """What is frozen stays in evaluation mode: it drops nothing out, and a codebook that follows the latents stays
        where it is."""
        super().train(mode)
        for module in self.modules():
            if _stands_still(module):
                module.training = False
        return self


def train_only(network: nn.Module, patterns: Sequence[str], option: str = "--trainable") -> None:
    """Freezes all weights and saved buffers of a network but those whose names match a pattern, as
    `trunk.blocks.1.*` does. What was frozen before stays so.

    Args:
        network: its names are those of its state.
        patterns: as in file names: `*` is any text, dots too, `?` one character, `[01]` one of these.
        option: where the patterns come from, for errors.

    Raises:
        UserError: a pattern that matches nothing, or nothing with a gradient.
    """
    chosen = trained_names(network, patterns, option)
    names = dict(network.named_parameters(remove_duplicate=False))
    wanted = {id(names[name]) for name in chosen & names.keys()}  # a tied weight has several names
    for weight in names.values():
        weight.requires_grad_(weight.requires_grad and id(weight) in wanted)
    freeze_the_rest(network, chosen | {name for name, weight in names.items() if id(weight) in wanted})


def trained_names(network: nn.Module, patterns: Sequence[str], option: str = "--trainable") -> set[str]:
    """The names of what `train_only` leaves to be trained. Raises what it raises."""
    names = trainable_names(network)
    chosen = matching_names(names, patterns, option, "nothing that can be trained")
    if not chosen & dict(network.named_parameters(remove_duplicate=False)).keys():
        raise UserError(
            f"{option} {_listed(patterns)} matches no weight that is trained by its gradient: name more, such as"
            f" {_listed(_parts(names))}"
        )
    return chosen


def freeze_the_rest(network: nn.Module, trained: set[str]) -> None:
    """Marks the modules that hold nothing of what is trained (names of a network's state): see `Tunable.train`."""
    state = network.state_dict(keep_vars=True)
    for place, module in network.named_modules():
        start = f"{place}." if place else ""
        if any(name.startswith(start) for name in state):
            module.stands_still = not any(name.startswith(start) for name in trained)
    network.train(network.training)


def matching_names(names: Sequence[str], patterns: Sequence[str], option: str, none: str) -> set[str]:
    """The names that match a pattern.

    Raises:
        UserError: a pattern that matches `none`; says what is spelled most alike.
    """
    problems, found = Problems(), set()
    for pattern in patterns:
        here = {name for name in names if fnmatchcase(name, pattern)}
        found |= here
        near = difflib.get_close_matches(pattern, _places(names), n=3, cutoff=0.6)
        hint = f"did you mean {_listed(near)}?" if near else f"there are {_listed(_parts(names))}"
        problems.check(bool(here), f"{option} {shown(pattern)} matches {none}: {hint}")
    problems.raise_if_any()
    return found


def trainable_names(network: nn.Module) -> list[str]:
    """The names of weights that have a gradient, and of saved buffers outside of what is frozen."""
    weights = dict(network.named_parameters(remove_duplicate=False))
    frozen = tuple(f"{place}." for place, module in network.named_modules() if _is_frozen(module))
    return [
        name
        for name in network.state_dict(keep_vars=True)
        if (weights[name].requires_grad if name in weights else not name.startswith(frozen))
    ]


def _stands_still(module: nn.Module) -> bool:
    return bool(getattr(module, "stands_still", False))


def _is_frozen(module: nn.Module) -> bool:
    weights = list(module.parameters())
    return _stands_still(module) or (bool(weights) and not any(weight.requires_grad for weight in weights))


def _parts(names: Sequence[str]) -> list[str]:
    """Patterns of the largest parts: those of `encoder.conv_in.weight` and `decoder.conv_in.weight` are `encoder.*` and
    `decoder.*`."""
    return list(dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names))


def _places(names: Sequence[str]) -> list[str]:
    """Names, and patterns of all modules that they are in."""

    def modules(name: str) -> Iterator[str]:
        *inside, _ = name.split(".")
        return (f"{place}.*" for place in accumulate(inside, "{}.{}".format))

    return list(dict.fromkeys(place for name in names for place in (*modules(name), name)))


def _listed(patterns: Sequence[str]) -> str:
    return ", ".join(map(repr, patterns))
