"""Where devices send their requests to be enrolled: a path of the server's HTTP endpoint."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedspzo.broker.server.enrolment.requests import Enrolment
from fedspzo.device_runtime.errors import EnrolmentError
from fedspzo.device_runtime.protocol.enrolment import ASKED, MOST_BYTES, PATH

#: Seconds for a request to arrive whole, and after which whoever has to wait may ask again.
BODY_S, AGAIN_S = 10.0, 10
#: Kind of error → status of the answer; 403 for all others.
_STATUSES = {
    "enrolment.request": 400,
    "enrolment.too-large": 413,
    "enrolment.too-often": 429,
    "enrolment.busy": 503,
    "enrolment.unable": 503,
}


def enrolment_route(enrolment: Enrolment | None) -> Route:
    """The route; it refuses everybody where there is no ``enrolment``: others could read what arrives."""

    async def enrol(request: Request) -> Response:
        try:
            if enrolment is None:
                raise EnrolmentError(
                    "enrolment.not-secure",
                    "this server has no HTTPS, and others could read tokens; have it started with --http-certificate",
                )
            body = await asyncio.wait_for(_read(request), BODY_S)
            state = await asyncio.wrap_future(enrolment.submit(body, request.client.host if request.client else ""))
        except EnrolmentError as error:
            status = _STATUSES.get(error.kind, 403)
            again = {"Retry-After": str(AGAIN_S)} if status in (429, 503) else None
            return JSONResponse({"error": str(error), "kind": error.kind}, status, again)
        except (ClientDisconnect, TimeoutError, asyncio.TimeoutError):
            return Response(status_code=408)
        return JSONResponse({"state": state}, 202 if state == ASKED else 200)

    return Route(PATH, enrol, methods=["POST"])


async def _read(request: Request) -> bytes:
    """A request's body. Raises EnrolmentError where it is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise EnrolmentError("enrolment.too-large", f"a request has {MOST_BYTES} bytes at most; send less")
    return body
