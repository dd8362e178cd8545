"""The engine: writes values in many rows side by side, a step at a time.

A row has its own prompt, seed, settings, guidance and length, and does not depend on the others: texts stand beside
images, rows come in while others run, and finished ones go out. A command drains the engine; a server never stops
stepping it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from tokenizers_vq.errors import UserError
from unitok.choose import guide, lane_weights
from unitok.model import UniTok
from unitok.objectives.base import Asked, Progress, Writer
from unitok.seeding import fold
from unitok.sequence import lay_out
from unitok.tasks import Piece
from unitok.trunk.base import Beside
from unitok.trunk.steps import Given, Steps, capturing

from .jobs import Job, Turn, check_smooth, compared, prompts_needed
from .prompts import Prompts, document_of

Watch = Callable[[list[int], torch.Tensor], None]
"""Is shown (numbers of the jobs, their logits (b, n, V) before guidance, those of all conditions) of each step."""
Failed = Callable[[int, UserError], None]
"""Is told (number of a job, why it cannot be written)."""


@dataclass
class _Row:
    """A job that is running."""

    number: int
    job: Job
    held: dict[int, int]
    """Prompt -> row of the cache: the one with all conditions, then those that guidance compares it with."""
    turn: Turn
    which: list[int] = field(default_factory=list)
    """The prompts that the turn compares."""
    begin: list[int] = field(default_factory=list)
    """Length of each lane when the turn began."""
    before: tuple[int, torch.Tensor] | None = None
    """Length and order of the first lane when the last turn without guidance began."""
    unguided: bool = False
    """Whether guidance is over: the first of the prompts goes on alone."""
    written: list[torch.Tensor] = field(default_factory=list)

    @property
    def lanes(self) -> list[int]:
        """Those that the turn compares."""
        return [self.held[which] for which in self.which]

    @property
    def running(self) -> list[int]:
        """Those of them that run now."""
        return self.lanes[: 1 if self.unguided else None]

    @property
    def leads(self) -> bool:
        """Whether what is written now only leads to the value of the job."""
        return not callable(self.job.then) and len(self.written) < len(self.job.then)

    @property
    def begun(self) -> list[int]:
        """Those that hold their prompts from the begin."""
        return list(self.held.values())[: 1 if self.job.instead else None]

    @property
    def extended(self) -> list[int]:
        """Those that read what is written, and what is given with a turn."""
        return list(self.held.values())[: 1 if self.job.aside else None]


class Engine:
    """Runs jobs on a model.

    Args:
        model: reads and writes.
        lanes: rows of the cache; a job takes one, and one more for each condition that guidance leaves out.
        room: positions of a lane: the longest prompt and all that is written.
        watch: is shown the logits of every step.
        failed: is told of a job whose logits are not finite, and the others go on; without it, `step` raises.
        align: rows that begin together stand at the same slot, which is faster where they end together too; but the
            room must hold the longest prompt before the longest value.
    """

    def __init__(
        self,
        model: UniTok,
        lanes: int,
        room: int,
        watch: Watch | None = None,
        failed: Failed | None = None,
        align: bool = True,
    ) -> None:
        self.model, self.watch, self.failed, self.align = model, watch, failed, align
        self.modalities = model.modalities()
        self.cache = model.trunk.cache(lanes, room)
        # Which pictures a position sees is asked on the host.
        capture, compiled = capturing(model.device), model.trunk.compiled
        self.steps = Steps(model.hidden, self.cache, *((capture, compiled) if model.fusion is None else ()))
        self.writers: dict[str, Writer] = {}
        self.waiting: deque[tuple[int, Job]] = deque()
        self.running: dict[int, _Row] = {}
        """Writer's row -> job."""
        self.free = list(range(lanes))[::-1]
        self.sums = torch.zeros(lanes, device=model.device)
        """Of all logits of a writer's row so far: finite if they all were."""
        self.orders = torch.zeros(lanes, device=model.device)
        """Order coordinate at which each lane's value begins."""
        self.conditions: dict[int, Beside] = {}
        """Lane -> its condition, one row; empty where the model has no conditions."""
        self._joined: dict[tuple[int, ...], Beside] = {}
        """Lanes -> their conditions, as long as they stay."""
        self.prompts = Prompts(model, self.modalities, 2 * lanes)
        self._added = 0
        self._constants: dict[tuple[float, ...], torch.Tensor] = {}

    def add(self, job: Job) -> int:
        """Puts a job in the queue; returns its number.

        Raises:
            UserError: something is to follow a picture of which only the first scales are drawn, or that no codes say.
        """
        check_smooth(self.model, job.settings, bool(job.then))
        if job.then and job.settings.scales:
            raise UserError("--scales draws a preview, which nothing can follow: leave it out")
        self.waiting.append((self._added, job))
        self._added += 1
        return self._added - 1

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def cancel(self, number: int) -> None:
        """Takes a job out between two steps, if it is still here: the next step may admit others into its lanes."""
        self.waiting = deque(one for one in self.waiting if one[0] != number)
        row = self._row_of(number)
        if row is not None:
            self._release(row)

    def progress(self, number: int) -> Progress | None:
        """How far a job is with the value that it writes now; None: it waits, is not here, or writes what comes before
        its value."""
        row = self._row_of(number)
        if row is None or self.running[row].leads:
            return None
        return self.writers[self.running[row].turn.modality].progress(row)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[torch.Tensor]]]:
        """Admits what there is room for and takes every row one step on. Returns (number, what was written) of the jobs
        that this finished.

        Raises:
            UserError: logits that are not finite, unless `failed` is told; a job that needs more lanes than there are.
        """
        self._admit()
        done = []
        groups: dict[tuple[str, int], list[int]] = {}
        for row, state in self.running.items():
            modality = state.turn.modality
            groups.setdefault((modality, self.writers[modality].phase(row)), []).append(row)
        for (modality, _), rows in groups.items():
            done += self._run(self.writers[modality], sorted(rows))
        return done

    # --- rows come and go --------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        taken: list[_Row] = []
        while self.waiting:
            number, job = self.waiting[0]
            which = prompts_needed(job)
            if len(which) > self.cache.rows:
                raise UserError(
                    f"guidance needs {len(which)} rows at once, there are {self.cache.rows}: raise batch_size"
                )
            if len(which) > len(self.free):
                break
            self.waiting.popleft()
            first = Turn([], job.modality, job.settings, job.known)
            taken.append(_Row(number, job, {one: self.free.pop() for one in which}, first))
        begun = [(row, which, lane) for row in taken for which, lane in row.held.items() if lane in row.begun]
        self._fill([(row.job.prompts[which], lane) for row, which, lane in begun])
        if self.align and taken and not self.running:
            self.cache.align([lane for _, _, lane in begun])
        for row in taken:
            self.running[row.extended[0]] = row  # a writer's row is the job's first lane
            self._begin(row.extended[0], row)

    def _row_of(self, number: int) -> int | None:
        """The row of a running job."""
        return next((row for row, state in self.running.items() if state.number == number), None)

    def _release(self, row: int) -> None:
        """Gives the lanes of a row back."""
        lanes = list(self.running.pop(row).held.values())
        for lane in lanes:
            self.cache.clear(lane)
        self.free += lanes[::-1]

    def _begin(self, row: int, state: _Row) -> None:
        """Begins the writing of a turn."""
        modality, settings = state.turn.modality, state.turn.settings or state.job.settings
        if modality not in self.writers:
            self.writers[modality] = self.modalities[modality].writer(self.cache.rows, self.model.device)
        number = len(state.written)
        seed = state.job.seed if number == 0 else fold(state.job.seed, "turn", number)
        self.writers[modality].admit(row, seed, settings, state.turn.known)
        state.which = compared(settings, len(state.job.prompts)) if state.job.aside else list(state.held)
        if state.job.instead and state.which == [0]:
            state.before = self.cache.lengths[row], self.orders[row].clone()
        elif state.job.instead:
            assert state.before is not None, "such a job begins with a turn without guidance"
            self._without_last(state, *state.before)
        state.begin = [self.cache.lengths[lane] for lane in state.lanes]
        state.unguided = False
        self.sums[row] = 0

    def _finish(self, row: int, writer: Writer) -> list[tuple[int, list[torch.Tensor]]]:
        state = self.running[row]
        if not self.sums[row].isfinite():
            error = UserError(
                "the model's logits are not finite: its weights are damaged or its training diverged (take an older "
                "checkpoint), or --guidance or --temperature is beyond all measure (leave it out)"
            )
            if self.failed is None:
                raise error
            for lane in state.held.values():
                self.cache.wipe(lane)
            self._release(row)
            self.failed(state.number, error)
            return []
        written = writer.written(row).clone()
        state.written[len(state.written) - state.turn.more :] = [written]
        turn = state.job.next(state.written)
        if turn is None:
            self._release(row)
            return [(state.number, state.written)]
        # What was written is read as it is from here on: positions that are not are given back, the clean copy comes.
        kept = writer.kept(row)
        for lane, begin in zip(state.lanes, state.begin, strict=True):
            self.cache.rewind([lane], self.cache.lengths[lane] - begin - kept)
        if turn.more:
            assert turn.known is not None and kept, "only a text can go on, behind ids that are new"
            state.turn = turn
            writer.more(row, turn.known)
            return []
        modality = state.turn.modality
        value = [Piece(modality, self.modalities[modality].value(written), False)]
        if kept:
            self.orders[self.cache.index(state.extended)] += document_of(value, self.modalities).order
        self._append(state.extended, turn.given if kept else [*value, *turn.given])
        state.turn = turn
        self._begin(row, state)
        return []

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _fill(self, prompts: list[tuple[list[Piece], int]]) -> None:
        """Puts prompts into empty lanes."""
        encoded = self.prompts.take([pieces for pieces, _ in prompts])
        for (_, lane), one in zip(prompts, encoded, strict=True):
            self.cache.copy(lane, one.slots)
            self.orders[lane] = one.order
            if one.condition is not None:
                self.conditions[lane] = one.condition
                self._joined.clear()

    def _without_last(self, state: _Row, length: int, order: torch.Tensor) -> None:
        """Lets the lanes that guidance compares with read what the first had before its last turn, so long and up to
        this order, and then their own prompts in place of that turn."""
        first, *others = state.held.items()
        for which, lane in others:
            self.cache.take(lane, first[1], length)
            self.orders[lane] = order
            self._append([lane], state.job.prompts[which])

    def _append(self, lanes: Sequence[int], pieces: list[Piece]) -> None:
        """Runs further pieces through some lanes."""
        if not pieces:
            return
        item = document_of(pieces, self.modalities)
        device = self.model.device
        for lane in lanes:
            places = item.places.to(device)
            places[:, 0] += self.orders[lane]
            seen = self.cache.extend([lane], len(item), item.groups.to(device))
            batch = lay_out([[item]], pad=self.model.vocabulary.pad).to(device)
            condition = self._conditions([lane])
            self.model.hidden(batch.inputs, places[None], seen, self.cache, batch.features, condition=condition)
            self.orders[lane] += item.order

    # --- a step ------------------------------------------------------------------------------------------------------

    def _run(self, writer: Writer, rows: list[int]) -> list[tuple[int, list[torch.Tensor]]]:
        """One forward pass for rows of one writer that are at the same phase."""
        states = [self.running[row] for row in rows]
        for row, state in zip(rows, states, strict=True):
            state.unguided = not writer.guided(row)
        index = self.cache.index(rows)
        asked = writer.ask(rows, index)
        pairs = sorted((lane, r, j) for r, state in enumerate(states) for j, lane in enumerate(state.running))
        place = {(r, j): at for at, (_, r, j) in enumerate(pairs)}
        hidden = self._forward(asked, [lane for lane, _, _ in pairs], [r for _, r, _ in pairs])
        scores = []
        for ids, here in asked.spans:
            chosen: list[torch.Tensor] = []  # (lanes, n) each
            while True:
                logits = self.model.ids.scores(hidden[:, here], ids, chosen)  # (lanes, n, V)
                guided = self._guided(writer, rows, states, logits, place)
                if self.watch is not None:
                    self.watch([state.number for state in states], logits[self._lane(states, place, 0)])
                self.sums.index_add_(0, index, guided.flatten(1).mean(1))
                if len(chosen) + 1 >= len(writer.sub_tokens):
                    break
                of = self.cache.index([r for _, r, _ in pairs])
                chosen.append(writer.choose(rows, index, guided)[of])
            scores.append(guided)
        back = writer.take(rows, index, scores) or [0] * len(rows)
        for number in {*back} - {0}:
            self.cache.rewind([lane for lane, r, _ in pairs if back[r] == number], number)
        return [result for row in writer.finished(rows) for result in self._finish(row, writer)]

    def _forward(self, asked: Asked, lanes: list[int], of: list[int]) -> torch.Tensor:
        """Last states (lanes, n, C) of what is asked for, in every lane; `of` says which of the rows a lane serves."""
        which = self.cache.index(of)
        order = self.orders[self.cache.index(lanes)][:, None]

        def moved(places: torch.Tensor) -> torch.Tensor:
            found = places[which]
            found[..., 0] += order
            return found

        stands = None if asked.stands is None else moved(asked.stands)
        features = {port: values[which].flatten(0, 1) for port, values in asked.features.items()}
        numbers = None if asked.numbers is None else asked.numbers[which]
        given = Given(asked.ids[which], moved(asked.places), stands, features, self._conditions(lanes), numbers)
        return self.steps(lanes, given, asked.groups)

    def _conditions(self, lanes: Sequence[int]) -> Beside | None:
        """Those of these lanes."""
        if not self.conditions:
            return None
        key = tuple(lanes)
        if key not in self._joined:
            self._joined[key] = Beside.joined([self.conditions[lane] for lane in lanes])
        return self._joined[key]

    def _guided(
        self,
        writer: Writer,
        rows: list[int],
        states: list[_Row],
        logits: torch.Tensor,
        place: dict[tuple[int, int], int],
    ) -> torch.Tensor:
        """(b, n, V) logits of each row, from those of its lanes."""
        most = max(len(state.running) for state in states)
        lanes: Sequence[torch.Tensor]
        if len(logits) == most * len(states) and all(place[r, j] == r * most + j for r, j in place):
            lanes = logits.unflatten(0, (len(states), most)).unbind(1)  # nothing is copied
        else:
            lanes = [logits[self._lane(states, place, j)] for j in range(most)]
        weights: list[list[float]] = []
        for row, state in zip(rows, states, strict=True):
            scales = writer.settings(row).guidance_scales(len(state.job.prompts) - 1)
            now = lane_weights(scales) if len(state.job.prompts) > 1 else {}
            weights.append([now.get(which, 0.0) for which in [*state.which, *[-1] * most][: most - 1]])
        return guide(lanes, [self._constant(column) for column in zip(*weights, strict=True)])

    def _lane(self, states: list[_Row], place: dict[tuple[int, int], int], j: int) -> torch.Tensor:
        """Where lane j of each row stands among the lanes of a pass; a row with fewer lanes has its last."""
        return self.cache.index([place[r, min(j, len(state.running) - 1)] for r, state in enumerate(states)])

    def _constant(self, values: tuple[float, ...]) -> float | torch.Tensor:
        """One number for all rows, or (b, 1, 1), made once."""
        if len(set(values)) == 1:
            return values[0]
        if values not in self._constants:
            if len(self._constants) > 256:
                self._constants.clear()
            self._constants[values] = torch.tensor(values, device=self.model.device)[:, None, None]
        return self._constants[values]
