"""Writes pictures, the record of each, and a contact sheet into a folder; goes on where an earlier call stopped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import ImageDraw

from tokenizers_vq.errors import UserError
from tokenizers_vq.images import save_grid, save_png, to_pil
from tokenizers_vq.storage.files import atomic_path, parse_json, read_bytes
from tokenizers_vq.storage.weights import read_weights, write_weights
from unitok.data.decoding import decode
from unitok.model import UniTok
from unitok.sampling import SampleSettings
from unitok.seeding import fold

Job = tuple[str, int]
"""Caption and seed."""

PICTURES, CODES, RECORDS = "pictures", "codes", "metadata.jsonl"
SHEET, PROGRESS = "sheet.png", "progress.png"
RECORDS_LIMIT = 2**30
"""Bytes of records that are read."""
POINTED = "pointed"
"""Of a record: what a model that points found before it drew, boxes as shares of the picture."""
COLOURS = ("red", "blue", "green", "magenta", "orange", "cyan", "purple", "brown")
"""Of boxes."""
SHEET_LIMIT = 256
"""The contact sheet shows at most this many pictures."""


def _digest(record: dict[str, Any], data: bytes) -> str:
    """Of a picture's file and of what its record says."""
    said = json.dumps({key: value for key, value in record.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(data + said.encode()).hexdigest()


class PictureFolder:
    """`pictures/` with one JSON line for each picture in its `metadata.jsonl`, and the contact sheet beside it.

    A line holds everything that draws the picture again: caption, seed, settings, precision and the model's
    fingerprint, and a digest of itself and the picture. With `file_name` and `caption` in it, `pictures/` is a
    captioned data set like any other. A folder that was begun with another model, other settings or another source
    picture is refused. `given` is what else the pictures are drawn from, as it stands in JSON: a source picture by its
    digest, the part of it that stays.
    """

    within, ending = PICTURES, ".png"

    def __init__(
        self,
        folder: Path,
        model: str,
        fingerprint: str,
        settings: SampleSettings,
        precision: str = "fp32",
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.pictures = folder, folder / self.within
        self.origin: dict[str, Any] = {
            "model": model,
            "model_sha256": fingerprint,
            "settings": asdict(settings),
            "precision": precision,
            **(given or {}),
        }
        self.done: dict[Job, dict[str, Any]] = {}
        """Records by (caption, seed)."""
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written ({error.strerror}): choose another folder") from None
        lines = self._lines()
        for record in filter(None, map(self._whole, lines)):
            self.done[record["caption"], record["seed"]] = record
        self.names = {record["file_name"] for record in self.done.values()}
        self._mended = len(self.done) < len(lines)
        if self._mended:  # a line or a picture is cut off, damaged or gone: it is drawn again
            self._write_records(self.done)

    def _lines(self) -> list[str]:
        """The lines of the records. One that is not text is none of ours, and is drawn again."""
        path = self.pictures / RECORDS
        if not path.exists():
            return []
        lines = read_bytes(path, RECORDS_LIMIT).decode("utf-8", errors="replace").split("\n")
        return lines if lines[-1] else lines[:-1]  # without an end, a line was cut off

    def _whole(self, line: str) -> dict[str, Any] | None:
        """The record of a line whose picture is there as it was written, else None.

        Raises:
            UserError: it is a record of another model, of other settings, or made from something else.
        """
        try:
            record = parse_json(line, RECORDS)
        except UserError:
            return None
        kinds = {"file_name": str, "caption": str, "seed": int, "settings": dict, "model_sha256": str}
        if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
            return None
        name = record["file_name"]
        if "/" in name or "\\" in name or name.startswith("."):
            return None  # no name of ours: nothing outside this folder is read
        try:
            data = (self.pictures / name).read_bytes()
            if "sha256" in record:
                if record["sha256"] != _digest(record, data):
                    return None
            else:
                decode(data)  # a record from before it held a digest
        except (OSError, ValueError):
            return None
        said = {"precision": "fp32", **record}  # older records do not name it
        own = {"file_name", "caption", "seed", "sha256", "model", POINTED}  # the same model may lie elsewhere now
        if any(said.get(key) != self.origin.get(key) for key in {*said, *self.origin} - own):
            raise UserError(
                f"--out {self.folder} already holds pictures of another model or other settings, or made from another "
                "picture or mask: choose another folder"
            )
        return record

    def _write_records(self, records: Iterable[Job]) -> None:
        with atomic_path(self.pictures / RECORDS, sync=False) as temporary:
            text = "".join(json.dumps(self.done[job]) + "\n" for job in records)
            temporary.write_text(text, encoding="utf-8")

    def add(self, caption: str, seed: int, picture: torch.Tensor, pointed: Mapping[str, Any] | None = None) -> None:
        """Writes a picture (3, H, W) uint8, then its record, with what the model pointed at before it drew."""
        slug = re.sub(r"[^a-z0-9]+", "-", caption.lower())[:48].strip("-") or "picture"
        name = f"{slug}-s{seed}{self.ending}"
        if name in self.names:  # another caption with the same letters
            name = f"{slug}-{fold(caption) % 16**6:06x}-s{seed}{self.ending}"
        self._save(self.pictures / name, picture)
        record = {"file_name": name, "caption": caption, "seed": seed, **self.origin}
        if pointed:
            record[POINTED] = dict(pointed)
        record["sha256"] = _digest(record, (self.pictures / name).read_bytes())
        with open(self.pictures / RECORDS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.done[caption, seed] = record
        self.names.add(name)

    def _save(self, path: Path, picture: torch.Tensor) -> None:
        save_png(path, picture)

    def finish(self, jobs: Iterable[Job], n: int, given: Mapping[str, torch.Tensor] | None = None) -> Path:
        """Brings the records into the order of the jobs, if some were drawn again, and writes the contact sheet. The
        sheet begins with the `given` pictures, each under its label."""
        if self._mended:
            wanted = dict.fromkeys(jobs)
            others = [job for job in self.done if job not in wanted]
            self.done = {job: self.done[job] for job in [*others, *wanted]}
            self._write_records(self.done)
        return self._write_sheet(n, given or {})

    def _write_sheet(self, n: int, given: Mapping[str, torch.Tensor]) -> Path:
        """The labelled contact sheet of the first pictures, about square; the n pictures of a caption stay together."""
        records = list(self.done.values())[:SHEET_LIMIT]
        drawn = [decode((self.pictures / record["file_name"]).read_bytes()) for record in records]
        pictures = torch.stack([*given.values(), *drawn])
        labels = [*given, *(f"{record['caption']} (seed {record['seed']})" for record in records)]
        scale = max(1, 144 // pictures.shape[-1])  # small pictures are enlarged, so that their labels fit below
        columns = len(given) + n * max(1, round((len(records) / n / n) ** 0.5))
        save_grid(self.folder / SHEET, pictures, columns=columns, labels=labels, scale=scale)
        return self.folder / SHEET

    def write_progress(self, pictures: torch.Tensor) -> Path:
        """A grid of pictures (N, K, 3, H, W): a row for each, a column for each scale."""
        scale = max(1, 96 // pictures.shape[-1])
        save_grid(self.folder / PROGRESS, pictures.flatten(0, 1), columns=pictures.shape[1], scale=scale)
        return self.folder / PROGRESS


class CodesFolder(PictureFolder):
    """`codes/` in place of `pictures/`, where the image tokenizer makes no pixels: for each picture its `codes` (L,)
    int64 and the image `embedding` (E,) float32, of which another program draws. In place of the contact sheet,
    `codes.safetensors` holds those of all records in their order, `codes` (N, L) and `embeddings` (N, E)."""

    within, ending = CODES, ".safetensors"

    def __init__(self, drawer: UniTok, *arguments: Any) -> None:
        self._drawer = drawer
        super().__init__(*arguments)

    def _tensors(self, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        embedding = self._drawer.image_tokenizer.embed(codes[None].to(self._drawer.device))[0]
        return {"codes": codes.cpu(), "embedding": embedding.cpu()}

    def _save(self, path: Path, picture: torch.Tensor) -> None:
        """The picture is its codes (L,)."""
        with atomic_path(path, sync=False) as temporary:
            write_weights(self._tensors(picture), temporary)

    def _write_sheet(self, n: int, given: Mapping[str, torch.Tensor]) -> Path:
        wanted = self._tensors(torch.zeros(self._drawer.layout.length, dtype=torch.int64))
        files = [self.pictures / record["file_name"] for record in self.done.values()]
        found = [read_weights(path, wanted, "remove it, and run the command again") for path in files]
        codes, embeddings = (torch.stack([one[name] for one in found]) for name in wanted)
        path = self.folder / f"{CODES}{self.ending}"
        with atomic_path(path, sync=False) as temporary:
            write_weights({"codes": codes, "embeddings": embeddings}, temporary)
        return path


def save_answers(
    folder: Path,
    name: str,
    picture: torch.Tensor,
    records: Sequence[Mapping[str, Any]],
    boxes: Sequence[tuple[str, Sequence[int]]],
) -> None:
    """Writes what a model says about a picture (3, H, W) uint8 as a file of records, with the picture, and if there are
    boxes (label, [left, top, right, bottom] in pixels) the picture with them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_png(folder / f"{name}.png", picture)
    with atomic_path(folder / f"{name}.jsonl", sync=False) as temporary:
        lines = [json.dumps({"image": f"{name}.png", **record}, ensure_ascii=False) + "\n" for record in records]
        temporary.write_text("".join(lines), encoding="utf-8")
    if boxes:
        save_boxes(folder / f"{name}-boxes.png", picture, boxes)


def save_boxes(path: Path, picture: torch.Tensor, boxes: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Writes a picture (3, H, W) uint8 with boxes drawn on it, (label, [left, top, right, bottom] in pixels), each in
    a colour of its own, its label in its upper corner."""
    shown = to_pil(picture)
    pen, width = ImageDraw.Draw(shown), max(1, min(shown.size) // 200)
    for number, (label, (left, top, right, bottom)) in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=width)
        pen.text((left + width + 1, top + width), label, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, sync=False) as temporary:
        shown.save(temporary, format="PNG")
