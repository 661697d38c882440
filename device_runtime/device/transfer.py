"""One file over HTTP or HTTPS, in several connections if necessary: what has arrived is kept, the rest requested.

Redirects are not followed, and proxies are not used.
"""

from __future__ import annotations

import http.client
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO
from urllib.parse import urlsplit

from fedspzo.device_runtime.errors import FedSPZOError

log = logging.getLogger(__name__)

#: Connections in a row that may fail without a new byte; seconds waited after the first, and at most.
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 6, 1.0, 30.0
#: Seconds that a server may be silent.
TIMEOUT_S = 30.0
_PIECE = 1 << 18
#: An entity tag that stands for the very same bytes.
STRONG = re.compile(r'"[\x21\x23-\x7e]*"')


class DownloadError(FedSPZOError):
    """Something cannot be downloaded, or is not what it should be."""


class MissingError(DownloadError):
    """The server does not have it."""


class Broken(Exception):
    """The connection failed in a way that the next one may not."""


@dataclass(frozen=True)
class RemoteFile:
    """Where a file is.

    Attributes:
        target: path and query of the URL.
        context: for HTTPS, which certificates to trust.
    """

    url: str
    host: str
    port: int | None
    target: str
    context: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, authority: str) -> RemoteFile:
        """Raises DownloadError when the URL or the authority is not one."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode(), parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise DownloadError(
                "download.url", f"'{url}' is not a URL to download from; write one as https://host:8443"
            )
        if authority and parts.scheme == "http":
            raise DownloadError(
                "download.authority-over-http",
                f"an authority has no effect on '{url}', because http checks nothing; write https",
            )
        try:
            context = ssl.create_default_context(cadata=authority or None) if parts.scheme == "https" else None
        except (ssl.SSLError, ValueError):
            raise DownloadError(
                "download.authority", "the authority is not a certificate in PEM; give the server's file"
            ) from None
        return cls(url, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), context)

    def connect(self) -> http.client.HTTPConnection:
        """A connection, not yet opened."""
        if self.context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=self.context)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Tells what another connection may mend from what it cannot."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(
                "download.untrusted",
                f"the server of {self.url} cannot be trusted ({error.verify_message}); check the URL and the authority",
            ) from None
        except (http.client.InvalidURL, ValueError):
            raise DownloadError(
                "download.url-characters",
                f"'{self.url}' is not a valid URL; write spaces and other special characters as %20 and so on",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Broken(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


@dataclass
class Transfer:
    """A file on its way.

    Attributes:
        file: what has arrived; open for reading and writing.
        tag: entity tag of the version that it is of; only with a strong one can it be continued.
        accept: told the bytes that are there and those of the whole file, before it is read; may raise DownloadError.
        on_progress: told the bytes that are there and those of the whole file, as they arrive.
        keep: told the tag when a version begins, before any of its bytes is written.
        received: bytes that have come over the network.
    """

    source: RemoteFile
    file: IO[bytes]
    tag: str = ""
    accept: Callable[[int, int], None] = lambda done, total: None
    on_progress: Callable[[int, int], None] = lambda done, total: None
    keep: Callable[[str], None] = lambda tag: None
    received: int = 0

    def run(self) -> None:
        """Bring the file to its end. Raises DownloadError when that is in vain, OSError when the file refuses."""
        furthest = self.file.seek(0, os.SEEK_END)
        failures = 0
        while True:
            try:
                with closing(self.source.connect()) as connection:
                    return self._attempt(connection)
            except Broken as error:
                reached = self.file.seek(0, os.SEEK_END)
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= ATTEMPTS:
                    raise DownloadError(
                        "download.failed",
                        f"{self.source.url} cannot be downloaded ({error}); check the URL and the network, or try"
                        " again later",
                    ) from None
                wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
                log.warning("%s: %s; trying again in %.1f s", self.source.url, error, wait)
                time.sleep(wait)

    def _attempt(self, connection: http.client.HTTPConnection) -> None:
        start = self.file.seek(0, os.SEEK_END) if STRONG.fullmatch(self.tag) else 0
        headers = {"Range": f"bytes={start}-", "If-Range": self.tag} if start else {}
        with self.source.network():
            connection.request("GET", self.source.target, headers=headers)
            response = connection.getresponse()
        if start and response.status in (206, 416):
            total = self._continue(response, start)
        else:
            self._check_status(response)
            total = self._begin(response)
            start = 0
        self.accept(start, total)
        while start < total:
            with self.source.network():
                piece = response.read1(min(_PIECE, total - start))
            if not piece:
                raise Broken(f"the connection ended at {start} of {total} bytes")
            self.file.write(piece)
            start += len(piece)
            self.received += len(piece)
            self.on_progress(start, total)

    def _begin(self, response: http.client.HTTPResponse) -> int:
        """Start over with the version that the server has now, and return its size in bytes."""
        if response.length is None:
            raise DownloadError(
                "download.no-length", f"the server does not give the length of {self.source.url}; use another server"
            )
        self.file.seek(0)
        self.file.truncate()
        self.tag = response.getheader("ETag", "")
        self.keep(self.tag)
        return response.length

    def _continue(self, response: http.client.HTTPResponse, start: int) -> int:
        """Size in bytes of a file to continue where it ended. What does not fit makes the next attempt start over."""
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.getheader("Content-Range", ""))
        if found and response.getheader("ETag", self.tag) == self.tag:
            total = int(found[2])
            if found[1] == str(start) if response.status == 206 else total == start:
                return total
        self.tag = ""
        raise Broken("the server has another version of it")

    def _check_status(self, response: http.client.HTTPResponse) -> None:
        url, answer = self.source.url, f"{response.status} {response.reason}".strip()
        if response.status in (404, 410):
            raise MissingError("download.missing", f"{url} does not exist; check the URL")
        if response.status in (408, 429) or response.status >= 500:
            raise Broken(f"the server answers {answer}")
        if 300 <= response.status < 400:
            raise DownloadError(
                "download.moved", f"{url} has moved to '{response.getheader('Location', '')}'; give the new URL"
            )
        if response.status != 200:
            raise DownloadError("download.refused", f"{url} gives {answer}; check the URL")
