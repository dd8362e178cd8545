"""The thread that owns the model: it never stops stepping the engine while there is something to write."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from tokenizers_vq.errors import UserError
from unitok.device import Precision
from unitok.model import UniTok
from unitok.objectives.base import Progress
from unitok.prepare import computing

from ..engine import Engine
from ..jobs import prompts_needed
from .errors import ApiError, refused
from .orders import Order
from .partial import Partial

EVENTS_A_SECOND = 10
"""Steps of an order that are told."""
PARTIAL_SHARE = 0.2
"""Of the time, that partial pictures take at most: they are decoded where the model runs."""


class Accepted(NamedTuple):
    """The jobs of the order are made, and wait for lanes."""


class Step(NamedTuple):
    """How far a value is."""

    place: int
    step: int
    steps: int
    picture: torch.Tensor | None
    """(3, H, W) uint8, if one was due."""
    number: int
    """Partial pictures of the value before this one."""


class Done(NamedTuple):
    """A value is there."""

    place: int
    value: Any


class Failed(NamedTuple):
    """The order is given up."""

    error: ApiError


Event = Accepted | Step | Done | Failed


@dataclass
class _Running:
    """An order that is not finished."""

    order: Order
    tell: Callable[[Event], None]
    left: int
    """Jobs that are not finished."""
    jobs: dict[int, int] = field(default_factory=dict)
    """Of those that are not finished: number in the engine -> place among the order's jobs."""
    shown: dict[int, int] = field(default_factory=dict)
    """Partial pictures of each job that were due."""
    sent: dict[int, int] = field(default_factory=dict)
    """Partial pictures of each value that were told."""
    told: float = 0.0
    """When a step was told last."""


