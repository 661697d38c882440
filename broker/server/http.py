"""The server's HTTP side: bundle and snapshots for devices to download, metrics and health for operators.

Starlette, served by uvicorn in a thread. Only what is named here is given out, whole or in ranges; an entity tag stands
for the same bytes before and after a restart, so that an interrupted download can continue.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from fedspzo.device_runtime.errors import BrokerError, install_hint
from fedspzo.device_runtime.model.bundle import Bundle, file_hash
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.protocol.signing import PIN

try:
    import uvicorn
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import BaseRoute, Mount, Route
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise BrokerError(
        "server.library-missing", f"the HTTP endpoint needs {error.name}; {install_hint('server')}"
    ) from None

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: Connections at a time; who comes then gets 503 and comes back.
CONNECTIONS = 256
#: Seconds for a new connection's first request, and between requests.
REQUEST_S, IDLE_S = 10, 15
#: Seconds after which a client that takes none of what is sent is dropped.
STALL_S = 60
#: Seconds that downloads have to finish when the endpoint stops.
STOP_S = 1
#: Seconds after which a certificate that was renewed is shown.
RENEWED_S = 30


@contextmanager
def serve(
    bundle: Bundle,
    registry: CollectorRegistry,
    snapshots: Callable[[], Mapping[int, Path]],
    host: str = HOST,
    port: int = 0,
    tls: tuple[Path, Path] | None = None,
    console: ASGIApp | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Iterator[str]:
    """Serve while the context lasts; gives the endpoint's URL.

    Args:
        bundle: its files, its manifest and, where there is one, the server's public key, under ``/bundle/``.
        registry: shown at ``/metrics``.
        snapshots: round → file, asked again at each request, on another thread. A file may be renamed over or removed
            meanwhile: who is downloading it gets the rest of it, though not after a broken connection.
        host, port: where to listen; port 0 is a free one.
        tls: for HTTPS, PEM files of the server's certificate (with its chain) and private key. They are read again when
            they have changed.
        console: see :func:`fedspzo.broker.server.console.app.make_console`.
        routes: what else is served.

    Raises:
        BrokerError: the port is taken, or the certificate cannot be used.
    """
    with serve_app(make_app(bundle, registry, snapshots, console, routes), host, port, tls) as url:
        yield url


@contextmanager
def serve_app(app: Starlette, host: str = HOST, port: int = 0, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Serve an application while the context lasts; gives its URL. Arguments and errors as for :func:`serve`."""
    listener = _listen(host, port)
    try:
        config = _configure(app, tls)
        server = uvicorn.Server(config)
    except BaseException:
        listener.close()
        raise
    stopped = threading.Event()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="endpoint", daemon=True)
    thread.start()
    if tls and config.ssl:
        renewal = (config.ssl, tls, _stamps(tls), stopped)
        threading.Thread(target=_renew, args=renewal, name="certificate", daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://{_bracket(host)}:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        server.should_exit = True
        thread.join()


def may_serve_console(host: str, tls: bool) -> bool:
    """Whether passwords may come to an address: over TLS, or from this machine."""
    if tls or host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def make_app(
    bundle: Bundle,
    registry: CollectorRegistry,
    snapshots: Callable[[], Mapping[int, Path]],
    console: ASGIApp | None = None,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The application, for any ASGI server; arguments as for :func:`serve`."""

    def bundle_file(request: Request) -> _File:
        name = request.path_params["name"]
        path = bundle.folder / name
        if name in bundle.manifest.files:
            return _File(path, bundle.manifest.files[name])
        if name in (MANIFEST, PIN) and path.is_file():
            return _File(path, file_hash(path))
        raise HTTPException(404)

    def snapshot(request: Request) -> _File:
        for number, path in snapshots().items():
            if str(number) == request.path_params["round"]:
                return _File(path, tag=None)
        raise HTTPException(404)

    def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[
            Route("/bundle/{name}", bundle_file),
            Route("/snapshot/{round}", snapshot),
            Route("/metrics", metrics),
            Route("/healthz", health),
            *([Mount("/console", console)] if console else []),
            *routes,
        ],
        exception_handlers={Exception: _fault},
    )
    app.router.redirect_slashes = False
    return app


@dataclass(frozen=True)
class _File:
    """A response with a file's bytes.

    Attributes:
        tag: of its content; None for one made of size and time of the file that is found.
    """

    path: Path
    tag: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            file = self.path.open("rb")
        except OSError as error:
            log.error("%s cannot be served: %s", self.path, error.strerror)
            raise HTTPException(404) from None
        # Named by its descriptor, the file stays the same from its size to its last byte, whatever is renamed.
        with file:
            status = os.fstat(file.fileno())
            tag = self.tag or f"{status.st_size:x}-{status.st_mtime_ns:x}"
            response = FileResponse(
                f"/dev/fd/{file.fileno()}",
                headers={"ETag": f'"{tag}"'},
                media_type="application/octet-stream",
                stat_result=status,
            )
            await response(scope, receive, send)


class _Protocol(H11Protocol):
    """HTTP/1.1 that also hangs up on who connects and asks for nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))  # as asyncio gives stream protocols
        self.loop.call_later(REQUEST_S, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None:
            self.transport.abort()


def _fault(request: Request, error: Exception) -> Response:
    log.error("the request for %s failed", request.url.path, exc_info=error)
    return PlainTextResponse("Internal Server Error", 500)


def _configure(app: Starlette, tls: tuple[Path, Path] | None) -> uvicorn.Config:
    certificate, key = tls or (None, None)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # it would report every client that leaves; faults are logged here
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_S,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(
            "server.certificate",
            f"the certificate {certificate} with the key {key} cannot be used ({error}); give a certificate and its"
            " own key in PEM",
        ) from None
    return config


def _renew(context: ssl.SSLContext, tls: tuple[Path, Path], seen: list[int], stopped: threading.Event) -> None:
    """Show new connections the certificate that the files have by then, if it can be used."""
    while not stopped.wait(RENEWED_S):
        if (now := _stamps(tls)) == seen:
            continue
        seen = now
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)  # a half of a new pair would spoil the other
            context.load_cert_chain(*tls)
            log.info("HTTPS has the renewed certificate %s", tls[0])
        except (OSError, ssl.SSLError) as error:
            log.warning(
                "the renewed certificate %s with the key %s cannot be used (%s); the old one stays", *tls, error
            )


def _stamps(files: tuple[Path, Path]) -> list[int]:
    """When files were changed, in nanoseconds; 0 where one is missing."""
    return [file.stat().st_mtime_ns if file.exists() else 0 for file in files]


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokerError(
            "server.http-port-in-use", f"the HTTP endpoint cannot use {host}:{port} ({reason}); choose another port"
        ) from None
    # Connections that are accepted inherit both.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_S * 1000)
    return listener


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
