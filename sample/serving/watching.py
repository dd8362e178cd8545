"""A training that is watched from its folder, which is only read."""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from tokenizers_vq.errors import UserError
from tokenizers_vq.storage.files import log_entries

from .errors import ApiError

LOG, SAMPLES, MARKS = "log.jsonl", "samples", ("run.json", "log.jsonl")
LARGEST_LOG, LARGEST_SAMPLE = 2**28, 2**26
"""Bytes that are read."""
MOST_POINTS = 400
"""Of a curve that are sent."""
MOST_CURVES = 100
PNG = b"\x89PNG\r\n\x1a\n"


class Watched:
    """A training.

    Args:
        folder: as `unitok train` writes it; nothing outside of it is read, whatever links are in it.

    Raises:
        UserError: no folder of a training.
    """

    def __init__(self, folder: Path) -> None:
        if not any((folder / name).is_file() for name in MARKS):
            raise UserError(f"--run {folder} holds no training ({' or '.join(MARKS)}): give the --out of unitok train")
        self.folder = folder.resolve()
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int], dict[str, list[list[float]]]] | None = None
        """What the log was when it was read, and its curves."""

    def facts(self) -> dict[str, Any]:
        """The training as it is now: the curves, [step, value] each, and the steps of which there are samples.

        Raises:
            ApiError: the log cannot be read, or is too large.
        """
        curves = self._curves()
        last = max((points[-1][0] for points in curves.values()), default=0)
        return {"object": "run", "name": self.folder.name, "step": last, "curves": curves, "samples": self.samples()}

    def samples(self) -> list[int]:
        """The steps of which there are samples, in their order."""
        try:
            names = os.listdir(self._inside(SAMPLES))
        except (OSError, ApiError):
            return []
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d{8,18})\.png", name)))

    def sample(self, step: int) -> bytes:
        """The PNG file of a step.

        Raises:
            ApiError: there is none, or what is there is none.
        """
        data = self._bytes(f"{SAMPLES}/step-{step:08d}.png", LARGEST_SAMPLE)
        if not data.startswith(PNG):
            raise ApiError(404, f"the sample of step {step} is no PNG file", "step")
        return data

    def _curves(self) -> dict[str, list[list[float]]]:
        with self._lock:  # several who ask at once read it once
            path = self._inside(LOG)
            try:
                now = path.stat()
            except FileNotFoundError:
                return {}  # it has only begun
            mark = (now.st_size, now.st_mtime_ns)
            if self._read is None or self._read[0] != mark:
                self._read = (mark, curves_of(self._bytes(LOG, LARGEST_LOG)))
            return self._read[1]

    def _inside(self, name: str) -> Path:
        """A path in the folder, if no link leads out of it."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder):
            raise ApiError(404, f"{name} leads out of the training's folder")
        return path

    def _bytes(self, name: str, limit: int) -> bytes:
        path = self._inside(name)
        try:
            # A pipe would never end; and what a link is turned to after the look at it is not followed.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            raise ApiError(404, f"{name} cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ApiError(404, f"{name} is no file")
        with open(handle, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ApiError(400, f"{name} has more than {limit:,} bytes, the most that is read here")
        return data


def curves_of(log: bytes) -> dict[str, list[list[float]]]:
    """The numbers of a log.jsonl: "kind name" -> [step, value] in the order of the steps. Of many neighbours their mean
    is given, at the last one's step. Damaged lines and numbers that are not finite are left out.

    >>> curves_of(b'{"kind": "train", "step": 1, "loss": 2.5, "note": "x"}\\n{"kind": "tr')
    {'train loss': [[1, 2.5]]}
    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    for entry in log_entries(log):
        for name, value in entry.items():
            key = f"{entry['kind']} {name}"
            plain = type(value) in (int, float) and name not in ("step", "time")
            if plain and abs(value) < 1e300 and (key in found or len(found) < MOST_CURVES):
                found[key].append([entry["step"], value])
    return {key: _thinned(points) for key, points in found.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [[group[-1][0], sum(value for _, value in group) / len(group)] for group in groups]


def add_watched(app: FastAPI, run: Watched | None) -> None:
    """Adds the routes of a training; without one they say so."""

    def watched() -> Watched:
        if run is None:
            raise ApiError(404, "no training is watched here: start the studio with --run DIR")
        return run

    @app.get("/v1/run")
    async def facts() -> Response:
        return JSONResponse(await run_in_threadpool(watched().facts))

    @app.get("/v1/run/samples")
    async def sample(step: int) -> Response:
        data = await run_in_threadpool(watched().sample, step)
        return Response(data, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})
