"""Answers: pictures and parts of documents as JSON, and as a stream of events."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import torch
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tokenizers_vq.images import png_bytes
from unitok.boxes import written_out

from ..documents import Part
from .errors import ApiError
from .guards import LEFT


def encoded(picture: torch.Tensor) -> str:
    """A picture (3, H, W) uint8 as a PNG file in base64."""
    return base64.b64encode(png_bytes(picture)).decode("ascii")


def shown_parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Texts and pictures as the parts of a message. A text with boxes is there as `named` too: strings and boxes."""
    return [
        {"type": "text", "text": written_out(value), **({} if isinstance(value, str) else {"named": value})}
        if kind == "text"
        else {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(value)}"}}
        for kind, value in parts
    ]


def shown_tokens(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `reconstruct` found, with pictures as files."""
    shown = {key: {"b64_json": encoded(one)} if isinstance(one, torch.Tensor) else one for key, one in found.items()}
    return {**shown, "first": [{"codes": n, "b64_json": encoded(picture)} for n, picture in found["first"]]}


class EventStream(Response):
    """Server-sent events, each of which names its `type`. What fails on the way is told as an event `error`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(text: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.events):
            try:
                async for event in self.events:
                    await say(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
            except ApiError as error:
                if error.status == LEFT:
                    return
                await say(f"event: error\ndata: {json.dumps({'type': 'error', **error.body()})}\n\n")
            await say("data: [DONE]\n\n", more=False)
