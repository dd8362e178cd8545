"""From captions to pictures and from pictures to captions and answers, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import to_uint8
from unitok.conditions import TextStates
from unitok.device import Precision, autocast
from unitok.model import UniTok
from unitok.prepare import computing
from unitok.sampling import SampleSettings
from unitok.sequence import IGNORE, Segment, document, lay_out
from unitok.tasks import FIELDS, TASKS, Piece, asked, prompt

from .best_of import NO_BEST, BestOf, Written, best_read, candidate_seeds, check_best_of
from .engine import Engine, Watch
from .jobs import GREEDY, Job, caption_of, check_smooth, job_for, parts, prompts_needed, rooms_of, way_of
from .pictures import as_read

Condition = str | int | TextStates
"""A caption, the number of a class, or what the model's text encoder made of a caption."""


class Drawn(NamedTuple):
    """A picture that is finished."""

    place: int
    """Of its caption or job."""
    picture: torch.Tensor
    """(3, H, W) uint8."""
    written: Written


def settings_for(model: UniTok, given: Mapping[str, Any] | None = None, pixels: bool = True) -> SampleSettings:
    """How pictures are drawn: what is given, else the model's own settings, else the defaults.

    Raises:
        UserError: a list that does not have a value for each scale, more scales asked for than the model has, a
            negative caption that it cannot read, mixtures that it does not draw, or `pixels` where the image tokenizer
            makes none.
    """
    if pixels:
        model.image_tokenizer.check_pixels()
    settings = SampleSettings.of(model.config, given)
    scales = len(model.layout.scales) if model.objective.sets_scales else max(1, len(model.objective.sub_tokens))
    settings.at_scale(scales=scales)
    check_smooth(model, settings, settings.best_of > 1)
    if settings.negative:
        value_of(model, settings.negative)
    return settings


@torch.inference_mode()
def run(
    model: UniTok, jobs: Sequence[Job], *, batch_size: int = 32, watch: Watch | None = None
) -> list[list[torch.Tensor]]:
    """What each job writes; `batch_size` of them run at a time."""
    engine = engine_for(model, jobs, batch_size, watch)
    found: dict[int, list[torch.Tensor]] = {}
    while engine.busy:
        found.update(engine.step())
    return [found[number] for number in range(len(jobs))]


def engine_for(model: UniTok, jobs: Sequence[Job], batch_size: int, watch: Watch | None = None) -> Engine:
    """An engine with these jobs in its queue, and room for `batch_size` of them at a time."""
    lanes = sum(sorted((len(prompts_needed(job)) for job in jobs), reverse=True)[:batch_size])
    rooms = [rooms_of(model, job) for job in jobs] or [(0, 0)]
    engine = Engine(model, lanes, sum(map(max, zip(*rooms, strict=True))), watch)
    for job in jobs:
        engine.add(job)
    return engine


def value_of(model: UniTok, condition: Condition, text_ids: Callable[[str], list[int]] | None = None) -> Any:
    """What a record holds as its caption, in the model's wording. Raises UserError for a caption that is too long, or a
    class that is none."""
    if isinstance(condition, TextStates):
        return condition
    return model.captions(text_ids or model.text_ids).read(str(condition))


