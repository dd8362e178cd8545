"""A whole protocol: each caption drawn with several seeds at several guidance scales, by any number of processes.

protocol.json               what is drawn and with which networks it is looked at; a folder takes one protocol only
guidance_3/round_0/         pictures, and metadata.jsonl with their captions: a captioned data set for any tool
shards/*.safetensors        features and embeddings of `SHARD` pictures each; where one stands, its pictures do too

The work is cut into shards whose contents depend on the protocol alone. So it does not matter who makes one, in which
order, or how often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_png
from tokenizers_vq.storage.files import atomic_path, clear_litter, read_json, write_json
from tokenizers_vq.storage.schema import read_value
from unitok.data.decoding import PictureError, decode
from unitok.data.records import RecordDataset
from unitok.device import Precision
from unitok.lock import Claims
from unitok.model import UniTok
from unitok.prepare import noted
from unitok.processes.world import World
from unitok.sample.pipeline import draw
from unitok.sampling import SampleSettings
from unitok.text import CaptionEncoder

from .feature_network import FeatureNetwork, ImageTextNetwork, check_features
from .generation import FEWEST, cut_warning
from .pictures import count_pictures, progress, read_indexed
from .provenance import PictureSet, Provenance, in_words, version_line

SHARD = 64
"""Pictures of a shard: what an interruption may cost."""
PROTOCOL_FILE, SHARD_FOLDER = "protocol.json", "shards"
CLAIMS_FILE = ".claims"
"""Which process works at which shard, where there are several (`unitok.lock.Claims`)."""
PAUSE = 0.5
"""Seconds between two looks at what the other processes do."""


@dataclass(frozen=True)
class Asked:
    """The captions, and what must be known of their pictures before any is drawn; these are read again when needed."""

    dataset: RecordDataset
    indices: list[int]
    """Of the usable records."""
    names: list[str]
    captions: list[str]
    categories: list[str] | None
    pictures: PictureSet
    """Of the data's own pictures, without captions."""

    @property
    def captions_sha256(self) -> str:
        return hashlib.sha256("\n".join(self.captions).encode()).hexdigest()

    def images(self, start: int, stop: int) -> Tensor:
        """The data's own pictures uint8 (stop - start, 3, H, W)."""
        found = [self.dataset[index].image for index in self.indices[start:stop]]
        return torch.stack([image for image in found if image is not None])


def read_asked(dataset: RecordDataset, limit: int | None, max_bad: float, categories: bool = False) -> Asked:
    """Reads a data set once.

    Args:
        dataset: captions, and pictures of the model's size.
        limit, max_bad: see `pictures.read_indexed`.
        categories: the labels of the records group them.

    Raises:
        UserError: fewer than `generation.FEWEST` captions, or no labels.
    """
    asked = Asked(dataset, [], [], [], [] if categories else None, PictureSet(dataset.name))
    for index, record in progress(read_indexed(dataset, limit, max_bad), "reading", count_pictures(dataset, limit)):
        assert record.image is not None
        asked.indices.append(index)
        asked.names.append(record.name)
        asked.captions.append(record.caption or "")
        asked.pictures.update(record.image[None])
        if asked.categories is not None:
            asked.categories.append(record.fields.get("label", ""))
    if len(asked.captions) < FEWEST:
        raise UserError(f"data {dataset.name!r} gives {len(asked.captions)} captions: measuring needs {FEWEST} or more")
    if asked.categories is not None and not any(asked.categories):
        raise UserError(f"data {dataset.name!r}: the column of --category is empty in every record: choose another")
    return asked


@dataclass(frozen=True)
class Shard:
    """Neighbours among the captions: pictures `start` to `stop` of one round at one guidance scale."""

    start: int
    stop: int
    guidance: float | None
    """None: the data's own pictures, and the captions."""
    round: int = 0

    @property
    def name(self) -> str:
        whose = "data" if self.guidance is None else f"{scale_name(self.guidance)}_round_{self.round}"
        return f"{whose}_{self.start:06}-{self.stop:06}.safetensors"


