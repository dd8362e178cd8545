"""What stands between a client and the API: logs, keys, limits of a request's size and time."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError
from .metrics import Metrics
from .page import FILES

FACTS = "unitok.facts"
"""Where in a scope the facts of a request stand that its log line has."""
OPEN = frozenset({"/health", *FILES})
"""May be asked without a key: they say nothing."""
LEFT = 499
"""Status in the log of a request whose client has left."""


class Logged:
    """Tells a line for each request, and counts it."""

    def __init__(
        self, app: ASGIApp, tell: Callable[[Mapping[str, Any]], None], metrics: Metrics, paths: Collection[str]
    ) -> None:
        self.app, self.tell, self.metrics, self.paths = app, tell, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, moment, status = time.monotonic(), datetime.now(UTC), 0
        facts = scope[FACTS] = {}

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = time.monotonic() - began
            path = scope["path"] if scope["path"] in self.paths else "other"  # names of a client's choice have no end
            status = facts.pop("status", status or 500)
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            self.metrics.pictures.inc(facts.get("pictures_sent", 0))
            client = (scope.get("client") or [None])[0]
            self.tell(
                {
                    "time": moment.isoformat(timespec="milliseconds"),
                    "client": client,
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "seconds": round(seconds, 3),
                    **facts,
                }
            )


class Keyed:
    """Lets only those in who have a key."""

    def __init__(self, app: ASGIApp, keys: Collection[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._knows(scope):
            error = ApiError(
                401,
                "this server asks for a key: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        # All keys are compared, in equal time, so that an answer says nothing about how much of one was right.
        return bool(sum(hmac.compare_digest(key.strip(), one) for one in self.keys)) and kind.lower() == b"bearer"


class Bounded:
    """Reads the body of a request, in memory, before the API sees any of it: up to a size, within a time."""

    def __init__(self, app: ASGIApp, size: int, seconds: float) -> None:
        self.app, self.size, self.seconds = app, size, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            body = ApiError(
                408, f"the request took longer than {self.seconds:g} seconds to arrive: send it in one go", **CLOSED
            )
        if body is None:
            scope[FACTS]["status"] = LEFT
        elif isinstance(body, ApiError):
            await body.response()(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | ApiError | None:
        """The body, why there is none, or None if the client has left."""
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        large = ApiError(
            413, f"the request is larger than {self.size:,} bytes, the most that this server takes", **CLOSED
        )
        if said.isdigit() and int(said) > self.size:
            return large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.size:
                return large
        return bytes(body)


CLOSED: Any = {"headers": {"Connection": "close"}}
"""Of answers to a request of which the rest is not read."""


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what comes after it."""
    given = False

    async def first() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first


class Patient(H11Protocol):
    """A connection that is cut if the head of a request does not come in time, or an answer is not read. (uvicorn only
    bounds the time between requests.)"""

    patience = 20.0
    """Seconds."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._wait_for("head")
        else:
            self._calm("head")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for("read")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._calm("read")

    def connection_lost(self, exc: Exception | None) -> None:
        for what in [*self._timers]:
            self._calm(what)
        super().connection_lost(exc)

    def _wait_for(self, what: str) -> None:
        if what not in self._timers:
            self._timers[what] = self.loop.call_later(self.patience, self.transport.abort)

    def _calm(self, what: str) -> None:
        if what in self._timers:
            self._timers.pop(what).cancel()


def patient(seconds: float) -> type[Patient]:
    """Connections with so much patience."""
    return type("Patient", (Patient,), {"patience": seconds})
