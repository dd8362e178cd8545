"""Writes pictures, the record of each, and a contact sheet into a folder; goes on where an earlier call stopped."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import load_png, save_grid, save_png

from .config import SampleSettings

RECORDS = "pictures.jsonl"
SHEET = "sheet.png"
SHEET_LIMIT = 256
"""The contact sheet shows at most this many pictures."""


class PictureFolder:
    """A folder of drawn pictures with one JSON line for each in `pictures.jsonl`.

    A line holds everything that draws the picture again: caption, seed, settings and the model's fingerprint. A
    folder that was begun with another model or other settings is refused.
    """

    def __init__(self, folder: Path, model: str, fingerprint: str, settings: SampleSettings) -> None:
        self.folder = folder
        self.origin: dict[str, Any] = {
            "model": model,
            "model_sha256": fingerprint,
            "settings": asdict(settings),
        }
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--out {folder} is a file: choose a folder") from None
        for record in self._read():
            if record.get("model_sha256") != fingerprint or record.get("settings") != self.origin["settings"]:
                raise UserError(
                    f"--out {folder} already holds pictures of another model or other settings: choose another folder"
                )
            if (folder / record["file"]).is_file():
                self.done[record["caption"], record["seed"]] = record

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / RECORDS
        if not path.exists():
            return []
        records = []
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # a line cut off by a crash: its picture is drawn again
        return records

    def add(self, caption: str, seed: int, picture: torch.Tensor) -> None:
        """Writes a picture (3, H, W) uint8, then its record."""
        slug = re.sub(r"[^a-z0-9]+", "-", caption.lower())[:48].strip("-") or "picture"
        name = f"{len(self.done):05d}-{slug}-s{seed}.png"
        save_png(self.folder / name, picture)
        record = {"file": name, "caption": caption, "seed": seed, **self.origin}
        with open(self.folder / RECORDS, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.done[caption, seed] = record

    def write_sheet(self, columns: int) -> Path:
        """The labelled contact sheet of the first pictures."""
        records = list(self.done.values())[:SHEET_LIMIT]
        pictures = torch.stack([load_png(self.folder / record["file"]) for record in records])
        labels = [f"{record['caption']} (seed {record['seed']})" for record in records]
        save_grid(self.folder / SHEET, pictures, columns=columns, labels=labels)
        return self.folder / SHEET
