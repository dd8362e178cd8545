"""The API: routes in the shape of OpenAI's, so that its clients work with it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from .answers import EventStream, encoded, shown_parts
from .errors import ApiError, invalid
from .fields import ChatFields, ImageFields, InspectionFields
from .guards import FACTS, Bounded, Keyed, Logged
from .metrics import Metrics
from .orders import Drawing
from .page import add_page
from .running import events
from .service import Service
from .uploads import read_form
from .worker import Accepted, Done, Event, Step, Worker


@dataclass(frozen=True)
class Access:
    """Who may ask, and what is written down."""

    keys: Collection[str] = ()
    """Empty: everybody may ask."""
    origins: Sequence[str] = ()
    """Web pages that may ask (CORS)."""
    prompts: bool = False
    """Whether log lines have the prompts."""


OPEN_TO_ALL = Access()


def make_app(
    service: Service, worker: Worker, tell: Callable[[Mapping[str, Any]], None], access: Access = OPEN_TO_ALL
) -> ASGIApp:
    """The application, which starts the worker, and at the end lets it write what is ordered.

    Args:
        service: makes orders.
        worker: writes them.
        tell: is given the facts of each request.
        access: who may ask.
    """
    limits, metrics, started = service.limits, Metrics(worker), int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await run_in_threadpool(worker.close)

    app = FastAPI(title="unitok", lifespan=lifespan, docs_url=None, redoc_url=None)
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)

    add_page(app)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if worker.alive else "stopped"}, 200 if worker.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        one = {"id": service.name, "object": "model", "created": started, "owned_by": "unitok", **service.facts()}
        return JSONResponse({"object": "list", "data": [one]})

    @app.post("/v1/images/generations")
    async def generations(asked: ImageFields, request: Request) -> Response:
        note(request, asked)
        order = await run_in_threadpool(service.drawing, asked)
        return await answer(request, asked, order, {}, "image_generation")

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        form = await read_form(request, ("image", "mask"))
        try:
            asked = ImageFields.model_validate(form.values, strict=False)  # all values of a form are text
        except ValidationError as error:
            raise invalid(error.errors()) from None
        note(request, asked)
        order, made_from = await run_in_threadpool(service.edit, asked, form.files["image"], form.files["mask"])
        return await answer(request, asked, order, made_from, "image_edit")

    @app.post("/v1/images/inspections")
    async def inspections(request: Request) -> Response:
        form = await read_form(request, ("image",))
        try:
            asked = InspectionFields.model_validate(form.values, strict=False)
        except ValidationError as error:
            raise invalid(error.errors()) from None
        order = await run_in_threadpool(service.inspection, asked, form.files["image"])
        async with aclosing(events(worker, order, request, limits.seconds)) as running:
            (found,) = [event.value async for event in running if isinstance(event, Done)]
        return JSONResponse({"object": "image_inspection", "model": service.name, **found})

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatFields, request: Request) -> Response:
        order, facts = await run_in_threadpool(service.answer, asked)
        parts: list[dict[str, Any]] = []
        async with aclosing(events(worker, order, request, limits.seconds)) as running:
            async for event in running:
                if isinstance(event, Done):
                    parts += await run_in_threadpool(shown_parts, event.value)
        request.scope[FACTS]["pictures_sent"] = sum(part["type"] == "image_url" for part in parts)
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        message = {"role": "assistant", "content": text, "parts": parts}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        named = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion", "created": int(time.time())}
        return JSONResponse({**named, "model": service.name, "choices": [choice], "record": facts})

    def note(request: Request, asked: ImageFields) -> None:
        request.scope[FACTS]["pictures"] = asked.n
        if access.prompts:
            request.scope[FACTS]["prompt"] = asked.prompt

    async def answer(
        request: Request, asked: ImageFields, order: Drawing, made_from: Mapping[str, Any], kind: str
    ) -> Response:
        """Pictures, in one object or as a stream of events of a kind."""
        (height, width), facts = service.size, request.scope[FACTS]
        common = {"size": f"{width}x{height}", "output_format": "png", "background": "opaque", "quality": "auto"}

        def shown(place: int, picture: torch.Tensor) -> dict[str, Any]:
            return {"b64_json": encoded(picture), "record": service.record(order, asked.prompt, place, made_from)}

        async def told(running: AsyncGenerator[Event, None]) -> AsyncGenerator[dict[str, Any], None]:
            async with aclosing(running):
                async for event in running:
                    base = {"created_at": int(time.time()), **common}
                    if isinstance(event, Done):
                        done = await run_in_threadpool(shown, event.place, event.value)
                        facts["pictures_sent"] = facts.get("pictures_sent", 0) + 1
                        yield {"type": f"{kind}.completed", **base, "picture": event.place, **done}
                    elif isinstance(event, Step):
                        base |= {"picture": event.place, "step": event.step, "steps": event.steps}
                        if event.picture is None:
                            yield {"type": f"{kind}.progress", **base}
                        else:
                            picture = await run_in_threadpool(encoded, event.picture)
                            partial = {"partial_image_index": event.number, "b64_json": picture}
                            yield {"type": f"{kind}.partial_image", **base, **partial}

        running = events(worker, order, request, limits.seconds)
        first = await anext(running)  # what is refused is refused before a stream begins
        assert isinstance(first, Accepted)
        if asked.stream:
            return EventStream(told(running))
        found: dict[int, dict[str, Any]] = {}
        async with aclosing(running):
            async for event in running:
                if isinstance(event, Done):
                    found[event.place] = await run_in_threadpool(shown, event.place, event.value)
        facts["pictures_sent"] = len(found)
        data = [found[place] for place in range(order.places)]
        return JSONResponse({"created": int(time.time()), **common, "data": data})

    guarded: ASGIApp = Bounded(app, limits.bytes, limits.patience)
    if access.keys:
        guarded = Keyed(guarded, access.keys)
    if access.origins:
        guarded = CORSMiddleware(guarded, list(access.origins), ("GET", "POST"), ("Authorization", "Content-Type"))
    paths = {path for route in app.routes if isinstance(path := getattr(route, "path", None), str)}
    return Logged(guarded, tell, metrics, paths)


async def _refuse(request: Request, error: Exception) -> Response:
    """The answer to a request that failed; one that is no `ApiError` was refused by the framework, or is a bug."""
    if isinstance(error, RequestValidationError):
        error = invalid(error.errors())
    elif isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}"[:200])
    elif not isinstance(error, ApiError):
        error = ApiError(500, "the server failed; its log says why")
    return error.response()
