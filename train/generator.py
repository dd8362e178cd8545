"""Trains the transformer over text and image codes, from code shards or from pixels that are encoded on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_grid
from tokenizers_vq.parts import trainable_names
from unitok.config import ModelConfig, ObjectiveSettings, TasksConfig
from unitok.data.codes.shards import CodesDataset
from unitok.data.judging import can_judge, judge
from unitok.data.loader import Finish, Transform
from unitok.data.mixture import Slot, parts_of, slots_of, sources_of
from unitok.data.records import Record, RecordBatch, RecordDataset
from unitok.modalities import Picture
from unitok.model import TEXT_TOKENIZER, UniTok, modalities
from unitok.processes.world import World
from unitok.sample.performing import perform
from unitok.sample.pipeline import draw
from unitok.seeding import fold
from unitok.tasks import TASKS, bound_to_pixels, draws_pictures, needs, reads_pictures, way
from unitok.text import CaptionEncoder, TextTokenizer
from unitok.tuning.adapter import Adapter, holds_adapter, save_adapter

from .config import AS_IT_IS, AugmentConfig, RunConfig
from .data import named_classes
from .packing import PackedRecords, Packer, TaskBatch, encode_pixels, fields_of, has_pixels
from .pictures import Augmenter, Validation, first_records, to_device
from .trainee import MicroBatch, Opponent
from .tuning.start import Beginning, Start, check_reached

GRID_PICTURES = 16
EXAMINED = 32
"""Records of each validation data set that are judged: enough to see a task being learned."""


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
        objective_settings: ObjectiveSettings,
        augmentation: AugmentConfig,
        dataset: RecordDataset,
        validation: Sequence[RecordDataset],
        run: RunConfig,
        world: World,
        start: Beginning | None = None,
    ) -> None:
        begun = isinstance(getattr(start, "inner", start), Start)  # also where it gets a reader
        for data in (*parts_of(dataset), *validation):
            check_codes_fit(data, image_tokenizer, config.image_tokenizer, begun)
        if config.reader is not None:
            check_pictures(dataset, validation)
        self._augmenter = augmenter_for(augmentation, dataset)
        if isinstance(start, Start) and config.trunk.captions == "class":
            named = named_classes(start.model.classes, dataset, validation, world.is_main)
            config = replace(config, classes=named.names)
        self._world, self._tasks, self._precision, self._compiled = world, tasks, run.precision, run.compile
        self._adapter: Adapter | None = None
        self.parts = tuple(TASKS)
        torch.manual_seed(fold(run.seed, "weights"))
        self.unitok = UniTok(config, image_tokenizer, text_tokenizer)
        if start is not None:
            self._adapter = start.begin(self.unitok)
        self._reads_states = config.trunk.state_width > 0
        objective = copy.deepcopy(self.unitok.objective)  # stays on the CPU, where batches are packed
        self.unitok.to(world.device)
        self.model: nn.Module = self.unitok
        self._weights = torch.tensor([task.weight for _, task in tasks.items()], device=world.device)
        slots = slots_of(sources_of(dataset), run.batch_size)
        self._learned = {slot.task for slot in slots}
        check_reached(trainable_names(self.unitok), self._learned)
        encode, vocabulary = CaptionEncoder(text_tokenizer, config.text_length), self.unitok.vocabulary
        captions = self.unitok.captions(encode)
        arguments = (vocabulary, encode, config.text_length, self.unitok.layout, objective)
        seen = self.unitok.seen
        self._packer = Packer(
            modalities(*arguments, objective_settings, captions, seen),
            slots,
            {"text": tasks.caption_dropout, "image": tasks.image_dropout},
            vocabulary.pad,
            fold(run.seed, "tasks"),
            run.steps,
            tasks.box_noise,
        )
        self._clean = modalities(*arguments, captions=captions, seen=seen)
        micro_batch = run.micro_batch_for(world.size)
        self._validation = [Validation(one, run.eval_pictures, micro_batch, world) for one in validation]
        self._examined: dict[str, list[Record]] | None = None
        shown = first_records(validation[0] if validation else dataset, GRID_PICTURES).captions
        self._shown = [text for text in shown if not self.unitok.too_long(text)] or [""]

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.unitok.trunk.blocks)

    @property
    def transform(self) -> Transform | None:
        return self._augmenter

    @property
    def finish(self) -> Finish | None:
        """Where captions are states, batches are packed here, beside the text encoder."""
        return None if self._reads_states else self._packer

    def compile(self) -> None:
        # Block by block: one graph serves all of them, and what surrounds them follows the batch's shape.
        for block in self.blocks:
            block.compile()

    def prepare(self, records: RecordBatch, step: int) -> MicroBatch:
        done = records.packed if isinstance(records, PackedRecords) else None
        packed = done or self._packer.pack(self._encoded(records))
        return MicroBatch(packed.to(self._world.device), packed.counts, records.names)

    def _encoded(self, records: RecordBatch) -> RecordBatch:
        """The records, their pixels replaced by codes, and captions by states where the model reads such."""
        if has_pixels(records):
            encode_pixels(records, self._encode)
        if self._reads_states:
            for record in records.records:
                record.fields["caption"] = self.unitok.caption_states(record.caption) if record.caption else None
        return records

    def _encode(self, images: torch.Tensor) -> Sequence[torch.Tensor | Picture]:
        """Of pictures uint8 (B, 3, H, W) what the tasks take: codes, pixels, or both."""
        reader = self.unitok.reader
        if reader is not None and not draws_pictures(self._learned):
            return [Picture(image) for image in images]
        codes = self.unitok.image_tokenizer.encode(to_device(images, self._world.device)).cpu()
        return list(codes) if reader is None else [Picture(*both) for both in zip(images, codes, strict=True)]

    def loss(
        self, forward: Callable[..., torch.Tensor], data: TaskBatch, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sums = forward(data.batch)  # (tasks,)
        return (self._weights * sums / totals).sum(), self._sums(data, sums)

    def _sums(self, data: TaskBatch, sums: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "losses": sums.detach(),
            "counts": data.counts,
            "tokens": torch.tensor(float(data.tokens)),
            "places": torch.tensor(float(data.places)),
            "pictures": torch.tensor(float(data.pictures)),
        }

    def summarise(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        numbers = self._means(sums)
        numbers |= {"images/s": float(sums["pictures"]), "tokens/s": float(sums["tokens"])}
        return {**numbers, "padding": 1 - float(sums["tokens"] / sums["places"])}

    def _means(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        rows = zip(self.parts, sums["losses"].tolist(), sums["counts"].tolist(), strict=True)
        return {f"loss/{name}": total / count for name, total, count in rows if count}

    def notices(self, step: int, numbers: dict[str, float]) -> list[str]:
        return []

    @torch.no_grad()
    def evaluate(self, pictures: int) -> dict[str, float]:
        """The loss of every task on every validation record that has its fields, nothing dropped, hidden or changed;
        and the share of a few records for which what is written is exactly right."""
        if not self._validation:
            return {}
        was_training = self.unitok.training
        self.unitok.eval()
        sums = {"losses": torch.zeros(len(TASKS)), "counts": torch.zeros(len(TASKS), dtype=torch.double)}
        with self._not_compiled():
            for batch in self._validation_tasks(pictures):
                sums["losses"] = sums["losses"] + self.unitok(batch.batch).cpu()
                sums["counts"] = sums["counts"] + batch.counts
            exact = self._exact(pictures)
        self.unitok.train(was_training)
        numbers = self._means(self._world.sum_all(sums))
        weights = {f"loss/{name}": task.weight for name, task in self._tasks.items()}
        return {"loss": sum(weights[name] * value for name, value in numbers.items()), **numbers, **exact}

    def _validation_tasks(self, pictures: int) -> Iterator[TaskBatch]:
        for validation in self._validation:
            for records in validation.batches(pictures):
                self._encoded(records)
                for number, task in enumerate(TASKS):
                    able = _those_with(records, needs([task])) if task in self._learned else None
                    if able is not None:
                        packer = replace(
                            self._packer,
                            modalities=self._clean,
                            dropout={},
                            noise=0.0,
                            slots=[Slot(0, task)] * (1 + max(key.slot for key in able.keys)),
                            seed=fold("validation", number),
                        )
                        yield packer.pack(able).to(self._world.device)

    def _exact(self, pictures: int) -> dict[str, float]:
        """Task -> share of the first records that have its fields for which what the model writes is right."""
        if self._examined is None:
            self._examined = {}
            for validation in self._validation:
                data = validation.dataset
                records = [data[index] for index in range(min(EXAMINED, len(data)))]
                for task in sorted(self._learned - self._examined.keys()):
                    if draws_pictures([task]) and self.unitok.image_tokenizer.no_pixels:
                        continue
                    able = [record for record in records if can_judge(task, record)]
                    if able:
                        self._examined[task] = able
        found = {}
        for task, records in self._examined.items():
            mine = records[: max(1, pictures)][self._world.rank :: self._world.size]
            written = self._world.together(partial(perform, self.unitok, task, mine, precision=self._precision))
            verdicts = [judge(task, record, value) for record, value in zip(mine, written, strict=True)]
            known = [verdict for verdict in verdicts if verdict is not None]
            found[task] = torch.tensor([sum(known), len(known)], dtype=torch.double)
        if not found:
            return {}
        counts = {task: tuple(one.tolist()) for task, one in self._world.sum_all(found).items()}
        return {f"exact/{task}": right / count for task, (right, count) in counts.items() if count}

    def _not_compiled(self) -> AbstractContextManager[object]:
        """Blocks that are compiled for training run as they are while the model is evaluated or draws. Without
        gradients each form of a batch would be compiled once more, for a few batches, until torch refuses another.
        Each engine has a cache of another size, and torch 2.11 takes one for the other."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def draw(self, path: Path) -> None:
        """Pictures drawn from a fixed set of captions, with fixed seeds; none if the model does not learn to draw, or
        its codes become no pictures."""
        if way("text_to_image", self._learned) is None or self.unitok.image_tokenizer.no_pixels:
            return
        was_training = self.unitok.training
        with self._not_compiled():
            pictures = draw(self.unitok.eval(), self._shown, precision=self._precision)
        self.unitok.train(was_training)
        scale = max(1, 128 // pictures.shape[-1])
        save_grid(path, pictures, columns=8, labels=self._shown, scale=scale)

    @property
    def exports_all(self) -> bool:
        return self._adapter is None

    def export(self, folder: Path, model: UniTok) -> None:
        if self._adapter is None:
            model.save_pretrained(folder)
        else:
            save_adapter(model, self._adapter.seen_from(folder), folder)

    def keep(self, folder: Path) -> None:
        self.unitok.text_tokenizer.save(folder / TEXT_TOKENIZER)

    def exported(self, folder: Path) -> bool:
        if self._adapter is not None:
            return holds_adapter(folder, self._adapter.seen_from(folder), self.unitok)
        try:
            return UniTok.from_pretrained(folder).fingerprint() == self.unitok.fingerprint()
        except UserError:
            return False


def _those_with(records: RecordBatch, fields: set[str]) -> RecordBatch | None:
    """The records that have these fields; None when none has."""
    rows = [row for row in range(len(records.keys)) if fields <= fields_of(records, row).keys()]
    if len(rows) == len(records.keys):
        return records
    if not rows:
        return None
    return replace(
        records,
        keys=[records.keys[row] for row in rows],
        names=[records.names[row] for row in rows],
        captions=[records.captions[row] for row in rows],
        codes=None if records.codes is None else [records.codes[row] for row in rows],
        records=[records.records[row] for row in rows],
    )


def check_pictures(dataset: RecordDataset, validation: Sequence[RecordDataset]) -> None:
    """Raises UserError for code shards whose pictures a reader would have to see."""
    pairs = _with_tasks(dataset)
    learned = {task for _, tasks in pairs for task in tasks}
    for data, tasks in [*pairs, *((one, learned) for one in validation)]:
        shards = _shards_of_codes(data)
        if shards is not None and reads_pictures(tasks):
            raise UserError(
                f"{shards.name} holds codes without pictures, and --reader.encoder reads pictures: give the pictures "
                "themselves as --data, or leave the reader out"
            )


def augmenter_for(augmentation: AugmentConfig, dataset: RecordDataset) -> Augmenter | None:
    """What changes the pictures of a data set, if something does.

    Raises:
        UserError: all of it is codes, or a picture has what belongs to its pixels.
    """
    if augmentation == AS_IT_IS:
        return None
    pixels = [(part, tasks) for part, tasks in _with_tasks(dataset) if _shards_of_codes(part) is None]
    if not pixels:
        raise UserError(
            f"{dataset.name} holds codes, which --augment does not change: give the pictures themselves as --data, or "
            "leave it out"
        )
    for part, tasks in pixels:
        if bound_to_pixels(tasks):
            raise UserError(
                f"{part.name} has boxes or further pictures ({', '.join(sorted(tasks))}), which --augment would not "
                "change with its pictures: leave it out, or give these data as codes"
            )
    return Augmenter(augmentation)


def _with_tasks(dataset: RecordDataset) -> list[tuple[RecordDataset, set[str]]]:
    """The data sets that records come from, and what each is for."""
    return [(part, set(one.tasks)) for part, one in zip(parts_of(dataset), sources_of(dataset), strict=True)]


def _shards_of_codes(dataset: RecordDataset | None) -> CodesDataset | None:
    """The data set, also behind ?limit=, if it is codes."""
    shards = getattr(dataset, "dataset", dataset)
    return shards if isinstance(shards, CodesDataset) else None


def check_codes_fit(dataset: RecordDataset | None, tokenizer: ImageTokenizer, fingerprint: str, begun: bool) -> None:
    """Raises UserError when code shards were made by another tokenizer (`begun`: than that of --init), or for another
    size."""
    shards = _shards_of_codes(dataset)
    if shards is None:
        return
    if shards.tokenizer_fingerprint != fingerprint:
        whose, advice = "--image_tokenizer", "give the tokenizer that made them, or encode again"
        if begun:
            whose, advice = "the model in --init", "encode the pictures with the image_tokenizer/ in its folder"
        raise UserError(
            f"{shards.name} holds codes of another image tokenizer (fingerprint {shards.tokenizer_fingerprint[:12]}, "
            f"{whose} has {fingerprint[:12]}): {advice}"
        )
    if shards.layout != tokenizer.layout:
        raise UserError(
            f"{shards.name} holds codes of layout {shards.layout.scales}, the image tokenizer makes "
            f"{tokenizer.layout.scales}: encode again at its image size"
        )