@torch.inference_mode()
def score_codes(
    model: UniTok,
    conditions: Sequence[Condition],
    codes: torch.Tensor,
    known: torch.Tensor | None = None,
    *,
    batch_size: int = 32,
) -> torch.Tensor:
    """Logits (B, L, V) float32 of all V image codes where each of the codes (B, L) stands: as the model has them when
    this code is drawn behind those that are drawn before it, without guidance. Where codes are chosen bit by bit,
    (B, L, D, 2): those of both values of each of D bits, the first counting most.

    A model that points first has them behind the boxes that it finds most likely for the caption. Where the model draws
    all codes in every pass (`maskgit`), they are those of the first. A model that draws pass by pass (`maskgit`,
    `masked_token`) also has them where some codes are `known`, (B, L) bool: in a pass that draws all others.

    Where a code has G sub-tokens (`unitok.objectives.sub_tokens`), they are (B, L, G, n): those of each sub-token
    behind those before it, and minus infinity where a sub-token has fewer than n values.

    Raises:
        UserError: codes or conditions that the model does not have; known codes of a model that has no such passes.
    """
    if known is not None and not model.objective.passes:
        raise UserError(
            f"this model draws by {model.config.objective}, where what is known of a code is what is drawn before it: "
            "leave known out"
        )
    if known is not None and (known.shape != codes.shape or known.dtype != torch.bool):
        raise UserError(
            f"known is {known.dtype} of {tuple(known.shape)}: give bool of {tuple(codes.shape)}, as codes are"
        )
    place = {tuple(one): number for number, one in enumerate(model.objective.places(model.layout).tolist())}
    ids = model.vocabulary.image_range
    scores = torch.zeros(*codes.shape, *model.ids.shape(ids))
    for part in parts(len(codes), batch_size):
        given = None if known is None else known[part].cpu()
        images = model.objective.forced(codes[part].cpu(), model.layout, model.vocabulary, given)
        before = before_pictures(model, conditions[part])
        rows = [[*first, image] for first, image in zip(before, images, strict=True)]
        batch = lay_out([[document(row)] for row in rows], pad=model.vocabulary.pad)
        hidden = model.states(batch.to(model.device))
        for row, (*first, image) in enumerate(rows):
            assert image.target is not None
            here = (image.target != IGNORE).nonzero()[:, 0]
            to = torch.tensor([place[tuple(one)] for one in image.places[here].tolist()])
            states = hidden[row, sum(map(len, first)) + here.to(hidden.device)]
            targets = image.target[here].to(hidden.device)
            scores[part.start + row, to] = model.ids.forced(states, targets, ids).cpu()
    return scores


def before_pictures(model: UniTok, conditions: Sequence[Condition]) -> list[list[Segment]]:
    """What stands before a picture: its condition, and where the model points first, the most likely boxes."""
    modalities, task = model.modalities(), way_of(model, "text_to_image")
    records = [{"caption": value_of(model, one)} for one in conditions]
    prompts = [prompt(task, record) for record in records]
    for part in [part for part in TASKS[task] if part.learned][:-1]:
        modality, known = FIELDS[part.field], [caption_of(part.field, record) for record in records]
        jobs = [Job([pieces], modality, 0, GREEDY, one) for pieces, one in zip(prompts, known, strict=True)]
        for pieces, (value,) in zip(prompts, run(model, jobs), strict=True):
            pieces.append(Piece(modality, modalities[modality].value(value), False))
    return [[part for one in pieces for part in modalities[one.modality].given([one.value])] for pieces in prompts]


def caption_jobs(
    model: UniTok,
    captions: Sequence[Condition],
    settings: SampleSettings,
    seeds: Sequence[int],
    text_ids: Callable[[str], list[int]] | None = None,
) -> tuple[list[Job], BestOf]:
    """The jobs that draw captions, and what chooses among those of each; arguments as of `draw`. A caption that is too
    long is refused."""
    check_best_of(model, settings)
    ids = [value_of(model, caption, text_ids) for caption in captions]
    task, number = way_of(model, "text_to_image"), settings.best_of
    pairs = [(caption, one) for caption, seed in zip(ids, seeds, strict=True) for one in candidate_seeds(seed, number)]
    jobs = [job_for(task, {"caption": caption}, seed, settings) for caption, seed in pairs]
    return jobs, best_read(model, ids, number)


