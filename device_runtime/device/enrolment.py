"""A device joins by an invitation for many: it makes its key, asks the server, and keeps the login that it gets.

Its password at the broker follows from its key. So a device that asks again, because it was killed or an answer was
lost, asks for the same thing, and has it once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from fedspzo.device_runtime.device.transfer import FIRST_WAIT_S, LONGEST_WAIT_S, Broken, RemoteFile
from fedspzo.device_runtime.errors import EnrolmentError, StateError
from fedspzo.device_runtime.files import cure
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.log import printable
from fedspzo.device_runtime.protocol.enrolment import ADMITTED, ASKED, PATH, Request
from fedspzo.device_runtime.protocol.signing import read_secret
from fedspzo.device_runtime.replica.device_key import KEY
from fedspzo.device_runtime.replica.state import open_identity

log = logging.getLogger(__name__)

#: File of a device's state folder with the login that it got.
ACCESS = "access.json"
#: Times in a row that the server may be out of reach, or busy.
ATTEMPTS = 8
#: Bytes of an answer at most.
_ANSWER_BYTES = 1 << 14
_KIND = re.compile(r"[a-z]+\.[a-z0-9-]+")


class _Answer(NamedTuple):
    state: str
    kind: str
    error: str


def enrol(
    folder: Path, invitation: Invitation, name: str | None = None, sleep: Callable[[float], object] = time.sleep
) -> Access:
    """A device's access to the broker: that of its state folder, or else what the server gives for the invitation.

    Where a person decides, it waits for that person.

    Args:
        folder: the device's state folder.
        invitation: for many.
        name: the device's id; by default the folder's own.

    Raises:
        EnrolmentError: the server refuses, or cannot be reached.
        DownloadError: its URL or authority is of no use, or it cannot be trusted.
        StateError: the folder cannot be used, or belongs to another device.
        BrokerError: its access file is damaged.
    """
    request, file = make_request(folder, invitation, name), folder / ACCESS
    if file.exists():
        return Access.load(file)
    told = False
    while ask(invitation, request, sleep) != ADMITTED:
        if not told:
            log.info("device '%s' has asked to take part, and waits for the operator: fedspzo admit", request.name)
            told = True
        sleep(LONGEST_WAIT_S * random.uniform(0.2, 0.4))
    access = make_access(invitation, request)
    try:
        access.save(file)
    except OSError as error:
        raise StateError("state.unusable", f"{folder} cannot be used ({error.strerror}); {cure(error)}") from None
    log.info("device '%s' is enrolled", access.user)
    return access


def make_request(folder: Path, invitation: Invitation, name: str | None = None) -> Request:
    """What a device asks by an invitation: the same, whenever it is made; the key is made where it is new.

    Raises:
        StateError: its state folder cannot be used, or belongs to another device.
    """
    device, signer = open_identity(folder, name)
    return Request.make(invitation.token, invitation.job, device, signer, _password(folder))


def make_access(invitation: Invitation, request: Request) -> Access:
    """The login that a request which was granted has made."""
    return replace(invitation.access, user=request.name, password=request.password)


def ask(
    invitation: Invitation,
    request: Request,
    sleep: Callable[[float], object] = time.sleep,
    attempts: int = ATTEMPTS,
) -> str:
    """Ask the server once, or again while it is out of reach or busy: ``ADMITTED`` or ``ASKED``.

    Raises:
        EnrolmentError: it refuses, or cannot be reached.
        DownloadError: its URL or authority is of no use, or it cannot be trusted.
    """
    source = check_place(invitation)
    for attempt in range(attempts):
        try:
            status, wait, answer = _post(source, request.encode())
        except Broken as error:
            reason, wait = str(error), ""
        else:
            said = _parse(answer)
            if status not in (408, 429, 503):
                return _decision(source.url, status, said)
            reason = printable(said.error) or f"it answers {status}"
        if attempt + 1 < attempts:
            longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
            seconds = max(min(int(wait), 120) if wait.isdecimal() else 0.0, longest * random.uniform(0.5, 1.0))
            log.warning("%s: %s; asking again in %.1f s", source.url, reason, seconds)
            sleep(seconds)
    raise EnrolmentError(
        "enrolment.unreachable",
        f"the server at {source.url} does not let devices enrol now ({reason}); check the network, or try again later",
    )


def check_place(invitation: Invitation) -> RemoteFile:
    """Where the server of an invitation takes requests.

    Raises:
        EnrolmentError: others could read them on their way.
        DownloadError: its URL or authority is of no use.
    """
    source = RemoteFile.parse(invitation.bundle_url.rstrip("/") + PATH, invitation.access.authority)
    if source.context is None and not _is_this_machine(source.host):
        raise EnrolmentError(
            "enrolment.without-tls", f"at {source.url} others could read the invitation's token; give a URL with https"
        )
    return source


def _post(source: RemoteFile, body: bytes) -> tuple[int, str, bytes]:
    """Status, seconds to wait as the server says, and content of the answer."""
    with closing(source.connect()) as connection, source.network():
        connection.request("POST", source.target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.getheader("Retry-After", ""), response.read(_ANSWER_BYTES)


def _parse(answer: bytes) -> _Answer:
    """What the server says; all of it empty where it says something else."""
    try:
        found: Any = json.loads(answer)
        return _Answer(*(str(found.get(name, "")) for name in ("state", "kind", "error")))
    except (ValueError, AttributeError, RecursionError):
        return _Answer("", "", "")


def _decision(url: str, status: int, said: _Answer) -> str:
    """What the server has decided. Raises EnrolmentError where it refuses, by the kind and sentence that it gives."""
    if status in (200, 202) and said.state in (ADMITTED, ASKED):
        return said.state
    if said.error and _KIND.fullmatch(said.kind):
        raise EnrolmentError(said.kind, printable(said.error))
    raise EnrolmentError(
        "enrolment.not-offered",
        f"{url} takes no invitations (it answers {status}); check the URL, and that the server is of this version",
    )


def _password(folder: Path) -> str:
    """What the broker knows the device by; who has the key can make it, and nobody else."""

    def derive(secret: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(b"fedspzo login 1 " + secret).digest()).rstrip(b"=").decode()

    return read_secret(folder / KEY, derive)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