class Worker:
    """Writes orders side by side.

    Args:
        model: in evaluation mode, used by nobody else.
        lanes: of the engine.
        room: positions of a lane.
        queue: jobs that are ordered and not finished, at most.
        precision: see `unitok.device`.
    """

    def __init__(self, model: UniTok, lanes: int, room: int, queue: int, precision: Precision = "fp32") -> None:
        self.model, self.lanes, self.room, self.queue, self.precision = model, lanes, room, queue, precision
        self.partial = Partial(model.image_tokenizer)
        self.open = 0
        """Jobs that are ordered and not finished."""
        self.steps = 0
        """Of the engine, since the start."""
        self._orders: dict[int, _Running] = {}
        self._new: deque[int] = deque()
        self._cancelled: deque[int] = deque()
        self._count = 0
        self._closing = False
        self._changed = threading.Condition()
        """Guards all of the above but `steps`; told of new orders and of the end."""
        self._owners: dict[int, int] = {}
        """Number in the engine -> order."""
        self._broken: dict[int, UserError] = {}
        """Orders that failed in the step."""
        self._ends: deque[float] = deque(maxlen=64)
        """When the last jobs were finished."""
        self._partial_after = 0.0
        """When the next partial picture may be decoded."""
        self._engine = self._fresh()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # --- for other threads -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Jobs that have lanes."""
        return len(self._engine.running)

    def submit(self, order: Order, tell: Callable[[Event], None]) -> int:
        """Puts an order in the queue; returns its number. `tell` is called from the model's thread: `Accepted` first,
        a `Done` for each place; or `Failed`, and nothing after it.

        Raises:
            ApiError: the queue is full, or the server ends.
        """
        with self._changed:
            if self._closing or not self.alive:
                raise ApiError(503, "the server is ending: ask another one, or later")
            if self.open + order.size > self.queue:
                seconds = self._seconds_left()
                raise ApiError(
                    429,
                    f"{self.open} pictures and texts are asked for and not finished, and this server takes "
                    f"{self.queue}: come again in {seconds} seconds",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(seconds)},
                )
            self._count += 1
            self.open += order.size
            self._orders[self._count] = _Running(order, tell, order.size)
            self._new.append(self._count)
            self._changed.notify()
            return self._count

    def cancel(self, number: int) -> None:
        """Gives an order up at the next step, if it is not finished; it tells nothing more."""
        with self._changed:
            if number in self._orders:
                self._cancelled.append(number)
                self._changed.notify()

    def close(self) -> None:
        """Writes what is ordered to its end, and stops."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _seconds_left(self) -> int:
        """Until the queue would be empty, as fast as the last jobs went."""
        if len(self._ends) < 2:
            return 1
        rate = len(self._ends) / max(time.monotonic() - self._ends[0], 1e-3)
        return min(60, max(1, math.ceil(self.open / rate)))

    # --- the model's thread ------------------------------------------------------------------------------------------

    def _fresh(self) -> Engine:
        # Rows come one after another here, and there is no slot that all of them could begin at.
        with torch.inference_mode(), self._computing():
            return Engine(self.model, self.lanes, self.room, failed=self._fail_job, align=False)

    def _computing(self) -> AbstractContextManager[object]:
        return computing(self.model, self.precision)

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._wait():
                with self._computing():  # many steps in one: it keeps the weights it converts
                    while self._turn():
                        pass
        finally:  # of an error that it cannot go on after; else nothing is left
            self._fail_all(ApiError(503, "the server has stopped: ask another one"))

    def _wait(self) -> bool:
        """Waits for something to do; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._closing)
            return bool(self._orders)

    def _turn(self) -> bool:
        """Takes orders in and out, and makes a step; False when there is nothing more to write."""
        self._take_out()
        self._take_in()
        if not self._engine.busy:
            return False
        try:
            finished = self._engine.step()
        except Exception:  # nobody knows which row it was: all of them are given up, and the server goes on
            traceback.print_exc()
            self._fail_all(ApiError(500, "the server failed to write this; its log says why"))
            self._engine, self._owners, self._broken = self._fresh(), {}, {}
            return True
        self.steps += 1
        for number, error in self._broken.items():
            self._fail(number, refused(error, status=500))
        self._broken.clear()
        for job, written in finished:
            self._finish(job, written)
        self._report()
        return True

    def _take_in(self) -> None:
        with self._changed:
            new = [number for number in self._new if number in self._orders]
            self._new.clear()
        for number in new:
            state = self._orders[number]
            try:
                jobs = state.order.jobs(self.model)
                for job in jobs:
                    self._check(state.order, job)
                    state.jobs[self._engine.add(job)] = len(state.jobs)
            except UserError as error:
                self._fail(number, refused(error))
            except Exception:
                traceback.print_exc()
                self._fail(number, ApiError(500, "the server failed to begin this; its log says why"))
            else:
                self._owners.update(dict.fromkeys(state.jobs, number))
                state.tell(Accepted())
                if not jobs:
                    self._complete(number, 0, [])

    def _check(self, order: Order, job: Any) -> None:
        needed, positions = len(prompts_needed(job)), order.room(self.model, job)
        if needed > self.lanes:
            raise UserError(f"--guidance needs {needed} rows at once, this server has {self.lanes}: leave it out")
        if positions > self.room:
            raise UserError(f"this takes up to {positions} positions, this server has room for {self.room}: shorten it")

    def _take_out(self) -> None:
        with self._changed:
            cancelled = [*self._cancelled]
            self._cancelled.clear()
        for number in cancelled:
            self._forget(number)

    def _forget(self, number: int) -> _Running | None:
        """Takes an order out, with all that the engine still has of it."""
        with self._changed:
            state = self._orders.pop(number, None)
            if state is not None:
                self.open -= state.left
        for job in state.jobs if state is not None else ():
            self._engine.cancel(job)
            self._owners.pop(job, None)
        return state

    def _fail(self, number: int, error: ApiError) -> None:
        state = self._forget(number)
        if state is not None:
            state.tell(Failed(error))

    def _fail_all(self, error: ApiError) -> None:
        for number in [*self._orders]:
            self._fail(number, error)

    def _fail_job(self, job: int, error: UserError) -> None:
        """Notes the order of a job that failed in this step; its other jobs are taken out behind the step."""
        self._broken[self._owners[job]] = error

    def _finish(self, job: int, written: list[torch.Tensor]) -> None:
        number = self._owners.pop(job, None)
        if number is not None:  # else another job of its order failed in the same step
            self._complete(number, self._orders[number].jobs.pop(job), written)

    def _complete(self, number: int, place: int, written: list[torch.Tensor]) -> None:
        """Tells what a job of an order has completed, or an order that has none, and begins what follows it."""
        state = self._orders[number]
        try:
            values = state.order.finished(self.model, place, written)
            more = state.order.follow(self.model, place)
            if more is not None:
                job = self._engine.add(more)
                state.jobs[job], self._owners[job] = place, number
        except UserError as error:
            self._fail(number, refused(error))
            return
        except Exception:
            traceback.print_exc()
            self._fail(number, ApiError(500, "the server failed to finish this; its log says why"))
            return
        if more is None:
            with self._changed:
                self.open -= 1
                state.left -= 1
                self._ends.append(time.monotonic())
                if not state.left:
                    del self._orders[number]
        for place, value in values:
            state.tell(Done(place, value))

    # --- progress ----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Tells how far the orders are that want to know."""
        now = time.monotonic()
        with self._changed:
            states = [*self._orders.values()]
        for state in states:
            if state.order.partials is None or now < state.told + 1 / EVENTS_A_SECOND:
                continue
            first = {state.order.place(number): (job, number) for job, number in reversed(state.jobs.items())}
            for place, (job, number) in sorted(first.items()):
                progress = self._engine.progress(job)
                if progress is not None:
                    state.told = now
                    picture, before = self._partial(state, number, progress), state.sent.get(place, 0)
                    state.sent[place] = before + (picture is not None)
                    state.tell(Step(place, progress.step, progress.steps, picture, before))

    def _partial(self, state: _Running, number: int, progress: Progress) -> torch.Tensor | None:
        """The picture so far, if one is due and there is time."""
        due = progress.step * ((state.order.partials or 0) + 1) // progress.steps
        begun = time.monotonic()
        if due <= state.shown.get(number, 0) or begun < self._partial_after:
            return None
        state.shown[number] = due
        picture = state.order.around(self.partial.picture(progress.so_far))
        ended = time.monotonic()
        self._partial_after = ended + (ended - begun) * (1 / PARTIAL_SHARE - 1)
        return picture
