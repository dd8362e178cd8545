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
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from .answers import EventStream, encoded, shown_parts, shown_tokens
from .errors import ApiError, invalid
from .fields import (
    ChatFields,
    DrawingFields,
    ExtensionFields,
    GroundingFields,
    ImageFields,
    InspectionFields,
    Named,
)
from .guards import FACTS, Bounded, Keyed, Logged
from .limits import Limits
from .metrics import Metrics
from .models import Models, Serving
from .orders import Drawing, Order
from .page import add_page
from .running import events
from .service import pointed
from .uploads import checked, read_form
from .watching import Watched, add_watched
from .worker import Accepted, Done, Event, Step


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
    models: Models,
    limits: Limits,
    tell: Callable[[Mapping[str, Any]], None],
    access: Access = OPEN_TO_ALL,
    run: Watched | None = None,
) -> ASGIApp:
    """The application, which starts the workers, and at the end lets them write what is ordered.

    Args:
        models: make orders and write them.
        limits: what is taken on.
        tell: is given the facts of each request.
        access: who may ask.
        run: a training that is watched.
    """
    metrics, started = Metrics([one.worker for one in models.all]), int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for one in models.all:
            one.worker.start()
        yield
        for one in models.all:
            await run_in_threadpool(one.worker.close)

    app = FastAPI(title="unitok", lifespan=lifespan, docs_url=None, redoc_url=None)
    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)

    add_page(app)
    add_watched(app, run)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if models.alive else "stopped"}, 200 if models.alive else 503)

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def listed() -> Response:
        common = {"object": "model", "created": started, "owned_by": "unitok"}
        data = [{"id": one.service.name, **common, **one.service.facts()} for one in models.all]
        return JSONResponse({"object": "list", "data": data})

    @app.post("/v1/images/generations")
    async def generations(asked: ImageFields, request: Request) -> Response:
        note(request, asked)
        one = models.find(asked.model)
        order = await run_in_threadpool(one.service.drawing, asked)
        return await answer(request, asked, one, order, {}, "image_generation")

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        form = await read_form(request, ("image", "mask"))
        asked = checked(ImageFields, form)
        note(request, asked)
        one = models.find(asked.model)
        order, made_from = await run_in_threadpool(one.service.edit, asked, form.files["image"], form.files["mask"])
        return await answer(request, asked, one, order, made_from, "image_edit")

    @app.post("/v1/images/inspections")
    async def inspections(request: Request) -> Response:
        form = await read_form(request, ("image",))
        asked = checked(InspectionFields, form)
        one = models.find(asked.model)
        order = await run_in_threadpool(one.service.inspection, asked, form.files["image"])
        return JSONResponse({"object": "image_inspection", **await found(request, one, order)})

    @app.post("/v1/images/tokenizations")
    async def tokenizations(request: Request) -> Response:
        form = await read_form(request, ("image",))
        one = models.find(checked(Named, form).model)
        order = await run_in_threadpool(one.service.reconstruction, form.files["image"])
        value = await found(request, one, order)
        return JSONResponse({"object": "image_tokenization", **await run_in_threadpool(shown_tokens, value)})

    @app.post("/v1/images/extensions")
    async def extensions(request: Request) -> Response:
        form = await read_form(request, ("image",))
        asked = checked(ExtensionFields, form)
        note(request, asked)
        one = models.find(asked.model)
        order, made_from = await run_in_threadpool(one.service.extension, asked, form.files["image"])
        return await answer(request, asked, one, order, made_from, "image_extension")

    @app.post("/v1/images/groundings")
    async def groundings(request: Request) -> Response:
        form = await read_form(request, ("image",))
        asked = checked(GroundingFields, form)
        one = models.find(asked.model)
        order = await run_in_threadpool(one.service.grounding, asked, form.files["image"])
        return JSONResponse({"object": "image_grounding", **await found(request, one, order)})

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatFields, request: Request) -> Response:
        one = models.find(asked.model)
        order, facts = await run_in_threadpool(one.service.answer, asked)
        parts: list[dict[str, Any]] = []
        async with aclosing(events(one.worker, order, request, limits.seconds)) as running:
            async for event in running:
                if isinstance(event, Done):
                    parts += await run_in_threadpool(shown_parts, event.value)
        request.scope[FACTS]["pictures_sent"] = sum(part["type"] == "image_url" for part in parts)
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        message = {"role": "assistant", "content": text, "parts": parts}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        named = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion", "created": int(time.time())}
        record = {**facts, **pointed(order)}
        return JSONResponse({**named, "model": one.service.name, "choices": [choice], "record": record})

    def note(request: Request, asked: DrawingFields) -> None:
        request.scope[FACTS]["pictures"] = asked.n
        if access.prompts:
            request.scope[FACTS]["prompt"] = asked.prompt

    async def found(request: Request, one: Serving, order: Order) -> dict[str, Any]:
        """What an order of one value, which is a part of the answer, has found."""
        async with aclosing(events(one.worker, order, request, limits.seconds)) as running:
            (value,) = [event.value async for event in running if isinstance(event, Done)]
        return {"model": one.service.name, **value}

    async def answer(
        request: Request,
        asked: ImageFields | ExtensionFields,
        one: Serving,
        order: Drawing,
        made_from: Mapping[str, Any],
        kind: str,
    ) -> Response:
        """Pictures, in one object or as a stream of events of a kind."""
        service, facts = one.service, request.scope[FACTS]
        height, width = order.canvas(service.size)
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

        running = events(one.worker, order, request, limits.seconds)
        first = await anext(running)  # what is refused is refused before a stream begins
        assert isinstance(first, Accepted)
        if asked.stream:
            return EventStream(told(running))
        drawn: dict[int, dict[str, Any]] = {}
        async with aclosing(running):
            async for event in running:
                if isinstance(event, Done):
                    drawn[event.place] = await run_in_threadpool(shown, event.place, event.value)
        facts["pictures_sent"] = len(drawn)
        data = [drawn[place] for place in range(order.places)]
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
        error = invalid([{**one, "loc": one["loc"][1:]} for one in error.errors()])  # the first is "body" or "query"
    elif isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}"[:200])
    elif not isinstance(error, ApiError):
        error = ApiError(500, "the server failed; its log says why")
    return error.response()
