"""What a client is told when a request cannot be served, in the form in which OpenAI's API says it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse

from tokenizers_vq.errors import UserError, shown


class ApiError(Exception):
    """A request that is refused or that failed.

    Args:
        status: of the answer.
        message: what is wrong, and the way out.
        param: the field that is meant.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def kind(self) -> str:
        named = {401: "authentication_error", 429: "rate_limit_error"}
        return named.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, dict(self.headers or {}))


def refused(error: UserError, param: str | None = None, status: int = 400) -> ApiError:
    """What the user of a command is told, for a client: options are fields here.

    >>> refused(UserError("--top-k is -1: choose 1 or more, or 0 to keep all codes")).body()["error"]["param"]
    'top_k'
    """
    head, *problems = str(error).split("\n  ")
    text = "; ".join(problems) or head
    options = [name.replace("-", "_") for name in re.findall(r"--([a-z][a-z_-]*)", text)]
    message = re.sub(r"--([a-z][a-z_-]*)", lambda found: found[1].replace("-", "_"), text)
    return ApiError(status, message, param or next(iter(options), None))


@contextmanager
def about(param: str) -> Iterator[None]:
    """A UserError inside is about this field of the request."""
    try:
        yield
    except UserError as error:
        raise refused(error, param) from None


def invalid(errors: Sequence[Any]) -> ApiError:
    """What pydantic found wrong with the fields of a request, in one line; a field is named once."""
    found: dict[str, str] = {}
    for error in errors:
        path = [str(part) for part in error["loc"]]
        name = path[0] if path else ""
        if error["type"] == "extra_forbidden":
            found.setdefault(name, f"unknown field {'.'.join(path)!r:.80}: leave it out")
        elif error["type"] == "missing":
            found.setdefault(name, f"{'.'.join(path) or 'the body'} is missing")
        elif error["type"] == "json_invalid":
            found.setdefault("", "the body is not valid JSON")
        elif name == "response_format":
            found.setdefault(
                name, f"response_format is {shown(error['input'])}: this server keeps no files, b64_json is all"
            )
        else:
            message = error["msg"][:1].lower() + error["msg"][1:]
            found.setdefault(name, f"{name or 'the body'} is {shown(error['input'])}: {message}")
    return ApiError(400, "; ".join(found.values()), next(iter(found)) or None)
