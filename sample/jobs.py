"""Jobs of the engine: what is to be written, behind what, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tokenizers_vq.errors import UserError
from unitok.choose import lane_weights
from unitok.model import UniTok
from unitok.sampling import SampleSettings
from unitok.tasks import FIELDS, TASKS, Piece, conditions, prompt, way

GREEDY = SampleSettings(guidance=1.0, temperature=0.0)
"""The most likely id each time."""
LEADS = SampleSettings(guidance=1.0, temperature=0.5)
"""What only leads to a picture and is another in each drawing: where things are to be."""


class Turn(NamedTuple):
    """A further value of a job."""

    given: list[Piece]
    """What is read before it."""
    modality: str
    settings: SampleSettings | None = None
    """None: those of the job."""
    known: torch.Tensor | None = None
    """As of a job."""
    more: bool = False
    """It is the value before, which goes on behind the ids (n,) `known`; nothing is given."""


@dataclass
class Job:
    """Something to write."""

    prompts: list[list[Piece]]
    """What stands before: with all conditions, without the first, without the first two, ..."""
    modality: str
    seed: int
    settings: SampleSettings
    known: torch.Tensor | None = None
    """(L,) int64 codes that are given and stay, -1 for the others, the ids (n,) that a passage begins with, or those of
    the caption that a text with boxes is of."""
    then: Sequence[Turn] | Callable[[list[torch.Tensor]], Turn | None] = ()
    """What follows, or what says so from all values that have been written; None: nothing."""
    aside: bool = False
    """Whether what is written and read goes on in the first prompt alone."""
    instead: bool = False
    """Whether, in such a job, a turn with guidance is compared with the other prompts in place of the turn before it:
    with the document without its last text."""

    def next(self, written: list[torch.Tensor]) -> Turn | None:
        if callable(self.then):
            return self.then(written)
        return self.then[len(written) - 1] if len(written) <= len(self.then) else None


def job_for(
    task: str,
    record: Mapping[str, Any],
    seed: int,
    settings: SampleSettings,
    known: torch.Tensor | None = None,
) -> Job:
    """The job of a task: its prompt from the record's fields, once for each condition that guidance leaves out. It
    writes what the task ends with by these settings. What comes before that, as boxes, is the most likely, or, where
    drawings differ in it, drawn at `LEADS`.

    Raises:
        UserError: a field that is missing, or more guidance scales than the task has conditions.
    """
    drops = conditions(task)
    settings.guidance_scales(len(drops))
    prompts = [prompt(task, record, drops[:count], settings.negative) for count in range(len(drops) + 1)]
    *before, last = [part for part in TASKS[task] if part.learned]
    turns = [
        Turn([], FIELDS[part.field], LEADS if part.varies else GREEDY, caption_of(part.field, record))
        for part in before
    ]
    if not turns:
        return Job(prompts, FIELDS[last.field], seed, settings, known)
    first, *others = turns
    then = [*others, Turn([], FIELDS[last.field], settings, known)]
    return Job(prompts, first.modality, seed, first.settings or settings, first.known, then, aside=True)


def caption_of(field: str, record: Mapping[str, Any]) -> torch.Tensor | None:
    """The ids (n,) of the caption that a field is of, if it is a text with boxes; None: of none, or an empty one."""
    ids = record.get("caption") if FIELDS[field] == "grounded" else None
    return torch.tensor(list(ids)) if ids else None


def way_of(model: UniTok, task: str) -> str:
    """The row of the task table by which a model does a task; older models do not say what they learned."""
    return way(task, model.config.tasks) or task


def check_smooth(model: UniTok, settings: SampleSettings, codes_wanted: bool = False) -> None:
    """Raises UserError for mixtures of code vectors where a model draws none, or codes are wanted."""
    if settings.smooth and not model.objective.smooths:
        raise UserError(f"--smooth is VAR's, but this model draws by {model.config.objective}: leave it out")
    if settings.smooth and codes_wanted:
        raise UserError("--smooth draws pictures that no codes say, and here codes are needed: leave it out")


def prompts_needed(job: Job) -> list[int]:
    """The prompts of a job that its guidance compares, the one with all conditions first."""
    if not job.aside:
        return compared(job.settings, len(job.prompts))
    if callable(job.then):
        return list(range(len(job.prompts)))
    how = [job.settings, *(turn.settings or job.settings for turn in job.then)]
    return sorted({which for one in how for which in compared(one, len(job.prompts))})


def compared(settings: SampleSettings, prompts: int) -> list[int]:
    """Those of so many prompts that guidance compares."""
    if prompts == 1 or settings.guidance_varies:
        return list(range(prompts))
    return list(lane_weights(settings.guidance_scales(prompts - 1)))


def rooms_of(model: UniTok, job: Job) -> tuple[int, int]:
    """Positions of a job's longest prompt, and of all that comes behind it at most."""
    modalities = model.modalities()

    def length(pieces: Sequence[Piece]) -> int:
        return sum(len(part) for one in pieces for part in modalities[one.modality].given([one.value]))

    assert not callable(job.then), "what follows is not known before"
    written = [modalities[name].longest + 1 for name in (job.modality, *(turn.modality for turn in job.then))]
    longest = max(model.config.text_length + 1, model.picture_length, *written)
    # A pass behind known codes carries more than it draws.
    known = model.layout.length if job.modality == "image" and job.known is not None else 0
    return max(map(length, job.prompts)), known + longest + sum(length(turn.given) + longest for turn in job.then)


def parts(number: int, size: int) -> Iterator[slice]:
    """So many things, so many at a time."""
    for start in range(0, number, size):
        yield slice(start, min(start + size, number))
