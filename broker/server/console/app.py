"""The console's pages and data, as an application to mount at ``/console``.

The data is JSON. Scripts put it into the page as text, never as HTML: names, versions and reasons are what devices say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from fedspzo.broker.server.console.answers import MOST, MOST_NAMES, data, number, read_body, read_wish, search, texts
from fedspzo.broker.server.console.device_rows import ORDERS
from fedspzo.broker.server.console.gate import Gate, Session
from fedspzo.broker.server.console.headers import WithHeaders
from fedspzo.broker.server.console.job_view import JobView
from fedspzo.broker.server.console.running import ACTS, Running
from fedspzo.device_runtime.errors import FedSPZOError

_HERE = Path(__file__).parent
#: The header in which whatever changes something shows its session's token.
CSRF = "X-CSRF-Token"


def make_console(views: Sequence[JobView], gate: Gate, secure: bool) -> Starlette:
    """The application.

    Args:
        views: the jobs, at least one.
        secure: whether it is served over TLS.
    """
    pages = _Pages(views, gate, secure)
    return _make_app(
        Route("/", pages.index),
        Route("/login", pages.login_form),
        Route("/login", pages.login, methods=["POST"]),
        Route("/enter", pages.enter),
        Route("/logout", pages.logout, methods=["POST"]),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
        Route("/api/session", pages.session),
        Route("/api/jobs", pages.jobs),
        Route("/api/jobs/{job:int}/state", pages.state),
        Route("/api/jobs/{job:int}/curves", pages.curves),
        Route("/api/jobs/{job:int}/devices", pages.devices),
        Route("/api/jobs/{job:int}/names", pages.names),
        Route("/api/jobs/{job:int}/log", pages.log),
        Route("/api/jobs/{job:int}/settings", pages.change, methods=["POST"]),
        Route("/api/jobs/{job:int}/devices", pages.change_devices, methods=["POST"]),
        Route("/api/jobs/{job:int}/backup", pages.back_up, methods=["POST"]),
        Route("/api/jobs/{job:int}/enrolment", pages.enrolment),
        Route("/api/jobs/{job:int}/invitations", pages.invite, methods=["POST"]),
        Route("/api/jobs/{job:int}/invitations/take-back", pages.take_back, methods=["POST"]),
        Route("/api/jobs/{job:int}/askers", pages.askers),
        Route("/api/jobs/{job:int}/askers", pages.decide, methods=["POST"]),
    )


def make_site(console: ASGIApp) -> Starlette:
    """The console alone, where no server's endpoint is."""

    async def to_console(request: Request) -> Response:
        return RedirectResponse("/console/", 303)

    return Starlette(routes=[Route("/", to_console), Mount("/console", console)])


def make_refusal(reason: str) -> Starlette:
    """An application that only says why there is no console."""

    async def refuse(request: Request) -> Response:
        raise HTTPException(403, reason)

    return _make_app(Route("/{path:path}", refuse))


def _make_app(*routes: BaseRoute) -> Starlette:
    return Starlette(
        routes=routes,
        middleware=[Middleware(WithHeaders)],
        exception_handlers={HTTPException: _say, FedSPZOError: _say_error},
    )


