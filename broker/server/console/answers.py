"""How the console reads requests and writes answers: JSON, and nothing endless."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fedspzo.broker.server.console.device_rows import CHOICES, Search
from fedspzo.device_runtime import plain_json

#: Bytes of a request's body at most.
MOST_BODY = 1 << 14
#: The same for a request with the names of all devices that a job may have.
MOST_NAMES = 1 << 23
#: Largest number in a query: SQLite's integers have 64 bits.
MOST = 1 << 40


def data(value: Any) -> Response:
    """An answer in JSON."""
    return Response(plain_json.dumps(value, separators=(",", ":")), media_type="application/json")


def number(request: Request, name: str, default: int) -> int:
    """A whole number of the query, 0 or above. Raises HTTPException where it is not one."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 13 or int(text) > MOST:
        raise HTTPException(400, f"{name} is a whole number, 0 or above")
    return int(text)


def search(request: Request) -> Search:
    """The devices that a query asks for. Raises HTTPException where it asks for what there is not."""
    asked = request.query_params
    choice = asked.get("choice", "all")
    if choice not in CHOICES:
        raise HTTPException(400, f"devices are chosen by {', '.join(CHOICES)}")
    return Search(asked.get("match", "")[:100], choice, asked.get("group", "")[:100], asked.get("label", "")[:100])


async def read_body(request: Request, most: int = MOST_BODY) -> bytes:
    """A request's body. Raises HTTPException where it is too long."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise HTTPException(413, f"a request has {most} bytes at most")
    return bytes(body)


async def read_wish(request: Request, names: Sequence[str], most: int = MOST_BODY) -> list[Any]:
    """The values of an object of JSON. Raises HTTPException where the body is not one, or lacks a value."""
    try:
        wish = json.loads(await read_body(request, most))
        json.dumps(wish, ensure_ascii=False).encode()
        return [wish[name] for name in names]
    except UnicodeEncodeError:
        raise HTTPException(400, "a text has half a character (a lone surrogate); send whole ones") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        fields = ", ".join(f'"{name}": …' for name in names)
        raise HTTPException(400, f"send an object of JSON: {{{fields}}}") from None


def texts(names: Any) -> list[str]:
    """Devices' names that a wish has. Raises HTTPException where it has something else there."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise HTTPException(400, "names is a list of devices' names")
    return names
