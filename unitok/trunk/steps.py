"""The passes of drawing over lanes of a cache; on a GPU those that come again and again are captured and replayed.

A pass asks for some hundred small kernels, and asking for them takes longer than they do. A CUDA graph asks for all at
once, over tensors that stay where they are. So on a GPU a pass has a fixed form (`KVCache.fixed`): what differs from
step to step stands in tensors, and a few widths of the cache serve a whole picture. The captured pass computes what the
same pass computes without: both are of this form.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Protocol

import torch
import torch.distributed

from .base import Beside
from .cache import KVCache
from .compiled import Compiled
from .rule import Visibility

REPEATED = 3
"""Times that a pass is run before it is captured, which takes about as long as these together."""
MOST = 64
"""Passes that are remembered, the latest."""

Work = Callable[[], torch.Tensor]
Capture = Callable[[Work], tuple[Callable[[], object], torch.Tensor]]
"""Runs a work, and gives what runs it again, over the same tensors, and the tensor in which its result then stands."""
Key = tuple[object, ...]
"""What passes have in common that one capture serves: lanes, width, and the shapes of what comes in."""


class Hidden(Protocol):
    """`UniTok.hidden`."""

    def __call__(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        seen: Visibility,
        cache: KVCache | None,
        features: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None,
        stands: torch.Tensor | None,
        condition: Beside | None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Given:
    """What comes into a pass over n positions in each of b lanes."""

    ids: torch.Tensor
    """(b, n) int64."""
    places: torch.Tensor
    """(b, n, 3)."""
    stands: torch.Tensor | None = None
    """(b, n, 3), if elsewhere."""
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Port -> (b * n, ...)."""
    condition: Beside | None = None
    """Of every lane."""
    numbers: torch.Tensor | None = None
    """(b, n) int64: they see what has no higher number (`KVCache.numbers`); None: all that is there."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them, by name; of a condition the vector."""
        found = {"ids": self.ids, "places": self.places, **{f"port {name}": one for name, one in self.features.items()}}
        if self.stands is not None:
            found["stands"] = self.stands
        if self.condition is not None:
            found["condition"] = self.condition.vector
        if self.numbers is not None:
            found["numbers"] = self.numbers
        return found

    def cloned(self) -> Given:
        """Copies, which stay where they are."""
        features = {name: one.clone() for name, one in self.features.items()}
        stands = None if self.stands is None else self.stands.clone()
        condition = None if self.condition is None else Beside(self.condition.vector.clone())
        numbers = None if self.numbers is None else self.numbers.clone()
        return Given(self.ids.clone(), self.places.clone(), stands, features, condition, numbers)


@dataclass(frozen=True)
class _Captured:
    buffers: Given
    replay: Callable[[], object]
    result: torch.Tensor
    lanes: tuple[torch.Tensor, ...]
    """Their numbers, in the cache and among themselves: the captured pass reads these tensors, so they have to stay."""


@dataclass(frozen=True)
class _Seen:
    """A pass of a fixed form that has come before."""

    times: int = 0
    captured: _Captured | None = None