class _Pages:
    """What the routes do."""

    def __init__(self, views: Sequence[JobView], gate: Gate, secure: bool) -> None:
        self._views, self._gate, self._secure = views, gate, secure

    def index(self, request: Request) -> Response:
        """The page, or the way to it."""
        if self._gate.find(_secret(request)) is None:
            return RedirectResponse(_place(request, "login"), 303)
        return FileResponse(_HERE / "pages" / "index.html")

    def login_form(self, request: Request) -> Response:
        """Where name and password are typed."""
        return FileResponse(_HERE / "pages" / ("no-logins.html" if self._gate.empty else "login.html"))

    async def login(self, request: Request) -> Response:
        """Name and password have come."""
        _check_origin(request)
        form = parse_qs((await read_body(request)).decode("utf-8", "replace"), keep_blank_values=True)
        name, password = (form.get(key, [""])[0] for key in ("name", "password"))
        try:
            secret = await run_in_threadpool(self._gate.enter, name, password, _address(request))
        except HTTPException as refused:
            why = "wait" if refused.status_code == 429 else "wrong"
            return RedirectResponse(_place(request, f"login?{why}"), 303, refused.headers)
        return self._let_in(request, secret)

    def enter(self, request: Request) -> Response:
        """Somebody comes by the link that was printed."""
        return self._let_in(request, self._gate.enter_by_link(request.query_params.get("key", "")))

    def logout(self, request: Request) -> Response:
        """End the session."""
        self._known(request, changes=True)
        self._gate.leave(_secret(request))
        response = Response(status_code=204)
        response.delete_cookie(_cookie(request), path=_place(request))
        return response

    def session(self, request: Request) -> Response:
        """Who is in, and the token to show when something is changed."""
        session = self._known(request)
        return data({"name": session.name, "role": session.login.role, "csrf": session.csrf})

    def jobs(self, request: Request) -> Response:
        """All jobs, a line each."""
        self._known(request)
        return data([view.summary() for view in self._views])

    def state(self, request: Request) -> Response:
        """See :meth:`JobView.state`."""
        return data(self._view(request).state(number(request, "after", 0)))

    def curves(self, request: Request) -> Response:
        """See :meth:`JobView.curves`."""
        return data(self._view(request).curves(number(request, "first", 0), number(request, "last", MOST)))

    def devices(self, request: Request) -> Response:
        """See :meth:`JobView.devices`."""
        view, asked = self._view(request), request.query_params
        order = asked.get("order", "name")
        if order not in ORDERS:
            raise HTTPException(400, f"devices are ordered by {', '.join(ORDERS)}")
        return data(
            view.devices(
                search=search(request), order=order, page=number(request, "page", 0),
                descending=asked.get("descending") == "1",
            )
        )  # fmt: skip

    def names(self, request: Request) -> Response:
        """The names of all devices that a search finds."""
        return data(self._view(request).names(search(request)))

    def log(self, request: Request) -> Response:
        """See :meth:`JobView.log`."""
        return data(self._view(request).log())

    async def change(self, request: Request) -> Response:
        """Change a setting of a job, from its next plan on."""
        who, running = self._operating(request)
        name, value = await read_wish(request, ("name", "value"))
        await run_in_threadpool(running.window.change, who, str(name)[:64], value)
        return Response(status_code=204)

    async def change_devices(self, request: Request) -> Response:
        """Block or label devices, see :meth:`DeviceControls.act`."""
        who, running = self._operating(request)
        act, names, label = await read_wish(request, ("act", "names", "label"), MOST_NAMES)
        if act not in ACTS:
            raise HTTPException(400, f"act is one of {', '.join(ACTS)}")
        return data(await run_in_threadpool(running.devices.act, who, act, texts(names), str(label)))

    def back_up(self, request: Request) -> Response:
        """Begin to make a backup, see :meth:`Backups.start`."""
        who, running = self._operating(request)
        running.backups.start(who)
        return Response(status_code=204)

    def enrolment(self, request: Request) -> Response:
        """See :meth:`JobView.enrolment`; and what the server lacks to make invitations."""
        _, running = self._operating(request, changes=False)
        return data({**self._view(request).enrolment(), "lacks": running.enrolling.lacks})

    def askers(self, request: Request) -> Response:
        """See :meth:`JobView.askers`."""
        self._operating(request, changes=False)
        return data(self._view(request).askers())

    async def invite(self, request: Request) -> Response:
        """See :meth:`Enrolling.invite`."""
        who, running = self._operating(request)
        wish = await read_wish(request, ("name", "uses", "seconds", "group", "waits"))
        if not all(isinstance(value, kind) for value, kind in zip(wish, (str, int, int, str, bool), strict=True)):
            raise HTTPException(400, "name and group are texts, uses and seconds numbers, and waits is true or false")
        return data(await run_in_threadpool(running.enrolling.invite, who, *wish))

    async def take_back(self, request: Request) -> Response:
        """See :meth:`Enrolling.take_back`."""
        who, running = self._operating(request)
        (name,) = await read_wish(request, ("name",))
        await run_in_threadpool(running.enrolling.take_back, who, str(name)[:64])
        return Response(status_code=204)

    async def decide(self, request: Request) -> Response:
        """See :meth:`Enrolling.decide`."""
        who, running = self._operating(request)
        names, admit = await read_wish(request, ("names", "admit"), MOST_NAMES)
        if not isinstance(admit, bool):
            raise HTTPException(400, "admit is true or false")
        await run_in_threadpool(running.enrolling.decide, who, texts(names), admit)
        return Response(status_code=204)

    def _operating(self, request: Request, changes: bool = True) -> tuple[str, Running]:
        """Who operates a job, and its server. Raises HTTPException where that cannot be."""
        session = self._known(request, changes)
        running = self._view(request).running
        if not session.operates:
            raise HTTPException(403, f"'{session.name}' may look, but not operate; log in with a login that may")
        if running is None:
            raise HTTPException(409, "no server runs here, so that nothing can be changed; open its server's console")
        return session.name, running

    def _known(self, request: Request, changes: bool = False) -> Session:
        """The session of a request. Raises HTTPException without one, or where another page made the request."""
        session = self._gate.find(_secret(request))
        if session is None:
            raise HTTPException(401, "the session is over; log in again")
        if changes:
            _check_origin(request)
            if not session.is_of(request.headers.get(CSRF, "")):
                raise HTTPException(403, "this did not come from the console's own page; load it again")
        return session

    def _view(self, request: Request) -> JobView:
        self._known(request)
        job: int = request.path_params["job"]
        if job >= len(self._views):
            raise HTTPException(404, f"there is no job {job}")
        return self._views[job]

    def _let_in(self, request: Request, secret: str) -> Response:
        response = RedirectResponse(_place(request), 303)
        response.set_cookie(
            _cookie(request), secret, path=_place(request), httponly=True, samesite="strict", secure=self._secure
        )
        return response


def _say(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _say_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FedSPZOError)
    return JSONResponse({"error": str(error), "kind": error.kind}, 400)


def _check_origin(request: Request) -> None:
    """Raise HTTPException where a browser says that another page made a request."""
    origin, host = request.headers.get("Origin"), request.headers.get("Host")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != host
    ):
        raise HTTPException(403, "this did not come from the console's own page")


def _place(request: Request, page: str = "") -> str:
    """The path of a page, wherever the console is mounted."""
    return f"{request.scope.get('root_path', '')}/{page}"


def _cookie(request: Request) -> str:
    """The cookie's name. A browser has the same cookies for all ports of a machine, which may run several servers."""
    return f"fedspzo-console-{(request.scope.get('server') or ('', 0))[1]}"


def _secret(request: Request) -> str:
    return request.cookies.get(_cookie(request), "")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
