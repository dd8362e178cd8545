"""The studio: a page over the API, from files of this package. It loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Response

SCRIPTS = ("studio", "server", "tabs", "boxes", "cards", "draw", "change", "look", "ask", "watch")
FILES = {"/": "index.html", "/studio.css": "studio.css", **{f"/{name}.js": f"{name}.js" for name in SCRIPTS}}
"""Path -> file. They say nothing about the model, so they need no key; what they ask for does."""
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Adds the routes of the page."""
    for path in FILES:
        app.add_api_route(path, _answering(path), methods=["GET"])


def _answering(path: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        name = FILES[path]
        return Response(_read(name), media_type=KINDS[Path(name).suffix], headers=HEADERS)

    return page


@cache
def _read(name: str) -> bytes:
    return (Path(__file__).with_name("studio") / name).read_bytes()