@dataclass(frozen=True)
class Suite:
    folder: Path
    model: UniTok
    asked: Asked
    network: FeatureNetwork
    clip: ImageTextNetwork
    guidances: tuple[float, ...]
    """Ascending."""
    rounds: int
    seed: int
    precision: Precision = "fp32"

    @cached_property
    def text_ids(self) -> CaptionEncoder:
        return CaptionEncoder(self.model.text_tokenizer, self.model.config.text_length)

    def cut_warning(self) -> list[str]:
        """See `generation.cut_warning`."""
        return cut_warning(sum(map(self.model.too_long, self.asked.captions)), self.model)

    def settings(self, guidance: float) -> SampleSettings:
        own = SampleSettings.of(self.model.config)
        # The model's own scale may be the first of several, one for each sub-token.
        return own if own.guidance_scales(1)[0] == guidance else replace(own, guidance=guidance)

    def seeds(self, number: int) -> list[int]:
        """Of the pictures of one round; those of the first are those of `eval generator`."""
        count = len(self.asked.captions)
        return list(range(self.seed + number * count, self.seed + (number + 1) * count))

    def pictures(self, guidance: float, number: int) -> Path:
        """The folder of one round's pictures."""
        return self.folder / scale_name(guidance) / f"round_{number}"

    def protocol(self) -> Provenance:
        """Everything that the pictures and their features depend on."""
        return {
            "model_sha256": self.model.fingerprint(),
            "settings": str(SampleSettings.of(self.model.config)),
            "guidances": ", ".join(f"{guidance:g}" for guidance in self.guidances),
            "seeds": self.rounds,
            "seed": self.seed,
            "precision": self.precision,
            **noted(self.model),
            "data": self.asked.dataset.name,
            "captions": len(self.asked.captions),
            "captions_sha256": self.asked.captions_sha256,
            "data_sha256": self.asked.pictures.hexdigest(),
            "features": self.network.name,
            "features_sha256": self.network.hash,
            "clip": self.clip.name,
            "clip_sha256": self.clip.hash,
            "versions": version_line(),
        }

    def claim(self) -> None:
        """Makes the folder one of this protocol; the first process alone. Raises UserError when it is already one of
        another."""
        path, ours = self.folder / PROTOCOL_FILE, self.protocol()
        if path.exists():
            theirs = read_value(dict[str, str | int | float | None], read_json(path), str(path), "protocol")
            differ = [key for key in dict.fromkeys([*theirs, *ours]) if theirs.get(key) != ours.get(key)]
            if differ:
                raise UserError(
                    f"--out {self.folder} was begun with another protocol; there and now: "
                    f"{in_words(theirs, ours, differ)}: choose another folder, or remove this one"
                )
        else:
            write_json(path, ours)

    def shards(self) -> list[Shard]:
        """All the work, the same list in every process."""
        count = len(self.asked.captions)
        sets: list[tuple[float | None, int]] = [(None, 0)]
        sets += [(guidance, number) for guidance in self.guidances for number in range(self.rounds)]
        return [Shard(start, min(start + SHARD, count), *whose) for whose in sets for start in range(0, count, SHARD)]

    def work(self, world: World, batch_size: int = 32) -> None:
        """Makes the shards that are not there yet, until all are. Several processes share them; what one that ended
        was at falls to the others."""
        claims = Claims(self.folder / CLAIMS_FILE, shared=world.size > 1)
        left = sum(not self._file(shard).exists() for shard in self.shards())
        mine = self._claimed(claims)
        for shard in progress(mine, "drawing", left) if world.is_main else mine:
            self._make(shard, batch_size)
        claims.remove()  # everybody does: who comes when all is done has made the file anew
        if world.is_main:  # all shards are there, so nobody writes any more
            clear_litter(self.folder)

    def _claimed(self, claims: Claims) -> Iterator[Shard]:
        """The shards that nobody has made or works at, each held for this process until the next; waits for those that
        others work at."""
        shards = self.shards()
        while left := [number for number, shard in enumerate(shards) if not self._file(shard).exists()]:
            found = False
            for number in filter(claims.take, left):
                try:
                    if not self._file(shards[number]).exists():  # made by who has just let it go
                        found = True
                        yield shards[number]
                finally:
                    claims.release(number)
            if not found:
                time.sleep(PAUSE)

    def rows(self, guidance: float | None, number: int = 0) -> dict[str, Tensor]:
        """Of one round (of the data for guidance None), picture by picture: "features" (N, D), "image" (N, E), "text"
        (N, E) of the data alone, "logits" (N, C) of a network that has them."""
        parts = []
        for shard in self.shards():
            if (shard.guidance, shard.round) == (guidance, number):
                try:
                    parts.append(load_file(self._file(shard)))
                except (OSError, SafetensorError) as error:
                    raise UserError(
                        f"{self._file(shard)} cannot be read ({error}): remove it and run the same command again"
                    ) from error
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def image(self, guidance: float, place: int) -> Tensor:
        """A drawn picture uint8 (3, H, W), read from its file; `place` counts through the rounds."""
        number, index = divmod(place, len(self.asked.captions))
        path = self.pictures(guidance, number) / picture_name(index)
        try:
            return decode(path.read_bytes())
        except (OSError, PictureError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): remove {self.folder / SHARD_FOLDER} and run the same command again"
            ) from error

    def _file(self, shard: Shard) -> Path:
        return self.folder / SHARD_FOLDER / shard.name

    def _make(self, shard: Shard, batch_size: int) -> None:
        """Pictures first, their features last: where these stand, the shard is done."""
        parts: list[dict[str, Tensor]] = []
        for start in range(shard.start, shard.stop, batch_size):
            stop = min(start + batch_size, shard.stop)
            captions = self.asked.captions[start:stop]
            if shard.guidance is None:
                images = self.asked.images(start, stop)
            else:
                images = draw(
                    self.model,
                    captions,
                    self.settings(shard.guidance),
                    self.seeds(shard.round)[start:stop],
                    batch_size=batch_size,
                    precision=self.precision,
                    text_ids=self.text_ids,
                )
                for index, image in enumerate(images, start):
                    save_png(self.pictures(shard.guidance, shard.round) / picture_name(index), image)
            features, logits = self.network.features_and_logits(images)
            part = {"features": check_features(features, self.network.label, start)}
            part["image"] = self.clip.image_embeddings(images)
            if logits is not None:
                part["logits"] = logits
            if shard.guidance is None:
                part["text"] = self.clip.text_embeddings(captions)
            parts.append(part)
        with atomic_path(self._file(shard)) as temporary:
            save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, temporary)


def scale_name(guidance: float) -> str:
    """Of a guidance scale's folder and section. Without a dot, which divides section and number in report.json.

    >>> scale_name(1.25), scale_name(3.0)
    ('guidance_1_25', 'guidance_3')
    """
    return f"guidance_{guidance:g}".replace(".", "_")


def picture_name(index: int) -> str:
    """Of the picture of caption number `index`."""
    return f"{index:06}.png"
