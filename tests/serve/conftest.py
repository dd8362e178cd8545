"""Servers of tiny models: in the test's own process, with and without a socket."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from small_models import stir
from starlette.testclient import TestClient

from tokenizers_vq.base import ImageTokenizer
from tokenizers_vq.images import png_bytes
from unitok.config import ModelConfig
from unitok.model import UniTok
from unitok.sample.serving.alone import TokenizerService, TokenizerWorker
from unitok.sample.serving.api import Access, make_app
from unitok.sample.serving.guards import patient
from unitok.sample.serving.limits import Limits
from unitok.sample.serving.models import Models, Serving
from unitok.sample.serving.service import Service
from unitok.sample.serving.watching import Watched
from unitok.sample.serving.worker import Worker
from unitok.vocabulary import Vocabulary


@dataclass
class Parts:
    """A server, and what it is made of."""

    served: list[Serving]
    limits: Limits
    lines: list[Mapping[str, Any]]
    """What it told of requests."""
    app: Any

    @property
    def service(self) -> Service:
        """Of the first model."""
        return self.served[0].service

    @property
    def worker(self) -> Worker:
        return self.served[0].worker


def make_parts(
    model: UniTok | ImageTokenizer | None,
    access: Access | None = None,
    context: int = 300,
    other: UniTok | ImageTokenizer | None = None,
    run: Path | None = None,
    names: tuple[str, str] = ("tiny", "other"),
    **limits: Any,
) -> Parts:
    chosen = replace(Limits(lanes=8), **limits)
    served = []
    for name, one in zip(names, (model, other), strict=True):
        if isinstance(one, ImageTokenizer):
            served.append(Serving(TokenizerService(one, name, chosen), TokenizerWorker(one, chosen.queue)))
        elif one is not None:
            service = Service(one, name, chosen, context)
            served.append(Serving(service, Worker(one, chosen.lanes, service.room, chosen.queue)))
    lines: list[Mapping[str, Any]] = []
    watched = Watched(run) if run is not None else None
    app = make_app(Models(served), chosen, lines.append, access or Access(), watched)
    return Parts(served, chosen, lines, app)


@contextmanager
def in_process(
    model: UniTok | ImageTokenizer | None, access: Access | None = None, **limits: Any
) -> Iterator[tuple[TestClient, Parts]]:
    parts = make_parts(model, access, **limits)
    with TestClient(parts.app, raise_server_exceptions=False) as client:
        yield client, parts


@dataclass
class Listening:
    """A server with a socket."""

    port: int
    parts: Parts
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextmanager
def on_a_port(
    model: UniTok | ImageTokenizer | None, access: Access | None = None, **limits: Any
) -> Iterator[Listening]:
    parts = make_parts(model, access, **limits)
    patience = parts.limits.patience
    config = uvicorn.Config(
        parts.app, http=patient(patience), ws="none", lifespan="on", access_log=False, log_level="error"
    )
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield Listening(listening.getsockname()[1], parts, server)
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[tuple[TestClient, Parts]]]:
    return in_process


@pytest.fixture(scope="session")
def listen() -> Callable[..., AbstractContextManager[Listening]]:
    return on_a_port


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(is_so: Callable[[], bool]) -> None:
        ends = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < ends, "it never came to be"
            time.sleep(0.005)

    return wait


def random_picture(height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)


@pytest.fixture(scope="session")
def picture() -> Callable[..., torch.Tensor]:
    return random_picture


@pytest.fixture(scope="session")
def png() -> Callable[[torch.Tensor], io.BytesIO]:
    """A picture (3, H, W) uint8 as a file."""

    def made(image: torch.Tensor) -> io.BytesIO:
        file = io.BytesIO(png_bytes(image))
        file.name = "picture.png"
        return file

    return made


@pytest.fixture(scope="session")
def grounded(make_model: Callable[..., UniTok]) -> UniTok:
    """A model that knows boxes."""
    made = make_model()
    vocabulary = Vocabulary(made.config.vocabulary).grown("location", 100).grown("box", 1)
    tasks = ("text_to_image", "image_to_text", "edit", "ground", "ground_caption")
    config = ModelConfig(**{**vars(made.config), "vocabulary": vocabulary.spans, "tasks": tasks})
    torch.manual_seed(0)
    return stir(UniTok(config, made.image_tokenizer, made.text_tokenizer).eval())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training with three lines of its log and two samples, one of them old."""
    folder = tmp_path / "out" / "run"
    (folder / "samples").mkdir(parents=True)
    lines = [("train", 20, 3.0), ("train", 40, 2.0), ("val", 40, 2.5)]
    log = [{"kind": kind, "step": step, "loss": loss, "time": 1.0, "note": "a text"} for kind, step, loss in lines]
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    for step in (20, 40):
        (folder / "samples" / f"step-{step:08d}.png").write_bytes(png_bytes(random_picture(seed=step)))
    return folder
