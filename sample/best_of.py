"""The best of several drawings: of a caption the one from which the model itself reads it most readily, of a part of a
picture the one that goes best with what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tokenizers_vq.errors import UserError
from unitok.model import UniTok
from unitok.objectives.base import Draw
from unitok.sampling import SampleSettings
from unitok.seeding import fold
from unitok.sequence import lay_out
from unitok.tasks import documents

READS = "image_to_text"
NO_BEST = "chooses by a caption or by what is known of a picture, and here is neither: leave it out"
Written = Sequence[torch.Tensor]
"""All that a job wrote, codes (L,) last."""


def check_best_of(model: UniTok, settings: SampleSettings) -> None:
    """Raises UserError unless the model can read what these settings draw."""
    if settings.best_of == 1:
        return
    learned = model.config.tasks
    if learned and READS not in learned:
        raise UserError(
            f"--best_of {settings.best_of} takes a model that reads captions, this one learned {', '.join(learned)}: "
            f"train it with --tasks.{READS}.share above 0, or leave --best_of out"
        )
    if settings.scales:
        raise UserError("--scales draws previews, which cannot be read: leave --best_of or --scales out")


def candidate_seeds(seed: int, number: int) -> list[int]:
    """Seeds of so many drawings; the first is the picture's own, so one drawing is what it is without a choice."""
    return [seed, *(fold(seed, "best of", candidate) for candidate in range(1, number))]


class BestOf:
    """Collects the drawings of each picture, and gives back the best when all are there.

    Args:
        number: drawings of each; those of picture i are jobs i * number, ..., i * number + number - 1.
        scores: (number of a picture, codes (number, L) of its drawings) to (number,): the highest is the best.
    """

    def __init__(self, number: int, scores: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        self.number, self.scores = number, scores
        self._drawn: dict[int, dict[int, Written]] = {}
        """Picture -> candidate -> what it wrote."""

    def take(self, finished: Sequence[tuple[int, Written]]) -> list[tuple[int, Written]]:
        """From (job, all that it wrote) of jobs that are done to (picture, all that the best of its jobs wrote) of the
        pictures that this completes."""
        if self.number == 1:
            return list(finished)
        for job, written in finished:
            place, candidate = divmod(job, self.number)
            self._drawn.setdefault(place, {})[candidate] = written
        best = []
        for place in [place for place, drawn in self._drawn.items() if len(drawn) == self.number]:
            drawn = self._drawn.pop(place)
            codes = torch.stack([drawn[candidate][-1] for candidate in range(self.number)])
            best.append((place, drawn[int(self.scores(place, codes).argmax())]))
        return best


def best_read(model: UniTok, captions: Sequence[list[int]], number: int) -> BestOf:
    """The drawings from which the model reads their captions, by their ids, most readily."""
    return BestOf(number, lambda place, codes: reading_scores(model, codes, captions[place]))


@torch.inference_mode()
def reading_scores(model: UniTok, codes: torch.Tensor, caption: list[int]) -> torch.Tensor:
    """(N,) float32: log-probability in nats of a caption, as read from each of the pictures (N, L)."""
    number, image = len(codes), model.modalities()["image"]
    records = [{"image": image.value(one), "caption": caption} for one in codes]
    draws = [Draw(torch.Generator())] * number  # nothing about a caption that is learned is random
    made = documents([READS] * number, records, draws, model.modalities(), {}, {READS: 0})
    batch = lay_out([[one] for one in made], pad=model.vocabulary.pad).to(model.device)
    hidden = model.states(batch)
    [(ids, _)] = batch.spans  # one text
    losses = model.ids.losses(hidden.flatten(0, 1)[batch.at], batch.targets, ids)
    return -torch.zeros(number, device=losses.device).index_add(0, batch.at // batch.inputs.shape[1], losses)
