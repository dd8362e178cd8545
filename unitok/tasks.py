"""Tasks: how a captioned picture becomes a document, and how a batch mixes them.

text_to_image   [bos] caption            | image as the objective wants it     predicts the image
image_to_text   image (one group)        | [bos] caption                       predicts the caption and its end
text_only       [bos] caption                                                  predicts the caption and its end
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from tokenizers_vq.layout import Layout

from .config import TasksConfig
from .data.records import Key
from .objectives import Objective
from .seeding import keyed_generator
from .sequence import Document, DocumentBuilder, PackedBatch, pack
from .vocabulary import Vocabulary

GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, fill [0, 1) evenly: any run of slots holds the tasks in about their
shares."""


def task_of_slot(slot: int, tasks: TasksConfig) -> int:
    """Task id of a place in the global batch, so that micro-batches and ranks do not change the mix."""
    shares = [task.share for _, task in tasks.items()]
    total = sum(shares)
    edges = [edge / total for edge in accumulate(shares)]
    return min(bisect_right(edges, (slot * GOLDEN) % 1), len(shares) - 1)


def text_to_image_prompt(caption: list[int], vocabulary: Vocabulary, task: int = 0) -> DocumentBuilder:
    """What stands before an image that is to be drawn. An empty caption is the condition-free prompt of guidance."""
    return DocumentBuilder(task).text(caption, bos=vocabulary.bos)


def image_to_text_prompts(
    codes: torch.Tensor, layout: Layout, vocabulary: Vocabulary, objective: Objective, task: int = 0
) -> list[DocumentBuilder]:
    """What stands before captions that are to be written; codes (B, L)."""
    if not len(codes):
        return []
    images = objective.context(codes, layout, vocabulary)
    return [images.add_to(DocumentBuilder(task), row) for row in range(len(codes))]


def make_batch(
    captions: Sequence[list[int]],
    codes: torch.Tensor,
    keys: Sequence[Key],
    *,
    layout: Layout,
    vocabulary: Vocabulary,
    objective: Objective,
    tasks: TasksConfig,
    seed: int,
) -> PackedBatch:
    """Documents of a micro-batch, packed. Captions are token ids, codes (B, L) on the CPU. Which task a picture
    serves depends on its slot, and whatever is random on (seed, epoch, index), so batch mates change nothing."""
    assert len(captions) == len(codes) == len(keys)
    chosen = [task_of_slot(key.slot, tasks) for key in keys]
    generators = [keyed_generator(seed, "task", key.epoch, key.index) for key in keys]
    drawn = [row for row, task in enumerate(chosen) if task == 0]
    dropped = {row for row in drawn if torch.rand((), generator=generators[row]).item() < tasks.caption_dropout}
    segments = objective.segments(codes[drawn], layout, vocabulary, [generators[row] for row in drawn], tasks)

    read = [row for row, task in enumerate(chosen) if task == 1]
    prompts = image_to_text_prompts(codes[read], layout, vocabulary, objective, task=1)

    documents: list[Document] = []
    for row, (caption, task) in enumerate(zip(captions, chosen, strict=True)):
        if task == 0:
            builder = text_to_image_prompt([] if row in dropped else caption, vocabulary, task)
            segments.add_to(builder, drawn.index(row))
        elif task == 1:
            builder = prompts[read.index(row)].text(caption, bos=vocabulary.bos, eos=vocabulary.eos)
        else:
            builder = DocumentBuilder(task).text(caption, bos=vocabulary.bos, eos=vocabulary.eos)
        documents.append(builder.build())
    return pack(documents, pad=vocabulary.pad)


def task_losses(logits: torch.Tensor, targets: torch.Tensor, tasks: torch.Tensor, number: int) -> torch.Tensor:
    """Sums of cross-entropy per task, (number,) float32, of logits (N, V), targets (N,) and task ids (N,).

    Sums, not means: what they are divided by counts over the whole step, which only its caller knows.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return torch.zeros(number, device=losses.device).index_add(0, tasks, losses)
