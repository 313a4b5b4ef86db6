"""What a client asked for and does not get, in OpenAI's error body.

Nothing but a `Refused` tells a client what was wrong. Whatever else goes wrong is the server's, and
its log alone says what.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from alignvec.errors import AlignvecError, printable

_LONGEST = 1000  # characters of a message, which may quote the request

_MEANING = {
    400: "What is asked for is wrong; `param` names the field.",
    401: "No key, or none that is known.",
    404: "There is none of that name.",
    408: "The body did not come in time.",
    412: "Somebody else changed it meanwhile.",
    413: "The body is longer than the server reads.",
    428: "It is there already; If-Match has to say which version is replaced.",
    429: "The server is full; Retry-After says when to come again.",
    500: "A fault of the server; its log says what.",
    504: "The answer was not there in time.",
    503: "The server is going down, or is not ready yet.",
}


class Refused(AlignvecError):
    """What a client asked for and does not get.

    Attributes:
        status: of HTTP.
        code: OpenAI's `code`, e.g. "unknown_knob"; None if there is none.
        param: the field of the request; None if it is not about one.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's body of every response that is not a success."""

    error: ErrorObject


def error_body(
    message: str, status: int, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An `ErrorBody` as JSON. A request may have put anything into it: it is one printable line."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "rate_limit_error"
    told = ErrorObject(
        message=_line(message), type=kind, param=None if param is None else _line(param), code=code
    )
    return ErrorBody(error=told).model_dump()


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of a route that may be refused so, for its OpenAPI document."""
    told: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _MEANING[status]} for status in statuses
    }
    # Of a body that does not fit, FastAPI would declare a 422, which `install` makes a 400.
    return told | {"4XX": {"model": ErrorBody, "description": "Refused."}}


def install(app: FastAPI) -> None:
    """Have an application answer every failure with an `ErrorBody`, and none with a trace."""
    for kind in (Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, _fault)


class Route(APIRoute):
    """A route whose refusals are an `ErrorBody` in an application that has its own, too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except (Refused, RequestValidationError, HTTPException) as error:
                return await answer(request, error)

        return told


async def answer(request: Request, error: Exception) -> JSONResponse:
    """What is refused, as a response."""
    if isinstance(error, RequestValidationError):
        error = _invalid(error)
    if isinstance(error, HTTPException):
        text, code = f"{request.method} {request.url.path}: {error.detail}", None
        if error.status_code == 400:  # in no known encoding, or nested beyond all need
            text, code = "the body cannot be read as JSON", "invalid_json"
        error = Refused(text, error.status_code, code, headers=error.headers)
    assert isinstance(error, Refused)
    body = error_body(str(error), error.status, error.code, error.param)
    return JSONResponse(body, error.status, error.headers)


def _invalid(error: RequestValidationError) -> Refused:
    """The field that does not fit: of a union, in the branch that takes this kind of value, and
    that came furthest.
    """
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return Refused(f"the body is not JSON: {found[0]['msg']}", code="invalid_json")
    if isinstance(error.body, bytes):
        return Refused(
            "the body is not said to be JSON: send it with Content-Type: application/json",
            code="invalid_json",
        )
    paths = [_path(one, error.body) for one in found]

    def near(number: int) -> tuple[bool, int]:
        return not found[number]["type"].endswith("_type"), len(paths[number])

    nearest = max(range(len(found)), key=near)
    first, field = found[nearest], _written(paths[nearest])
    message, code = str(first["msg"]).removeprefix("Value error, "), "invalid_value"
    if first["type"] == "extra_forbidden":
        message, code = "no field that is known here", "unknown_parameter"
    elif first["type"] == "literal_error":
        message, code = f"{first['input']!r} is not supported; {message}", "unsupported_value"
    elif first["type"] == "missing":
        code = "missing_required_parameter"
    return Refused(f"{field or first['loc'][0]}: {message}", code=code, param=field)


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """Where an error is, without pydantic's names for the branches of a union."""
    where, *path = error["loc"]
    if where != "body":
        return list(path)
    found: list[str | int] = []
    for number, part in enumerate(path):
        inside = isinstance(body, Mapping) and part in body
        if inside or (isinstance(body, list) and isinstance(part, int) and part < len(body)):
            body = body[part]
        elif number < len(path) - 1 or error["type"] != "missing":
            continue
        found.append(part)
    return found


def _written(path: list[str | int]) -> str | None:
    """As OpenAI writes it: `messages[0].content`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or None


async def _fault(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(error_body("the server failed; its log says why", 500), 500)


def _line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
