"""Writes checkpoints, and the model beside each.

The training stands still for as long as its state is copied into the host's memory; a thread writes the copy. One write
is in flight at a time: the next save, and the end of the run, wait for it. What a write meets, such as a full disk, is
said before the next step. Of several processes each has such a thread, and these speak through a group of their own.

The last save of a run is made at once, without a copy. So are all where `run.async_save` is false, or the host's memory
has no room for a copy.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from tokenizers_vq.errors import UserError
from unitok.device import free_memory, resident_memory
from unitok.processes.world import World

from ..checkpoint import TrainState
from ..config import RunConfig
from ..folder import RunFolder
from ..parallel.choice import Parallel
from ..trainee import Trainee
from .copies import Copies, Snapshot


class Saver:
    """What the engine saves with. All processes come to its methods. On leaving, whatever the reason, what has begun to
    be written is finished.

    Args:
        say: tells the user a line.
        newest: the step of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        trainee: Trainee,
        parallel: Parallel,
        folder: RunFolder,
        run: RunConfig,
        world: World,
        say: Callable[[str], None],
        newest: int | None,
    ) -> None:
        self.newest = newest
        """The step of the newest checkpoint, written or being written."""
        self._trainee, self._parallel, self._folder = trainee, parallel, folder
        self._world, self._say, self._keep = world, say, run.keep
        self._copying: bool | None = None if run.async_save else False
        self._beside: World | None = None
        self._copies = Copies()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def save(self, state: TrainState, about: dict[str, Any], last: bool) -> None:
        """Writes the checkpoint of `state.step`, and the model. `last`: both are written when this returns.

        Raises:
            UserError: a weight is not finite, or the disk is full, now or in the save before.
        """
        self.wait()
        self.newest = state.step
        if last or not self._has_room(state):
            self._write(self._world, state, about)
            self.export(state)
            return
        if self._beside is None:
            self._beside = self._world.beside()
        now = self._parallel.copied(state, self._copies)
        self._writing = self._thread.submit(self._write_all, self._beside, now, about)

    def export(self, state: TrainState) -> None:
        """Writes the model, at once."""
        with self._parallel.showing(state.average):
            self._world.from_main(lambda: self._trainee.export(self._folder.path, self._trainee.model))

    @property
    def writing(self) -> bool:
        """Whether a write is in flight."""
        return self._writing is not None and not self._writing.done()

    @property
    def error(self) -> UserError | None:
        """What kept the last save from being written, as far as is known by now. Does not wait."""
        if self._writing is None or self.writing:
            return None
        error = self._writing.exception()
        if error is None or isinstance(error, SystemExit):  # the process that has met the error says it
            return None
        if not isinstance(error, UserError):
            raise error
        return error

    def wait(self) -> None:
        """Until the last save is written. Raises UserError where it could not be."""
        if self._writing is not None:
            self._world.together(self._written)
            self._writing = None

    def _written(self) -> None:
        assert self._writing is not None
        self._writing.exception()
        if self.error is not None:
            raise self.error

    def _write_all(self, world: World, now: Snapshot, about: dict[str, Any]) -> None:
        self._write(world, now, about)
        model = now.model
        world.from_main(lambda: None if model is None else self._trainee.export(self._folder.path, model))

    def _write(self, world: World, state: TrainState | Snapshot, about: dict[str, Any]) -> None:
        self._parallel.save(world, self._folder.checkpoints, state, about, self._keep, self._trainee.keep)

    def _has_room(self, state: TrainState) -> bool:
        """Whether saves are copied; found out at the first one, when a step has shown what it needs."""
        if self._copying is None:
            grows = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident_memory()
            needed, free = self._parallel.to_copy(state), free_memory()
            met = self._world.gather((socket.gethostname(), needed, needed + max(0, grows), free))
            hosts = {host for host, *_ in met}
            short = [host for host in sorted(hosts) if not _fits([found[2:] for found in met if found[0] == host])]
            self._copying = not short
            if short and self._world.is_main:
                copied, left = (sum(found[1] for found in met if found[0] == short[0]), free or 0)
                self._say(
                    f"run.async_save: a copy of the state takes {copied / 1e9:.1f} GB of the host's memory, which has "
                    f"{left / 1e9:.1f} left: the training waits while a checkpoint is written"
                )
        return self._copying


def _fits(processes: list[tuple[int, int | None]]) -> bool:
    """Whether what the processes of a host will need, (bytes needed, bytes free) each, is there."""
    free = [left for _, left in processes if left is not None]
    return not free or sum(needed for needed, _ in processes) <= min(free)
