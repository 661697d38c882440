"""How the console reads requests and writes answers: JSON without the numbers that it has not, and nothing endless."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

#: Bytes of a request's body at most.
MOST_BODY = 1 << 14
#: Largest number in a query: SQLite's integers have 64 bits.
MOST = 1 << 40


def data(value: Any) -> Response:
    """An answer in JSON."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"))
    return Response(text, media_type="application/json")


def _finite(value: Any) -> Any:
    """A value without the numbers that JSON has not: a device may say that its battery is at infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def number(request: Request, name: str, default: int) -> int:
    """A whole number of the query, 0 or above. Raises HTTPException where it is not one."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 13 or int(text) > MOST:
        raise HTTPException(400, f"{name} is a whole number, 0 or above")
    return int(text)


async def read_body(request: Request) -> bytes:
    """A request's body. Raises HTTPException where it is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"a request has {MOST_BODY} bytes at most")
    return body
