"""Trains an image tokenizer: reconstruction, the quantizer's own losses, LPIPS where its weights can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokenizers_vq.base import ImageTokenizer, TokenizerOutput, build_tokenizer
from tokenizers_vq.config import LossConfig, TokenizerConfig
from tokenizers_vq.images import save_grid, to_uint8
from tokenizers_vq.losses import TokenizerLoss
from tokenizers_vq.usage import CodebookUsage
from unitok.data.loader import Transform
from unitok.data.records import RecordBatch, RecordDataset
from unitok.seeding import fold

from .config import AugmentConfig, RunConfig
from .distributed import World
from .pictures import Augmenter, Validation, first_records, to_device
from .trainee import MicroBatch

GRID_PICTURES = 8


class TokenizerTrainee:
    """What the engine needs to train a tokenizer. Every part of the loss is a mean over pictures of equal size."""

    parts: tuple[str, ...] = ("pictures",)

    def __init__(
        self,
        config: TokenizerConfig,
        losses: LossConfig,
        augmentation: AugmentConfig,
        dataset: RecordDataset,
        validation: RecordDataset | None,
        run: RunConfig,
        world: World,
    ) -> None:
        self._world = world
        self._augmenter = Augmenter(augmentation)
        torch.manual_seed(fold(run.seed, "weights"))
        self.tokenizer: ImageTokenizer = build_tokenizer(config).to(world.device)
        self.model: nn.Module = self.tokenizer
        self.size = self.tokenizer.codebook_size
        self._loss = TokenizerLoss(losses).to(world.device)
        micro_batch = run.micro_batch_for(world.size)
        self._validation = Validation(validation, run.eval_pictures, micro_batch, world) if validation else None
        self._shown = first_records(validation or dataset, GRID_PICTURES).images

    @property
    def transform(self) -> Transform:
        return self._augmenter

    @property
    def finish(self) -> None:
        return None

    def compile(self) -> None:
        # Not the quantizer: its search and its codebook updates ask the device, which would break the graph.
        for name, part in self.tokenizer.named_children():
            if name != "quantizer":
                part.compile()

    def prepare(self, records: RecordBatch, step: int) -> MicroBatch:
        assert records.images is not None
        images = to_device(records.images, self._world.device)
        return MicroBatch(images, torch.tensor([float(len(images))], dtype=torch.double), records.names)

    def loss(
        self, forward: Callable[..., Any], data: torch.Tensor, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        output: TokenizerOutput = forward(data, accumulate=not last)
        total, parts = self._loss(data, output)
        return total * (len(data) / totals[0]), self._sums(data, output, parts)

    def _sums(
        self, images: torch.Tensor, output: TokenizerOutput, parts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Sums over the pictures of a batch, on the device."""
        pictures = len(images)
        with torch.no_grad():
            difference = output.reconstruction.detach().clamp(-1, 1) - images
            square = difference.square().flatten(1).mean(1).clamp(min=1e-10)  # (B,); a perfect copy counts 106 dB
            layout = self.tokenizer.layout_for(images.shape[2], images.shape[3])
            uses = [torch.bincount(part.flatten(), minlength=self.size) for part in layout.split(output.codes)]
            return {
                **{f"loss/{name}": part.detach() * pictures for name, part in parts.items()},
                "l1": difference.abs().mean() * pictures,
                "psnr": (10 * torch.log10(4 / square)).sum(),  # the range is 2 wide
                "uses": torch.stack(uses).double(),  # (scales, codebook)
                "pictures": torch.tensor(float(pictures)),
            }

    def summarise(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        pictures = float(sums["pictures"])
        numbers = {name: float(value) / pictures for name, value in sums.items() if name.startswith("loss/")}
        numbers |= {name: float(sums[name]) / pictures for name in ("psnr", "l1")}
        usage = CodebookUsage(self.size, sums["uses"].sum(0))
        numbers |= {"codebook_use": usage.use, "perplexity": usage.perplexity}
        if len(sums["uses"]) > 1:
            for (height, width), uses in zip(self.tokenizer.layout.scales, sums["uses"], strict=True):
                numbers[f"use/{height}x{width}"] = CodebookUsage(self.size, uses).reached
        return {**numbers, "images/s": pictures}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, pictures: int) -> dict[str, float]:
        if self._validation is None:
            return {}
        assert isinstance(model, ImageTokenizer)
        was_training = model.training
        model.eval()
        sums: dict[str, torch.Tensor] = {}
        for batch in self._validation.batches(pictures):
            assert batch.images is not None
            images = to_device(batch.images, self._world.device)
            output = model(images)
            _, parts = self._loss(images, output)
            for name, value in self._sums(images, output, parts).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        model.train(was_training)
        numbers = self.summarise(self._world.sum_all(sums))
        del numbers["images/s"]
        return {"loss": sum(value for name, value in numbers.items() if name.startswith("loss/")), **numbers}

    @torch.no_grad()
    def draw(self, model: nn.Module, path: Path) -> None:
        """Originals above their reconstructions, always of the same pictures."""
        assert isinstance(model, ImageTokenizer) and self._shown is not None
        codes = model.encode(to_device(self._shown, self._world.device))
        height, width = self._shown.shape[2:]
        copies = to_uint8(model.decode(codes, model.layout_for(height, width))).cpu()
        scale = max(1, 96 // width)
        save_grid(path, torch.cat([self._shown, copies]), columns=len(copies), scale=scale)

    def export(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, ImageTokenizer)
        model.save_pretrained(folder)
