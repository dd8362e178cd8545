"""The score of a model's answers to questions about pictures: from what it wrote to a section of a report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizers_vq.errors import UserError
from unitok.data.records import RecordDataset
from unitok.data.shapes.questions import KINDS_OF_QUESTION, kind_of
from unitok.device import Precision
from unitok.model import UniTok
from unitok.prepare import noted
from unitok.sample.pipeline import answer
from unitok.tasks import way
from unitok.text import CaptionEncoder

from .metrics.alignment import exact_share
from .metrics.intervals import with_intervals
from .pictures import MAX_BAD, count_pictures, picture_batches, progress, read_records
from .provenance import Fact, Provenance
from .report import Figure, Item, Number, Section

SHOWN = 32
"""Pictures in a figure."""
FIRST = 16
"""Records that are looked at for a question."""


def measure_questions(
    model: UniTok,
    dataset: RecordDataset,
    *,
    limit: int | None = None,
    max_bad: float = MAX_BAD,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> Section:
    """Asks the questions of a data set about its pictures: share of answers that are exact, by kind of question too.

    Raises:
        UserError: a record has no question with an answer.
    """
    text_ids = CaptionEncoder(model.text_tokenizer, model.config.text_length)
    parts: list[Tensor] = []
    asked: list[str] = []
    written: list[str] = []
    reference: list[str] = []
    names: list[str] = []
    records = progress(read_records(dataset, limit, max_bad), "answering", count_pictures(dataset, limit))
    for images, batch in picture_batches(records, batch_size):
        for record in batch:
            if not record.fields.get("question") or not record.fields.get("answer"):
                raise UserError(f"{record.name} of {dataset.name} has no question with an answer: give data that has")
        some = [record.fields["question"] for record in batch]
        written += answer(model, images, some, batch_size=batch_size, precision=precision, text_ids=text_ids)
        asked += some
        reference += [record.fields["answer"] for record in batch]
        names += [record.name for record in batch]
        parts.append(images)
    facts: Provenance = {
        "data": dataset.name,
        "pictures": len(written),
        "questions_sha256": hashlib.sha256("\n".join(asked).encode()).hexdigest(),
        "model_sha256": model.fingerprint(),
        "precision": precision,
        **noted(model),
    }
    return questions_section(torch.cat(parts), asked, written, reference, facts, names)


def has_questions(model: UniTok, dataset: RecordDataset) -> bool:
    """Whether a model learned to answer, and the first records of the data ask."""
    records = (dataset[index] for index in range(min(FIRST, len(dataset))))
    return way("question", model.config.tasks) is not None and any(record.fields.get("answer") for record in records)


def questions_section(
    pictures: Tensor,
    questions: Sequence[str],
    written: Sequence[str],
    reference: Sequence[str],
    facts: Provenance,
    names: Sequence[str],
) -> Section:
    """Scores, intervals over distinct pictures, a figure of the first items and one line of values per question.

    Args:
        pictures: uint8 (N, 3, H, W), the picture that each question is about.
        questions: N texts.
        written: what the model answered to each.
        reference: the right answers.
        facts: where the numbers come from, such as the data and the model.
        names: of the N records.

    Raises:
        UserError: There are no questions.
        ValueError: Not as many of one as of the other.
    """
    numbers, values = score_answers(questions, written, reference, {**facts, "intervals over": "distinct pictures"})
    for row, name, picture in zip(values, names, pictures, strict=True):
        row |= {"item": name, "picture": hashlib.sha256(picture.cpu().contiguous().numpy().data).hexdigest()[:16]}
    shown = [
        Item(
            [picture], f"{asked}: {text or '(empty)'}", bool(row["exact"]), "" if row["exact"] else f"right is: {right}"
        )
        for picture, asked, text, right, row in zip(
            pictures[:SHOWN], questions[:SHOWN], written[:SHOWN], reference[:SHOWN], values[:SHOWN], strict=True
        )
    ]
    figure = Figure("Pictures, questions and what the model answered", shown)
    return Section("questions", "Questions", with_intervals(numbers, values, "picture"), [figure], values=values)


def score_answers(
    questions: Sequence[str], written: Sequence[str], reference: Sequence[str], facts: Provenance
) -> tuple[dict[str, Number], list[dict[str, Fact]]]:
    """The share of answers that equal the right one, letter for letter but for white space, overall and by kind.

    Beside them stands a guess that looks at no picture: to each kind of question, its most frequent right answer.
    Questions of another language than that of `shapes` have no kind: they count overall, and share one guess.

    Returns:
        "exact", "guess" and, where a question has a kind, "exact_by_kind" and "guess_by_kind"; and a line of values
        per question. (N questions, N answers, N right answers.)

    Raises:
        UserError: There are no questions.
        ValueError: Not as many of one as of the other.
    """
    if not questions:
        raise UserError("there are no questions to score: give at least one picture with a question and its answer")
    kinds = [kind_of(question) for question in questions]
    values: list[dict[str, Fact]] = []
    for kind, asked, text, right in zip(kinds, questions, written, reference, strict=True):
        exact = int(exact_share([text], [right]) == 1)
        values.append({"question": asked, "written": text, "reference": right, "exact": exact})
        if kind is not None:
            values[-1][f"exact_by_kind.{kind}"] = exact

    right_of: dict[str | None, list[int]] = {kind: [] for kind in (*KINDS_OF_QUESTION, None) if kind in kinds}
    answers: dict[str | None, Counter[str]] = {kind: Counter() for kind in right_of}
    for kind, right, row in zip(kinds, reference, values, strict=True):
        right_of[kind].append(int(row["exact"] or 0))
        answers[kind][" ".join(right.split())] += 1
    guessed = {kind: max(counts.values()) for kind, counts in answers.items()}
    exact_by_kind = {kind: sum(one) / len(one) for kind, one in right_of.items() if kind is not None}
    guess_by_kind = {kind: guessed[kind] / len(right_of[kind]) for kind in exact_by_kind}
    blind = "Baseline: always the most frequent answer to that kind of question"
    numbers = {
        "exact": Number("Exact answers", sum(map(sum, right_of.values())) / len(values), "%", "higher", facts),
        "guess": Number(blind, sum(guessed.values()) / len(values), "%", "", facts),
    }
    if exact_by_kind:
        title = "Exact answers, by kind of question"
        numbers["exact_by_kind"] = Number(title, exact_by_kind, "%", "higher", facts)
        numbers["guess_by_kind"] = Number(f"{blind}, by kind", guess_by_kind, "%", "", facts)
    return numbers, values