def draw_codes_each(
    model: UniTok,
    captions: Sequence[Condition],
    settings: SampleSettings,
    seeds: Sequence[int],
    text_ids: Callable[[str], list[int]] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    watch: Watch | None = None,
) -> Iterator[list[tuple[int, Written]]]:
    """(place of its caption, all that was written, its codes (L,) last) of the pictures that are finished together;
    arguments as of `draw`. A caption that is too long is refused before anything is drawn."""
    jobs, best = caption_jobs(model, captions, settings, seeds, text_ids)
    for part in finished(model, jobs, batch_size=batch_size, precision=precision, watch=watch):
        with computing(model, precision):
            chosen = best.take(part)
        if chosen:
            yield chosen


@torch.inference_mode()
def finished(
    model: UniTok,
    jobs: Sequence[Job],
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    watch: Watch | None = None,
) -> Iterator[list[tuple[int, list[torch.Tensor]]]]:
    """(number of the job, all that it wrote) of the jobs that are finished together."""
    with computing(model, precision):
        engine = engine_for(model, jobs, batch_size, watch)
    while engine.busy:
        found: list[tuple[int, list[torch.Tensor]]] = []
        with computing(model, precision):  # many steps in one: it keeps the weights that it has converted
            while engine.busy and not found:
                found = engine.step()
        yield found


def draw_codes(
    model: UniTok,
    captions: Sequence[Condition],
    settings: SampleSettings,
    seeds: Sequence[int],
    text_ids: Callable[[str], list[int]] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    watch: Watch | None = None,
) -> torch.Tensor:
    """Codes (N, L) of one picture per caption or other condition, or of its first `settings.scales` scales. No row
    depends on the others. Arguments as of `draw`."""
    check_smooth(model, settings, codes_wanted=True)
    parts = draw_codes_each(
        model, captions, settings, seeds, text_ids, batch_size=batch_size, precision=precision, watch=watch
    )
    found = {place: written[-1] for part in parts for place, written in part}
    return torch.stack([found[place] for place in range(len(captions))])


def draw_each(
    model: UniTok,
    captions: Sequence[Condition],
    settings: SampleSettings,
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
) -> Iterator[Drawn]:
    """Pictures as they are finished; arguments as of `draw`."""
    jobs, best = caption_jobs(model, captions, settings, seeds, text_ids)
    return draw_jobs(model, jobs, settings, best, batch_size=batch_size, precision=precision)


@torch.inference_mode()
def decoded(model: UniTok, codes: torch.Tensor, scales: int = 0) -> torch.Tensor:
    """Pictures (N, 3, H, W) uint8, on the CPU, of codes (N, L), of so many scales; 0: all. Under autocast it decodes in
    bf16."""
    return to_uint8(model.image_tokenizer.decode(codes.to(model.device), up_to_scale=scales or None)).cpu()


