"""Sequences: segments in a row make a document, and several documents share a row of a batch.

Every position carries an input id, a target id (IGNORE where nothing is predicted), a group number that never
decreases along a document (see `trunk/rule.py`), and a place (order, row, column) for the rotary positions. Inputs and
targets are aligned: the state at a position is compared with the target at the same position, and nobody shifts
anything again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from .trunk.rule import FOREVER, Visibility, visibility

IGNORE = -100
"""Target of a position where nothing is predicted."""

Ids = slice | tuple[slice, ...]
"""Ids that can stand somewhere: one range, or several."""
Features = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Port -> (flat positions (M,), values (M, F) or (M,)); of the port of pictures, values (B, 3, H, W) uint8 with M / B
positions each."""
Runs = tuple[tuple[Ids, int], ...]
"""(ids that can stand there, number of positions) of runs of positions."""


class Condition(NamedTuple):
    """What a document has beside its sequence: a class, or what a text encoder made of a caption. Its vector stands
    where an image begins, in place of `boi`, and the trunk sees it at every position."""

    id: int
    feature: torch.Tensor | None = None
    """(F,) float32: what stands beside the id."""
    port: str = ""
    """Which port embeds the feature, or the states."""
    states: torch.Tensor | None = None
    """(n, F) float32: of all of a caption, which positions attend to."""
    left_out: bool = False
    """Whether that caption is left out: a model then has as many states of its own."""


@dataclass
class Segment:
    """n positions that belong together: a text, an image. Groups and the order coordinate are counted from 0."""

    ids: torch.Tensor
    """(n,) int64: what stands there."""
    groups: torch.Tensor
    """(n,) int64, never decreasing."""
    places: torch.Tensor
    """(n, 3) float32: order, row, column; where the position looks from."""
    target: torch.Tensor | None = None
    """(n,) int64 ids or IGNORE; None: nothing is predicted."""
    runs: Runs = ()
    """Which ids can stand where something is predicted; they cover all positions."""
    features: torch.Tensor | None = None
    """(n, F) float32 or (n,) int64: what stands there beside the ids. Or pictures (1, 3, H, W) uint8, which stand there
    in place of them."""
    port: str = ""
    """Which port embeds the features."""
    weight: float | torch.Tensor = 1.0
    """Of the losses here: of all, or (n,) float32 of each."""
    at: slice | None = None
    """The positions that the port makes of the features, of which there may be another number; None: one of each."""
    private: bool = False
    """A masked or noised copy: nothing behind the segment sees it, and it takes no step of the order."""
    stands: torch.Tensor | None = None
    """(n, 3) float32: where its id stands, for others to see; None: at its place."""
    condition: Condition | None = None
    """That of the whole document; such a segment may have no positions."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def steps(self) -> int:
        """Steps that the order coordinate takes."""
        return 0 if self.private or not len(self) else int(self.places[:, 0].max()) + 1


@dataclass
class Document:
    """Segments in a row; n positions."""

    inputs: torch.Tensor
    """(n,) int64 ids."""
    targets: torch.Tensor
    """(n,) int64 ids or IGNORE."""
    groups: torch.Tensor
    """(n,) int64, never decreasing."""
    until: torch.Tensor
    """(n,) int64: the last group that sees the position."""
    places: torch.Tensor
    """(n, 3) float32: order, row, column."""
    stands: torch.Tensor | None
    """(n, 3) float32; None: everything stands at its place."""
    runs: Runs
    weights: torch.Tensor
    """(n,) float32."""
    features: list[tuple[str, range, torch.Tensor]] = field(default_factory=list)
    """(port, positions, (m, F) or (m,)) of every segment that has features."""
    condition: Condition | None = None
    task: int = 0
    order: int = 0
    """Next order coordinate behind the document."""

    def __len__(self) -> int:
        return len(self.inputs)


def document(segments: Iterable[Segment], task: int = 0) -> Document:
    """Puts segments in a row, keeping count of groups and of the order coordinate."""
    inputs, targets, groups, until, places, stands, weights = [], [], [], [], [], [], []
    elsewhere, condition = False, None
    runs: list[tuple[Ids, int]] = []
    features: list[tuple[str, range, torch.Tensor]] = []
    group = order = start = 0
    for part in segments:
        n = len(part)
        condition = part.condition or condition
        inputs.append(part.ids)
        targets.append(torch.full((n,), IGNORE) if part.target is None else part.target)
        groups.append(part.groups + group)
        group += int(part.groups[-1]) + 1 if n else 0
        until.append(torch.full((n,), group - 1 if part.private else FOREVER))
        places.append(_moved(part.places, order))
        stands.append(places[-1] if part.stands is None else _moved(part.stands, order))
        elsewhere = elsewhere or part.stands is not None
        weights.append(torch.as_tensor(part.weight, dtype=torch.float32).expand(n))
        runs += part.runs or [(slice(0, 0), n)]
        if part.features is not None:
            here = slice(0, len(part.features)) if part.at is None else part.at
            features.append((part.port, range(start + here.start, start + here.stop), part.features))
        order += part.steps
        start += n
    return Document(
        inputs=torch.cat(inputs),
        targets=torch.cat(targets),
        groups=torch.cat(groups),
        until=torch.cat(until),
        places=torch.cat(places),
        stands=torch.cat(stands) if elsewhere else None,
        runs=tuple(runs),
        weights=torch.cat(weights),
        features=features,
        condition=condition,
        task=task,
        order=order,
    )


def _moved(places: torch.Tensor, order: int) -> torch.Tensor:
    moved = places.clone()
    moved[:, 0] += order
    return moved


class States(NamedTuple):
    """The states of captions, of which each row has one."""

    port: str
    values: torch.Tensor
    """(R, S, F) float32, zeros behind a caption's own."""
    shown: torch.Tensor
    """(R, S) bool: which are a caption's own."""
    left_out: torch.Tensor
    """(R,) bool: captions in whose place a model has states of its own."""


