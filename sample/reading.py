"""From one picture to answers and boxes, and from a box to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tokenizers_vq.errors import UserError
from unitok.boxes import Box, GroundedTextModality
from unitok.device import Precision
from unitok.model import UniTok
from unitok.prepare import computing
from unitok.sampling import SampleSettings
from unitok.tasks import FIELDS, QUESTIONS, TASKS, asked, ends_in, modalities_of, way

from .jobs import job_for, way_of
from .performing import pointed_first
from .pictures import as_read
from .pipeline import GREEDY, run


def has_learned(model: UniTok, task: str) -> bool:
    """Whether a model learned a task, in one way or another; older ones do not say so."""
    tasks = model.config.tasks
    return way(task, tasks) is not None or (not tasks and modalities_of([task]) <= model.modalities().keys())


def check_task(model: UniTok, name: object, task: str) -> None:
    """
    Raises:
        UserError: the model, which a user knows by that name, did not learn the task.
    """
    if has_learned(model, task):
        return
    learned = ", ".join(model.config.tasks) or "no tasks with boxes"
    raise UserError(f"{name} learned {learned}, not {task}: train it with --tasks.{task}.share above 0")


class Answer(NamedTuple):
    """What a model says to a question."""

    text: str
    pointed: dict[str, Any]
    """What it pointed at first: `boxes`, [left, top, right, bottom] as shares of the picture. Empty if it does not."""


def ask(
    model: UniTok,
    picture: torch.Tensor,
    questions: Sequence[str],
    settings: SampleSettings = GREEDY,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> list[str]:
    """Answers to several questions about one picture (3, H, W) uint8 of the model's size, or about several (N, 3, H, W)
    at once, which are read once.

    Raises:
        UserError: a question that is too long; several pictures for a model that points first.
    """
    told = answers(model, picture, questions, settings, seeds, batch_size=batch_size, precision=precision)
    return [one.text for one in told]


@torch.inference_mode()
def answers(
    model: UniTok,
    picture: torch.Tensor,
    questions: Sequence[str],
    settings: SampleSettings = GREEDY,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> list[Answer]:
    """As `ask`, with what the model pointed at first."""
    seeds = range(len(questions)) if seeds is None else seeds
    ids = [model.text_ids(question) for question in questions]
    modalities, task = model.modalities(), way_of(model, QUESTIONS)
    if picture.ndim > 3 and sum(part.learned for part in TASKS[task]) > 1:
        raise UserError("this model points before it answers, and does not say in which picture: ask about one")
    pictures = as_read(model, picture if picture.ndim > 3 else picture[None])
    with computing(model, precision):
        image = pictures if len(pictures) > 1 else pictures[0]
        records = [asked(QUESTIONS, {"image": image, "question": question}, modalities)[1] for question in ids]
        jobs = [job_for(task, record, seed, settings) for record, seed in zip(records, seeds, strict=True)]
        written = run(model, jobs, batch_size=batch_size)
    decode = model.text_tokenizer.decode
    return [Answer(decode(all[-1].tolist()), pointed_first(model, task, all)) for all in written]


def ground(
    model: UniTok,
    picture: torch.Tensor,
    phrase: str,
    settings: SampleSettings = GREEDY,
    seed: int = 0,
    *,
    precision: Precision = "fp32",
) -> list[list[float]]:
    """The boxes of what a phrase names, in a picture (3, H, W) uint8 of the model's size. A box is [left, top, right,
    bottom], shares of the picture.

    Raises:
        UserError: a phrase that is too long.
    """
    record = {"phrase": model.text_ids(phrase)}
    return _written(model, "ground", picture, record, settings, seed, precision)


def ground_caption(
    model: UniTok,
    picture: torch.Tensor,
    settings: SampleSettings = GREEDY,
    seed: int = 0,
    *,
    precision: Precision = "fp32",
) -> list[str | list[float]]:
    """The caption of a picture (3, H, W) uint8 of the model's size, with boxes: strings, and behind each thing that is
    named its box, as those of `ground`."""
    ids = _written(model, "ground_caption", picture, {}, settings, seed, precision)
    texts = model.modalities()["grounded"]
    assert isinstance(texts, GroundedTextModality)
    return texts.parts(ids, model.text_tokenizer.decode)


def describe(
    model: UniTok,
    picture: torch.Tensor,
    box: Box,
    settings: SampleSettings = GREEDY,
    seed: int = 0,
    *,
    precision: Precision = "fp32",
) -> str:
    """What is in a box, as those of `ground`, of a picture (3, H, W) uint8 of the model's size.

    Raises:
        UserError: what is no box.
    """
    ids = _written(model, "describe", picture, {"box": box}, settings, seed, precision)
    return model.text_tokenizer.decode(ids)


@torch.inference_mode()
def _written(
    model: UniTok,
    task: str,
    picture: torch.Tensor,
    record: Mapping[str, Any],
    settings: SampleSettings,
    seed: int,
    precision: Precision,
) -> Any:
    """The value that a task about one picture ends with."""
    (image,) = as_read(model, picture[None])
    with computing(model, precision):
        job = job_for(task, {**record, "image": image}, seed, settings)
        [[written]] = run(model, [job])
    return model.modalities()[FIELDS[ends_in(task)]].value(written)
