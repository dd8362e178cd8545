"""Writes pictures, the record of each, and a contact sheet into a folder; goes on where an earlier call stopped."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.files import atomic_path
from tokenizers_vq.images import save_grid, save_png
from unitok.data.decoding import decode
from unitok.seeding import fold

from .config import SampleSettings

PICTURES, RECORDS = "pictures", "metadata.jsonl"
SHEET, PROGRESS = "sheet.png", "progress.png"
SHEET_LIMIT = 256
"""The contact sheet shows at most this many pictures."""


def _record(line: str) -> dict[str, Any] | None:
    """A line of the records, or None for one that was cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None


class PictureFolder:
    """`pictures/` with one JSON line for each picture in its `metadata.jsonl`, and the contact sheet beside it.

    A line holds everything that draws the picture again: caption, seed, settings and the model's fingerprint. With
    `file_name` and `caption` in it, `pictures/` is a captioned data set like any other. A folder that was begun with
    another model or other settings is refused.
    """

    def __init__(self, folder: Path, model: str, fingerprint: str, settings: SampleSettings) -> None:
        self.folder, self.pictures = folder, folder / PICTURES
        self.origin: dict[str, Any] = {
            "model": model,
            "model_sha256": fingerprint,
            "settings": asdict(settings),
        }
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        """Records by (caption, seed)."""
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {folder} is a file: choose a folder") from None
        path = self.pictures / RECORDS
        lines = path.read_text().splitlines() if path.exists() else []
        for record in filter(None, map(_record, lines)):
            if record.get("model_sha256") != fingerprint or record.get("settings") != self.origin["settings"]:
                raise UserError(
                    f"--out {folder} already holds pictures of another model or other settings: choose another folder"
                )
            if (self.pictures / record["file_name"]).is_file():
                self.done[record["caption"], record["seed"]] = record
        self.names = {record["file_name"] for record in self.done.values()}
        if len(self.done) < len(lines):  # a crash cut the last line off, or a picture is gone: it is drawn again
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in self.done.values()))

    def add(self, caption: str, seed: int, picture: torch.Tensor) -> None:
        """Writes a picture (3, H, W) uint8, then its record."""
        slug = re.sub(r"[^a-z0-9]+", "-", caption.lower())[:48].strip("-") or "picture"
        name = f"{slug}-s{seed}.png"
        if name in self.names:  # another caption with the same letters
            name = f"{slug}-{fold(caption) % 16**6:06x}-s{seed}.png"
        save_png(self.pictures / name, picture)
        record = {"file_name": name, "caption": caption, "seed": seed, **self.origin}
        with open(self.pictures / RECORDS, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.done[caption, seed] = record
        self.names.add(name)

    def write_sheet(self, n: int) -> Path:
        """The labelled contact sheet of the first pictures, about square; the n pictures of a caption stay together."""
        records = list(self.done.values())[:SHEET_LIMIT]
        pictures = torch.stack([decode((self.pictures / record["file_name"]).read_bytes()) for record in records])
        labels = [f"{record['caption']} (seed {record['seed']})" for record in records]
        scale = max(1, 144 // pictures.shape[-1])  # small pictures are enlarged, so that their labels fit below
        columns = n * max(1, round((len(records) / n / n) ** 0.5))
        save_grid(self.folder / SHEET, pictures, columns=columns, labels=labels, scale=scale)
        return self.folder / SHEET

    def write_progress(self, pictures: torch.Tensor) -> Path:
        """A grid of pictures (N, K, 3, H, W): a row for each, a column for each scale."""
        scale = max(1, 96 // pictures.shape[-1])
        save_grid(self.folder / PROGRESS, pictures.flatten(0, 1), columns=pictures.shape[1], scale=scale)
        return self.folder / PROGRESS
