"""Trains an image tokenizer: reconstruction, the tokenizer's own losses, LPIPS and a discriminator where asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._functorch import config as functorch_config

from tokenizers_vq.base import ImageTokenizer, TokenizerOutput, build_tokenizer, load_tokenizer
from tokenizers_vq.config_base import TokenizerConfig
from tokenizers_vq.errors import UserError
from tokenizers_vq.families.query_config import QueryVQConfig
from tokenizers_vq.images import save_grid, to_uint8
from tokenizers_vq.losses.adversarial import AdversarialLoss
from tokenizers_vq.losses.adversarial_config import AdversarialConfig
from tokenizers_vq.losses.config import LossConfig
from tokenizers_vq.losses.contrast import CaptionFeatures
from tokenizers_vq.losses.reconstruction import TokenizerLoss
from tokenizers_vq.parts import train_only
from tokenizers_vq.quantizers.config import BSQ, FSQ
from tokenizers_vq.usage import CodebookUsage
from unitok.data.loader import Transform
from unitok.data.records import RecordBatch, RecordDataset
from unitok.processes.world import World
from unitok.seeding import fold

from .config import AugmentConfig, RunConfig
from .notices import LowForLong
from .pictures import Augmenter, Validation, first_records, to_device
from .text_tower import TextTower
from .trainee import MicroBatch, Opponent

GRID_PICTURES = 8

LOW_PERPLEXITY = 0.01
"""Share of the codes that could occur; a perplexity below it is a collapse."""
LOW_DISCRIMINATOR_LOSS = 0.02
"""Chance is 1 (hinge) or 0.69."""


class StepImages(NamedTuple):
    """A micro-batch and the step it is of, for the losses that have a schedule."""

    images: torch.Tensor
    """(B, 3, H, W) in [-1, 1]."""
    step: int
    """From 0."""
    captions: dict[str, CaptionFeatures]
    """As the argument of the tokenizer's `forward`; empty where it does not learn from them."""


def parameters_of(config: TokenizerConfig) -> int:
    """Parameters and buffers of a tokenizer, without taking memory for them; those of a model it would load are left
    aside."""
    quantizer = config.quantizer
    if isinstance(quantizer, FSQ):  # its package computes while it is built; BSQ is as wide, and has no weights either
        config = replace(config, quantizer=BSQ(codebook_size=2**quantizer.width))
    if isinstance(config, QueryVQConfig):
        config = replace(config, vision=None, vision_model=None, contrastive_weight=0.0)
    with torch.device("meta"):
        built = build_tokenizer(config)
    return sum(tensor.numel() for tensor in (*built.parameters(), *built.buffers()))


def tokenizer_to_train(folder: Path) -> ImageTokenizer:
    """The tokenizer of --init. Raises UserError: it cannot be read, or has no pixels to learn from."""
    tokenizer = load_tokenizer(folder)
    tokenizer.check_pixels()
    return tokenizer