def draw_jobs(
    model: UniTok,
    jobs: Sequence[Job],
    settings: SampleSettings,
    best: BestOf | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Iterator[Drawn]:
    """Pictures as they are finished; the jobs draw by these settings. With `best`, each is the best of several jobs,
    and places are those of pictures.

    Raises UserError where the best of several drawings is asked for, and nothing tells it.
    """
    if settings.best_of > 1 and best is None:
        raise UserError(f"--best_of {settings.best_of} {NO_BEST}")
    for part in finished(model, jobs, batch_size=batch_size, precision=precision):
        with computing(model, precision):
            chosen = best.take(part) if best is not None else part
        codes = [written[-1] for _, written in chosen]
        with autocast(model.device, precision):
            pictures = decoded(model, torch.stack(codes), settings.scales) if codes else ()
        for (place, written), picture in zip(chosen, pictures, strict=True):
            yield Drawn(place, picture, written)


def draw(
    model: UniTok,
    captions: Sequence[Condition],
    settings: SampleSettings | None = None,
    seeds: list[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
) -> torch.Tensor:
    """Pictures (N, 3, H, W) uint8, one for each caption.

    Args:
        model: draws.
        captions: what is asked for, or other conditions.
        settings: how codes are chosen; default: the model's own.
        seeds: default 0, 1, ... They fix each picture: the same model, caption, settings and seed give the same
            picture, alone or in any batch.
        batch_size: pictures drawn at a time; changes the speed, not the pictures.
        precision: see `unitok.device`.
        text_ids: turns captions into ids: `unitok.text.CaptionEncoder` cuts long ones, as is done with data; the
            default, the model's own, refuses them.

    Raises:
        UserError: a caption that is too long, or logits that are not finite.
    """
    settings = settings or SampleSettings.of(model.config)
    seeds = list(range(len(captions))) if seeds is None else seeds
    drawn = draw_each(model, captions, settings, seeds, batch_size=batch_size, precision=precision, text_ids=text_ids)
    found = {one.place: one.picture for one in drawn}
    return torch.stack([found[place] for place in range(len(captions))])


def draw_progress(
    model: UniTok, captions: list[str], settings: SampleSettings, seeds: list[int], *, precision: Precision = "fp32"
) -> torch.Tensor:
    """Pictures (N, K, 3, H, W) uint8 of a next-scale model: each as it is known after 1, 2, ... K scales. The last are
    those of `draw`."""
    codes = draw_codes(model, captions, settings, seeds, precision=precision)
    scales = range(1, 1 + (settings.scales or len(model.layout.scales)))
    with autocast(model.device, precision):
        return torch.stack([decoded(model, codes, scale) for scale in scales], 1)


def write_texts(
    model: UniTok,
    task: str,
    records: Sequence[Mapping[str, Any]],
    settings: SampleSettings = GREEDY,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
) -> list[str]:
    """The text that a task ends with, of each record; images of the records are codes (L,)."""
    seeds = range(len(records)) if seeds is None else seeds
    modalities = model.modalities()
    pairs = [(*asked(task, record, modalities), seed) for record, seed in zip(records, seeds, strict=True)]
    jobs = [job_for(way_of(model, done), record, seed, settings) for done, record, seed in pairs]
    return [model.text_tokenizer.decode(ids[-1].tolist()) for ids in run(model, jobs, batch_size=batch_size)]


def caption_codes(model: UniTok, codes: torch.Tensor) -> list[str]:
    """Captions of pictures given as codes (N, L), the most likely token each time."""
    image = model.modalities()["image"]
    return write_texts(model, "image_to_text", [{"image": image.value(one)} for one in codes])


@torch.inference_mode()
def caption(
    model: UniTok,
    pictures: torch.Tensor,
    settings: SampleSettings = GREEDY,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> list[str]:
    """Captions of pictures (N, 3, H, W) uint8 of the model's size."""
    return _texts_about(model, "image_to_text", pictures, None, settings, seeds, batch_size, precision)


@torch.inference_mode()
def answer(
    model: UniTok,
    pictures: torch.Tensor,
    questions: Sequence[str],
    settings: SampleSettings = GREEDY,
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 32,
    precision: Precision = "fp32",
    text_ids: Callable[[str], list[int]] | None = None,
) -> list[str]:
    """Answers to a question about each of the pictures (N, 3, H, W) uint8 of the model's size; `text_ids`: see `draw`.

    Raises:
        UserError: a question that is too long.
    """
    ids = [(text_ids or model.text_ids)(question) for question in questions]
    return _texts_about(model, "question", pictures, ids, settings, seeds, batch_size, precision)


def _texts_about(
    model: UniTok,
    task: str,
    pictures: torch.Tensor,
    questions: list[list[int]] | None,
    settings: SampleSettings,
    seeds: Sequence[int] | None,
    batch_size: int,
    precision: Precision,
) -> list[str]:
    seeds = range(len(pictures)) if seeds is None else seeds
    texts: list[str] = []
    for part in parts(len(pictures), batch_size):
        records: list[dict[str, Any]] = [{"image": image} for image in as_read(model, pictures[part])]
        for record, ids in zip(records, questions[part] if questions else [], strict=False):
            record["question"] = ids
        with computing(model, precision):
            texts += write_texts(model, task, records, settings, seeds[part], batch_size=batch_size)
    return texts
