"""An image tokenizer without a model: pictures become codes and come back, and nothing is drawn or written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tokenizers_vq.base import CONFIG_FILE, ImageTokenizer
from tokenizers_vq.config import FAMILIES
from tokenizers_vq.storage.files import part, read_json
from unitok.model import UniTok

from ..engine import Engine
from .errors import ApiError
from .limits import Limits
from .service import Service
from .worker import Worker


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder says that it holds an image tokenizer.

    Raises:
        UserError: its configuration cannot be read.
    """
    where = part(folder, CONFIG_FILE)
    values = read_json(where) if where.is_file() else None
    return isinstance(values, dict) and values.get("family") in [*FAMILIES]


class TokenizerService(Service):
    """Makes the orders that an image tokenizer can follow, and refuses all others.

    Args:
        tokenizer: in evaluation mode.
        name: by which clients know it.
        limits: what is taken on.
    """

    def __init__(self, tokenizer: ImageTokenizer, name: str, limits: Limits) -> None:
        self.name, self.limits, self.size = name, limits, tokenizer.image_size
        self.fingerprint = tokenizer.fingerprint()

    def facts(self) -> dict[str, Any]:
        height, width = self.size
        return {"size": f"{width}x{height}", "objective": None, "tasks": [], "model_sha256": self.fingerprint}

    def _refuse(self, *asked: Any, **named: Any) -> Any:
        raise ApiError(
            400,
            f"{self.name} is an image tokenizer alone, which draws and writes nothing: ask /v1/images/tokenizations, "
            "or start the server with the folder of a model",
            "model",
        )

    drawing = edit = extension = inspection = grounding = answer = _refuse


class _Idle:
    """In place of an engine: orders of a tokenizer are done without a step."""

    running: tuple[()] = ()
    busy = False


class TokenizerWorker(Worker):
    """Follows the orders of a `TokenizerService`, one after another."""

    def __init__(self, tokenizer: ImageTokenizer, queue: int) -> None:
        # Orders that no transformer has to do with ask their model for its tokenizer alone.
        super().__init__(cast(UniTok, SimpleNamespace(image_tokenizer=tokenizer)), lanes=0, room=0, queue=queue)

    def _fresh(self) -> Engine:
        return cast(Engine, _Idle())

    def _computing(self) -> AbstractContextManager[object]:
        return nullcontext()