class TokenizerTrainee:
    """What the engine needs to train a tokenizer. Every part of the loss is a mean over pictures of equal size."""

    parts: tuple[str, ...] = ("pictures",)

    def __init__(
        self,
        config: TokenizerConfig,
        losses: LossConfig,
        adversarial: AdversarialConfig,
        augmentation: AugmentConfig,
        dataset: RecordDataset,
        validation: RecordDataset | None,
        run: RunConfig,
        world: World,
        start: ImageTokenizer | None = None,
        trainable: Sequence[str] = (),
    ) -> None:
        self._world = world
        self._augmenter = Augmenter(augmentation)
        torch.manual_seed(fold(run.seed, "weights"))
        self.tokenizer: ImageTokenizer = build_tokenizer(config)
        if start is not None:
            self.tokenizer.load_state_dict(start.state_dict())
        if trainable:
            train_only(self.tokenizer, trainable)
        self.tokenizer.to(world.device)
        self.model: nn.Module = self.tokenizer
        self.size = self.tokenizer.counted
        self._loss = TokenizerLoss(losses).to(world.device)
        self.adversarial: AdversarialLoss | None = None
        self.opponent: Opponent | None = None
        if adversarial.weight > 0:
            adversarial.check_run(config.size, run.steps)
            if adversarial.adaptive and not self.tokenizer.last_layer.requires_grad:
                raise UserError(
                    "adversarial.adaptive balances two losses at the last layer of the decoder, which --trainable"
                    " leaves out: train the decoder's, or set adversarial.adaptive false"
                )
            torch.manual_seed(fold(run.seed, "discriminator"))
            self.adversarial = AdversarialLoss(adversarial).to(world.device)
            self.opponent = Opponent(self.adversarial, adversarial.lr)
        codes = min(self.size, run.batch_size * self.tokenizer.layout.length)
        self._codebook_watch = LowForLong(
            max(1.5, LOW_PERPLEXITY * codes),
            f"few of the {self.size} codes are in use, by the perplexity: lower optim.lr, raise the quantizer's"
            " revive_below (VQ, Cosine) or entropy_weight (LFQ, BSQ, IBQ), or choose another, such as FSQ",
        )
        self._discriminator_watch = LowForLong(
            LOW_DISCRIMINATOR_LOSS,
            "the discriminator tells everything apart, and the tokenizer learns little from it: lower adversarial.lr,"
            " raise adversarial.lecam_weight, or set adversarial.r1_weight",
        )
        micro_batch = run.micro_batch_for(world.size)
        self._texts: TextTower | None = None
        if config.text_tower:
            if micro_batch == 1:
                raise UserError(
                    "tokenizer.contrastive_weight compares the pictures of a micro-batch, which is one here: raise"
                    " run.micro_batch or run.batch_size, or leave contrastive_weight out"
                )
            self._texts = TextTower(config.text_tower, world.device)
        self._validation = Validation(validation, run.eval_pictures, micro_batch, world) if validation else None
        self._shown = first_records(validation or dataset, GRID_PICTURES).images

    @property
    def blocks(self) -> list[nn.Module]:
        return []

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
        counts = torch.tensor([float(len(images))], dtype=torch.double)
        return MicroBatch(StepImages(images, step, self._captions(records)), counts, records.names)

    def _captions(self, records: RecordBatch) -> dict[str, CaptionFeatures]:
        return {"captions": self._texts.read(records.captions)} if self._texts else {}

    def loss(
        self, forward: Callable[..., Any], data: StepImages, totals: torch.Tensor, last: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, step, captions = data
        share = len(images) / totals[0]
        # The adaptive weight asks the last layer for gradients twice before the backward pass; a decoder that is
        # compiled here would have given its buffers away after the first.
        with functorch_config.patch(donated_buffer=self.adversarial is None):
            output: TokenizerOutput = forward(images, accumulate=not last, **captions)
        total, parts = self._loss(images, output)
        numbers: dict[str, torch.Tensor] = {}
        if self.adversarial is not None:
            more, numbers = self.adversarial(
                images, output.reconstruction, total, self.tokenizer.last_layer, step, share, last
            )
            total = torch.stack([total, *more.values()]).sum()
            parts |= more
        sums = self._sums(images, output, parts)
        return total * share, sums | {name: value * len(images) for name, value in numbers.items()}

    def _sums(
        self, images: torch.Tensor, output: TokenizerOutput, parts: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Sums over the pictures of a batch, on the device."""
        pictures = len(images)
        with torch.no_grad():
            difference = output.reconstruction.detach().clamp(-1, 1) - images
            square = difference.square().flatten(1).mean(1).clamp(min=1e-10)  # (B,); a perfect copy counts 106 dB
            layout = self.tokenizer.layout_for(images.shape[2], images.shape[3])
            codes = self.tokenizer.countable(output.codes)
            uses = [torch.bincount(part.flatten(), minlength=self.size) for part in layout.split(codes)]
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
        numbers |= {name: float(sums[name]) / pictures for name in sums if name.startswith("adversarial/")}
        usage = CodebookUsage(self.size, sums["uses"].sum(0))
        numbers |= {"codebook_use": usage.use, "perplexity": usage.perplexity}
        if len(sums["uses"]) > 1:
            grids = self.tokenizer.config.quantizer.grids
            for name, uses in zip(self.tokenizer.layout.names, sums["uses"], strict=True):
                own = uses.reshape(grids, -1).sum(0)  # of several codebooks, a grid uses one
                numbers[f"use/{name}"] = CodebookUsage(len(own), own).reached
        return {**numbers, "images/s": pictures}

    def notices(self, step: int, numbers: dict[str, float]) -> list[str]:
        notices = []
        if "perplexity" in numbers:
            notices += self._codebook_watch.see(step, numbers["perplexity"])
        # An interval in which the discriminator appears says little, but cannot be low for long.
        if "loss/discriminator" in numbers:
            notices += self._discriminator_watch.see(step, numbers["loss/discriminator"])
        return notices

    @torch.no_grad()
    def evaluate(self, pictures: int) -> dict[str, float]:
        if self._validation is None:
            return {}
        model = self.tokenizer
        was_training = model.training
        model.eval()
        sums: dict[str, torch.Tensor] = {}
        for batch in self._validation.batches(pictures):
            assert batch.images is not None
            images = to_device(batch.images, self._world.device)
            output = model(images, **self._captions(batch))
            _, parts = self._loss(images, output)
            for name, value in self._sums(images, output, parts).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        model.train(was_training)
        numbers = self.summarise(self._world.sum_all(sums))
        del numbers["images/s"]
        return {"loss": sum(value for name, value in numbers.items() if name.startswith("loss/")), **numbers}

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        """Originals above their reconstructions, always of the same pictures."""
        assert self._shown is not None
        model, was_training = self.tokenizer, self.tokenizer.training
        model.eval()
        codes = model.encode(to_device(self._shown, self._world.device))
        height, width = self._shown.shape[2:]
        copies = to_uint8(model.decode(codes, model.layout_for(height, width))).cpu()
        model.train(was_training)
        scale = max(1, 96 // width)
        save_grid(path, torch.cat([self._shown, copies]), columns=len(copies), scale=scale)

    exports_all = True

    def export(self, folder: Path, model: ImageTokenizer) -> None:
        model.save_pretrained(folder)

    def keep(self, folder: Path) -> None:
        """Nothing: the command line says all of it."""

    def exported(self, folder: Path) -> bool:
        try:
            return load_tokenizer(folder).fingerprint() == self.tokenizer.fingerprint()
        except UserError:
            return False