class Steps:
    """Runs passes over lanes of a cache.

    Args:
        hidden: runs a model.
        cache: whose lanes.
        capture: captures passes that come again; None: every pass runs as it comes.
        compiled: those that are compiled; None: none is.
    """

    def __init__(
        self, hidden: Hidden, cache: KVCache, capture: Capture | None = None, compiled: Compiled | None = None
    ) -> None:
        self.hidden, self.cache, self.capture, self.compiled = hidden, cache, capture, compiled
        self.seen: OrderedDict[Key, _Seen] = OrderedDict()
        """Passes of a fixed form, the latest last."""

    def __call__(self, lanes: Sequence[int], given: Given, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Last states (b, n, C) of the next n positions of these lanes, which see all before them, and one another by
        their groups (n,), or all. They may be overwritten by the next pass."""
        n = given.ids.shape[1]
        if not self._may_be_fixed(given, groups):
            return self._run(given, self.cache.extend(lanes, n, groups, given.numbers))
        tensors = given.tensors()
        shapes = tuple((name, one.shape, one.dtype) for name, one in tensors.items())
        if self.capture is None:
            form = self._compiled_form(lanes, n, shapes)
            if form is None:
                return self._run(given, self.cache.extend(lanes, n, groups, given.numbers))
            self.cache.advance(lanes, n)
            return self._run(given, self.cache.fixed(lanes, n, self.cache.capacity, given.numbers, ends=True), form)
        self.cache.advance(lanes, n)
        width = self.cache.reach(lanes)
        key, form = (tuple(lanes), width, shapes), self._compiled_form(lanes, n, (width, shapes))
        before = self.seen.pop(key, _Seen())
        captured = before.captured
        if captured is not None:
            for name, buffer in captured.buffers.tensors().items():
                buffer.copy_(tensors[name])
            captured.replay()
            result = captured.result
        else:
            # This run also warms up: what is loaded or tried out at first use must not happen in a capture.
            result = self._fixed(lanes, width, given, form)
            if before.times + 1 >= REPEATED:
                captured = self._captured(lanes, width, given, form)
        self.seen[key] = replace(before, times=before.times + 1, captured=captured)
        while len(self.seen) > MOST:
            self.seen.popitem(last=False)
        return result

    def _may_be_fixed(self, given: Given, groups: torch.Tensor | None) -> bool:
        """Whether a pass may have it: not under autocast, which keeps the weights that it has converted; not where
        positions see one another by groups; not with all states of captions, which would be copied each time."""
        states = given.condition is not None and given.condition.states is not None
        autocast = torch.is_autocast_enabled(given.ids.device.type)
        wanted = self.capture is not None or self.compiled is not None
        return wanted and groups is None and not states and not autocast

    def _compiled_form(self, lanes: Sequence[int], n: int, shapes: Key) -> Key | None:
        """That of the next pass, if it is a compiled one. On a GPU only passes that are captured are."""
        if self.compiled is None or n > 1 or (self.capture is None and not self.compiled.on_cpu):
            return None
        rows = self.cache.form(lanes)
        return (rows, shapes) if rows is not None and self.compiled.takes((rows, shapes)) else None

    def _fixed(self, lanes: Sequence[int], width: int, given: Given, form: Key | None) -> torch.Tensor:
        return self._run(given, self.cache.fixed(lanes, given.ids.shape[1], width, given.numbers), form)

    def _run(self, given: Given, seen: Visibility, form: Key | None = None) -> torch.Tensor:
        """One pass, compiled if its form is given."""
        features = {}
        for port, values in given.features.items():
            features[port] = (torch.arange(len(values), device=values.device), values)
        work = self.hidden if form is None or self.compiled is None else partial(self.compiled, form, self.hidden)
        return work(given.ids, given.places, seen, self.cache, features, given.stands, given.condition)

    def _captured(self, lanes: Sequence[int], width: int, given: Given, form: Key | None) -> _Captured | None:
        """A pass, captured; None: it cannot be, and none is from here on."""
        assert self.capture is not None
        buffers = given.cloned()
        try:
            replay, result = self.capture(lambda: self._fixed(lanes, width, buffers, form))
        except RuntimeError as error:
            self.capture = None
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"a step of this model cannot be captured, it runs kernel by kernel: {reason}", stacklevel=2)
            return None
        return _Captured(buffers, replay, result, (self.cache.index(lanes), self.cache.index(range(len(lanes)))))


def capturing(device: torch.device) -> Capture | None:
    """How passes are captured on a device: on a GPU as CUDA graphs, which share memory. None: they are not; nor are
    those of several processes, which wait for one another inside."""
    if device.type != "cuda" or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    pool = torch.cuda.graph_pool_handle()
    first: list[torch.cuda.CUDAGraph] = []
    """The shared memory is there as long as one graph is."""

    def capture(work: Work) -> tuple[Callable[[], object], torch.Tensor]:
        graph, stream = torch.cuda.CUDAGraph(), _stream(device)
        with torch.cuda.stream(stream):
            square = torch.ones(8, 8, device=device)
            square @ square  # the room for products that a stream keeps is not to lie in a graph's memory
        # Other threads of a server may ask for memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
        first[:] = first or [graph]
        return graph.replay, result

    return capture


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream on which passes are captured."""
    return torch.cuda.Stream(device)
