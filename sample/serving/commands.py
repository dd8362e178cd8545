"""The command that serves a model. Free of torch until it runs, so that help is quick."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

from tokenizers_vq.errors import UserError
from unitok.data.text_files import read_text

from .limits import USUAL, Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_FILES = 65_536
"""Open files, connections among them, that a server asks its system for."""


def serve(
    model: Path,
    other: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    limits: Limits = USUAL,
    context: int = 2048,
    api_key_file: Path | None = None,
    cors_origins: list[str] | None = None,
    log_prompts: bool = False,
    precision: Literal["auto", "bf16", "fp32"] = "fp32",
    compile: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Serve a model over HTTP: pictures from captions, parts of pictures drawn anew, edits, answers, documents; and a
    page to do so in a browser.

    The API has the shape of OpenAI's (/v1/images/generations, /v1/images/edits, /v1/chat/completions, /v1/models), so
    that its clients work; /health and /metrics (Prometheus) are for watching. Requests are written side by side: each
    joins at the next step, and a picture does not depend on the others. A line of JSON for each request goes to the
    standard error. Ctrl-C takes no more requests and ends when those that are there are done; once more ends at once.

    Args:
        model: Model folder, as written by `unitok train generator`, or hf:owner/name; or an image tokenizer's, whose
            codes can be asked for then.
        other: A second model, which requests name in their field `model`.
        host: Address to listen at. Others than 127.0.0.1 are open to the network: give --api_key_file too.
        port: Port to listen at; 0 takes a free one.
        name: By which clients know the first model; else the folder's.
        limits: What is taken on.
        context: Models of documents: most positions of a document.
        api_key_file: File of keys, one a line; a request must bring one of them (Authorization: Bearer KEY).
        cors_origins: Web pages that may ask, such as ["https://example.org"]; else none.
        log_prompts: Write prompts into the lines of requests.
        precision: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it).
        compile: Compile the passes that draw code by code when they have come often, for each number of pictures at
            once. All wait meanwhile; the next start has it from disk. Needs a C++ compiler, on a GPU triton.
        device: auto takes a GPU where there is one.

    Example:
        unitok serve --model runs/demo/generator --port 8000
    """
    keys = _keys(api_key_file) if api_key_file is not None else []
    folders = [model, other] if other is not None else [model]
    with closing(_listen(host, port)) as listening:
        _serve(
            listening, folders, name, limits, context, keys, cors_origins or [], log_prompts, precision, compile, device
        )


def studio(
    model: Path | None = None,
    other: Path | None = None,
    run: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Open a model in a browser: see pictures appear, fill parts of them in, change them, ask about them, compare it
    with another; or watch a training.

    It is `unitok serve` with its usual limits; the page at / is the same there. The page works offline and keeps
    nothing. Ctrl-C ends it.

    Args:
        model: Model folder, as written by `unitok train generator`, or hf:owner/name; or an image tokenizer's, whose
            codes are shown then.
        other: A second model, to be compared with the first.
        run: Folder of a training, running or finished, to be watched. It is only read. A model is not needed then.
        host: Address to listen at. Others than 127.0.0.1 are open to the network: give --api_key_file too.
        port: Port to listen at; 0 takes a free one.
        api_key_file: File of keys, one a line; the page asks for one of them.
        precision: fp32, bf16 (faster on large models), or auto (bf16 where the hardware has it).
        device: auto takes a GPU where there is one.

    Example:
        unitok studio --model runs/demo/generator
        unitok studio --run runs/demo/generator
    """
    if model is None and (run is None or other is not None):
        raise UserError("nothing to open: give --model DIR, the folder of a model, or --run DIR, that of a training")
    keys = _keys(api_key_file) if api_key_file is not None else []
    folders = [folder for folder in (model, other) if folder is not None]
    with closing(_listen(host, port)) as listening:
        _serve(listening, folders, None, USUAL, 2048, keys, [], False, precision, False, device, run)


def _keys(path: Path) -> list[str]:
    """The keys of a file, one a line."""
    if not path.is_file():
        raise UserError(f"--api_key_file {path} is not a file")
    keys = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not keys:
        raise UserError(f"--api_key_file {path} has no key: write one into each line")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    """A socket that has the address, before the model is loaded.

    Raises:
        UserError: the address cannot be had.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}: choose 1 to 65535, or 0 for a free one")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror or error})") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"--port {port} of {host} cannot be had ({error.strerror}): choose another, or end what uses it"
        ) from None
    return listening


def _serve(
    listening: socket.socket,
    folders: list[Path],
    name: str | None,
    limits: Limits,
    context: int,
    keys: list[str],
    origins: list[str],
    log_prompts: bool,
    precision: Literal["auto", "bf16", "fp32"],
    compile: bool,
    device: Literal["auto", "cpu", "cuda"],
    run: Path | None = None,
) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'unitok-vq[serve]'") from None

    from tokenizers_vq.base import load_tokenizer
    from unitok.device import pick_device
    from unitok.model import UniTok
    from unitok.prepare import prepare

    from .alone import TokenizerService, TokenizerWorker, is_tokenizer
    from .api import Access, make_app
    from .guards import patient
    from .models import Models, Serving, short_names
    from .service import Service
    from .watching import Watched
    from .worker import Worker

    watched = Watched(run) if run is not None else None
    names = short_names(folders)
    if name is not None:
        names[0] = name
    served = []
    for folder, called in zip(folders, names, strict=True):
        if is_tokenizer(folder):
            tokenizer = load_tokenizer(folder, pick_device(device))
            served.append(
                Serving(TokenizerService(tokenizer, called, limits), TokenizerWorker(tokenizer, limits.queue))
            )
            continue
        loaded = UniTok.from_pretrained(str(folder), pick_device(device))
        loaded.image_tokenizer.check_pixels()
        computed = prepare(loaded, precision, compile)
        service = Service(loaded, called, limits, context)
        served.append(Serving(service, Worker(loaded, limits.lanes, service.room, limits.queue, computed)))
    app = make_app(Models(served), limits, _tell, Access(keys, origins, log_prompts), watched)
    config = uvicorn.Config(
        app,
        http=patient(limits.patience),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=int(limits.seconds + limits.patience),
    )
    host, port = listening.getsockname()[:2]
    if host not in LOOPBACK and not keys:
        print(f"{host} is open to the network, and no key is asked for (--api_key_file)", file=sys.stderr)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    what = " and ".join([*names, *([f"the training {run}"] if run is not None else [])])
    print(f"serving {what} at {address}/v1, in a browser at {address}/", flush=True)
    _allow_connections()
    with suppress(KeyboardInterrupt):  # uvicorn has ended in order, and raises it once more
        uvicorn.Server(config).run(sockets=[listening])


def _allow_connections() -> None:
    """Each connection is an open file, and most systems begin with 1,024: so many silent clients would keep all others
    out until they are cut off."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _tell(facts: Mapping[str, Any]) -> None:
    """Writes a line of JSON."""
    print(json.dumps(facts), file=sys.stderr, flush=True)
