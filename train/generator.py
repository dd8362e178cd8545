"""Trains the transformer over text and image codes, from code shards or from pixels that are encoded on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_grid
from unitok.config import ModelConfig, TaskConfig, TasksConfig
from unitok.data.loader import Finish
from unitok.data.records import RecordBatch, RecordDataset
from unitok.data.shards import CodesDataset
from unitok.model import TEXT_TOKENIZER, UniTok
from unitok.sample.pipeline import draw
from unitok.seeding import fold
from unitok.tasks import task_losses
from unitok.text import CaptionEncoder, TextTokenizer
from unitok.transformer import Transformer

from .config import RunConfig
from .distributed import World
from .packing import PackedRecords, Packer, TaskBatch
from .pictures import Validation, first_records, to_device
from .trainee import MicroBatch, Opponent

GRID_PICTURES = 16


class GeneratorTrainee:
    """What the engine needs to train a generator. The loss is the sum over tasks of weight x mean cross-entropy, the
    mean taken over the targets of the whole step."""

    opponent: Opponent | None = None

    def __init__(
        self,
        config: ModelConfig,
        image_tokenizer: ImageTokenizer,
        text_tokenizer: TextTokenizer,
        tasks: TasksConfig,
        dataset: RecordDataset,
        validation: RecordDataset | None,
        run: RunConfig,
        world: World,
    ) -> None:
        for data in (dataset, validation):
            check_codes_fit(data, image_tokenizer, config.image_tokenizer)
        self._world, self._tasks, self._precision = world, tasks, run.precision
        self.parts = tuple(name for name, _ in tasks.items())
        torch.manual_seed(fold(run.seed, "weights"))
        self.unitok = UniTok(config, image_tokenizer, text_tokenizer)
        objective = copy.deepcopy(self.unitok.objective)  # stays on the CPU, where batches are packed
        self.unitok.to(world.device)
        self.model: nn.Module = self.unitok.transformer
        self._weights = torch.tensor([task.weight for _, task in tasks.items()], device=world.device)
        self._packer = Packer(
            CaptionEncoder(text_tokenizer, config.text_length),
            self.unitok.layout,
            self.unitok.vocabulary,
            objective,
            tasks,
            fold(run.seed, "tasks"),
        )
        micro_batch = run.micro_batch_for(world.size)
        self._validation = Validation(validation, run.eval_pictures, micro_batch, world) if validation else None
        shown = first_records(validation or dataset, GRID_PICTURES).captions
        self._shown = [text for text in shown if len(text_tokenizer.encode(text)) <= config.text_length] or [""]

    @property
    def transform(self) -> None:
        return None  # a mirrored picture would belie "left of"

    @property
    def finish(self) -> Finish:
        return self._packer

    def compile(self) -> None:
        # Block by block: one graph serves all of them, and what surrounds them follows the batch's shape.
        for block in self.unitok.transformer.blocks:
            block.compile()

    def prepare(self, records: RecordBatch, step: int) -> MicroBatch:
        done = records.packed if isinstance(records, PackedRecords) else None
        packed = done or self._packer.pack(records, self._codes(records))
        return MicroBatch(packed.to(self._world.device), packed.counts, records.names)

    def _codes(self, records: RecordBatch) -> torch.Tensor:
        """(B, L) on the CPU; pixels are encoded once, and replaced by their codes."""
        if records.codes is None:
            assert records.images is not None
            images = to_device(records.images, self._world.device)
            records.codes, records.images = self.unitok.image_tokenizer.encode(images).cpu(), None
        return records.codes

    def loss(
        self, forward: Callable[..., torch.Tensor], data: TaskBatch, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sums = self._task_sums(forward, data)
        return (self._weights * sums / totals).sum(), self._sums(data, sums)

    def _task_sums(self, forward: Callable[..., torch.Tensor], data: TaskBatch) -> torch.Tensor:
        """(tasks,) float32: sums of cross-entropy."""
        logits = forward(data.batch, data.batch.at)  # (N, V)
        return task_losses(logits, data.targets, data.tasks, len(self.parts))

    def _sums(self, data: TaskBatch, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "losses": sums.detach(),
            "counts": data.counts,
            "tokens": torch.tensor(float(data.tokens)),
            "pictures": torch.tensor(float(data.pictures)),
        }

    def summarise(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        numbers = self._means(sums)
        return {**numbers, "images/s": float(sums["pictures"]), "tokens/s": float(sums["tokens"])}

    def _means(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        rows = zip(self.parts, sums["losses"].tolist(), sums["counts"].tolist(), strict=True)
        return {f"loss/{name}": total / count for name, total, count in rows if count}

    def notices(self, step: int, numbers: dict[str, float]) -> list[str]:
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, pictures: int) -> dict[str, float]:
        """The loss of every task on every validation picture, captions and codes never dropped."""
        if self._validation is None:
            return {}
        was_training = model.training
        model.eval()
        sums: dict[str, torch.Tensor] = {}
        for batch in self._validation_tasks(pictures):
            for name, value in self._sums(batch, self._task_sums(model, batch)).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        model.train(was_training)
        numbers = self._means(self._world.sum_all(sums))
        weights = {f"loss/{name}": task.weight for name, task in self._tasks.items()}
        return {"loss": sum(weights[name] * value for name, value in numbers.items()), **numbers}

    def _validation_tasks(self, pictures: int) -> Iterator[TaskBatch]:
        assert self._validation is not None
        for records in self._validation.batches(pictures):
            for number, (name, task) in enumerate(self._tasks.items()):
                if task.share > 0:
                    shares = {other: TaskConfig(float(other == name), 1.0) for other in self.parts}
                    alone = TasksConfig(**shares, caption_dropout=0.0, code_dropout=0.0, code_noise=0.0)
                    packer = replace(self._packer, tasks=alone, seed=fold("validation", number))
                    yield packer.pack(records, self._codes(records)).to(self._world.device)

    def draw(self, model: nn.Module, path: Path) -> None:
        """Pictures drawn from a fixed set of captions, with fixed seeds; none if the model does not learn to draw."""
        if self._tasks.text_to_image.share == 0:
            return
        with self._using(model):
            pictures = draw(self.unitok, self._shown, precision=self._precision)
        scale = max(1, 128 // pictures.shape[-1])
        save_grid(path, pictures, columns=8, labels=self._shown, scale=scale)

    def export(self, model: nn.Module, folder: Path) -> None:
        with self._using(model):
            self.unitok.save_pretrained(folder)

    def keep(self, folder: Path) -> None:
        self.unitok.text_tokenizer.save(folder / TEXT_TOKENIZER)

    def exported(self, model: nn.Module, folder: Path) -> bool:
        try:
            found = UniTok.from_pretrained(folder)
        except UserError:
            return False
        with self._using(model):
            return found.fingerprint() == self.unitok.fingerprint()

    @contextmanager
    def _using(self, model: nn.Module) -> Iterator[None]:
        """The whole model with these weights in evaluation mode, for as long as it is entered."""
        assert isinstance(model, Transformer)
        mine, was_training = self.unitok.transformer, model.training
        self.unitok.transformer = model.eval()
        try:
            yield
        finally:
            model.train(was_training)
            self.unitok.transformer = mine


def check_codes_fit(dataset: RecordDataset | None, tokenizer: ImageTokenizer, fingerprint: str) -> None:
    """Raises UserError when code shards were made by another tokenizer, or for another size."""
    shards = getattr(dataset, "dataset", dataset)  # behind ?limit=
    if not isinstance(shards, CodesDataset):
        return
    if shards.tokenizer_fingerprint != fingerprint:
        raise UserError(
            f"{shards.name} holds codes of another image tokenizer (fingerprint {shards.tokenizer_fingerprint[:12]}, "
            f"--image_tokenizer has {fingerprint[:12]}): give the tokenizer that made them, or encode again"
        )
    if shards.layout != tokenizer.layout:
        raise UserError(
            f"{shards.name} holds codes of layout {shards.layout.scales}, the image tokenizer makes "
            f"{tokenizer.layout.scales}: encode again at its image size"
        )