@dataclass
class Conditions:
    """The conditions of R rows of T positions."""

    ids: torch.Tensor
    """(R, 1) int64 where each row is one document, else (R, T)."""
    features: Features
    """Port -> (flat places in `ids` (M,), (M, F))."""
    states: States | None = None
    """None where captions are no states that positions attend to."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        features = {port: (change(at), change(values)) for port, (at, values) in self.features.items()}
        states = self.states and States(self.states.port, *map(change, self.states[1:]))
        return Conditions(change(self.ids), features, states)


@dataclass
class PackedBatch:
    """R rows of T positions, each row holding one or more documents, the rest padding."""

    inputs: torch.Tensor
    """(R, T) int64."""
    groups: torch.Tensor
    """(R, T) int64."""
    until: torch.Tensor | None
    """(R, T) int64; None where no position is private."""
    documents: torch.Tensor
    """(R, T) int64: number of the document within its row, -1 for padding."""
    places: torch.Tensor
    """(R, T, 3) float32."""
    stands: torch.Tensor | None
    """(R, T, 3) float32: where ids stand; None where all stand at their places."""
    features: Features
    """Port -> (flat positions (M,), (M, F) or (M,)): what stands beside the ids."""
    conditions: Conditions | None
    """None where no document has one."""
    at: torch.Tensor
    """(N,) int64: flat positions where something is predicted, those of one span after those of another."""
    spans: Runs
    """(ids that can stand there, number of them) of the N positions; no ids come twice."""
    targets: torch.Tensor
    """(N,) int64 ids."""
    tasks: torch.Tensor
    """(N,) int64 task ids."""
    weights: torch.Tensor
    """(N,) float32: of the losses."""
    causal: bool
    """Whether the group rule reduces to plain causal attention (known on the host, so that no device has to be
    asked)."""

    def visibility(self, backend: str = "sdpa") -> Visibility:
        return visibility(self.groups, self.documents, self.until, causal=self.causal, backend=backend)

    def to(self, device: torch.device | str) -> PackedBatch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        """The batch with every tensor changed."""
        changed: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        features = {port: (change(at), change(values)) for port, (at, values) in self.features.items()}
        conditions = self.conditions and self.conditions.map(change)
        return replace(self, **changed, features=features, conditions=conditions)


def pack(documents: Sequence[Document], *, pad: int) -> PackedBatch:
    """Puts documents into as few rows as first-fit gives, longest first; rows are as long as the longest document, and
    a little more if need be. One that attends to states has a row to itself."""
    length = max(len(document) for document in documents)
    rows: list[list[Document]] = []
    free: list[int] = []
    for item in sorted(documents, key=len, reverse=True):  # stable: equal lengths keep their order
        n = len(item)
        place = next((index for index, space in enumerate(free) if space >= n), None)
        if place is None:
            rows.append([item])
            alone = item.condition is not None and item.condition.states is not None
            free.append(0 if alone else length - n)
        else:
            rows[place].append(item)
            free[place] -= n
    return lay_out(rows, pad=pad, length=_rounded(length))


def _rounded(length: int) -> int:
    """At most a sixteenth more, so that the batches of a training have few different shapes: what multiplies a shape
    on a CPU is made when it is first met."""
    step = 2 ** max(0, (length // 16).bit_length() - 1)
    return -(-length // step) * step


def lay_out(rows: Sequence[Sequence[Document]], *, pad: int, length: int = 0) -> PackedBatch:
    """Rows of documents, side by side in the order given, padded behind to the longest row, and to a length."""
    shape = (len(rows), max(length, *(sum(len(item) for item in row) for row in rows)))
    inputs, targets = torch.full(shape, pad), torch.full(shape, IGNORE)
    groups, documents = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    until, places = torch.full(shape, FOREVER), torch.zeros(*shape, 3)
    tasks, choices = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    stands = torch.zeros(*shape, 3) if any(one.stands is not None for row in rows for one in row) else None
    weights = torch.ones(shape)
    spans: dict[tuple[tuple[int, int], ...], tuple[int, Ids]] = {}
    features: dict[str, list[tuple[range, torch.Tensor]]] = {}
    for r, row in enumerate(rows):
        start = 0
        for number, item in enumerate(row):
            here = slice(start, start + len(item))
            inputs[r, here], targets[r, here] = item.inputs, item.targets
            groups[r, here], until[r, here], places[r, here] = item.groups, item.until, item.places
            if stands is not None:
                stands[r, here] = item.places if item.stands is None else item.stands
            documents[r, here], tasks[r, here], weights[r, here] = number, item.task, item.weights
            for ids, n in item.runs:
                choices[r, start : start + n] = spans.setdefault(_ranges(ids), (len(spans), ids))[0]
                start += n
            for port, where, values in item.features:
                first = r * shape[1] + here.start
                features.setdefault(port, []).append((range(first + where.start, first + where.stop), values))
    at = (targets != IGNORE).flatten().nonzero().squeeze(1)
    chosen = choices.flatten()[at]
    at = at[chosen.argsort(stable=True)]
    counts = torch.bincount(chosen, minlength=len(spans)).tolist()
    return PackedBatch(
        inputs=inputs,
        groups=groups,
        until=until if bool((until < FOREVER).any()) else None,
        documents=documents,
        places=places,
        stands=stands,
        features={port: _joined(parts) for port, parts in features.items()},
        conditions=conditions_of(rows, shape[1], pad=pad),
        at=at,
        spans=tuple((ids, n) for (_, ids), n in zip(spans.values(), counts, strict=True) if n),
        targets=targets.flatten()[at],
        tasks=tasks.flatten()[at],
        weights=weights.flatten()[at],
        causal=all(len(row) == 1 and bool((row[0].groups.diff() > 0).all()) for row in rows)
        and not bool((until < FOREVER).any()),
    )


def conditions_of(rows: Sequence[Sequence[Document]], length: int = 1, *, pad: int) -> Conditions | None:
    """The conditions of rows of documents; None where no document has one."""
    if all(item.condition is None for row in rows for item in row):
        return None
    length = 1 if all(len(row) == 1 for row in rows) else length
    ids = torch.full((len(rows), length), pad)
    features: dict[str, list[tuple[range, torch.Tensor]]] = {}
    for r, row in enumerate(rows):
        start = 0
        for item in row:
            end = start + (len(item) if length > 1 else 1)
            if item.condition is not None:
                ids[r, start:end] = item.condition.id
                if item.condition.feature is not None:
                    values = item.condition.feature.expand(end - start, -1)
                    places = range(r * length + start, r * length + end)
                    features.setdefault(item.condition.port, []).append((places, values))
            start = end
    return Conditions(ids, {port: _joined(parts) for port, parts in features.items()}, _states_of(rows))


def _states_of(rows: Sequence[Sequence[Document]]) -> States | None:
    """The states that the documents of rows attend to, one document to a row; None where there are none."""
    found = [item.condition for row in rows for item in row if item.condition is not None]
    given = [(one.states, one) for one in found if one.states is not None]
    if not given:
        return None
    assert len(given) == len(rows), "each row is one document, with a caption"
    lengths = torch.tensor([len(states) for states, _ in given])
    values = torch.nn.utils.rnn.pad_sequence([states for states, _ in given], batch_first=True)
    shown = torch.arange(values.shape[1]) < lengths[:, None]
    return States(given[0][1].port, values, shown, torch.tensor([one.left_out for _, one in given]))


def _ranges(ids: Ids) -> tuple[tuple[int, int], ...]:
    """As numbers, which can be compared."""
    return tuple((one.start, one.stop) for one in (ids if isinstance(ids, tuple) else (ids,)))


def _joined(parts: list[tuple[range, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    at = torch.cat([torch.arange(places.start, places.stop) for places, _ in parts])
    return at, torch.cat([values for _, values in parts])
