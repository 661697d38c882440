"""A phone joins by an invitation for many: the server makes its login."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedspzo.device_runtime.device.enrolment import ask, make_access, make_request
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.protocol.enrolment import ADMITTED

#: Times that a server is asked, before a person is told.
_ATTEMPTS = 3


def join(invitation: Invitation, state: Path) -> Invitation:
    """An invitation of this phone's own, by one for many.

    Args:
        state: the state folder, with the phone's key as it is while it is unsealed.

    Raises:
        EnrolmentError, DownloadError: the server refuses, cannot be reached, or cannot be trusted.
        StateError: a person has yet to admit the phone, or the folder cannot be used.
    """
    request = make_request(state, invitation)
    if ask(invitation, request, attempts=_ATTEMPTS) != ADMITTED:
        raise StateError(
            "device.waits",
            "the operator has yet to admit this phone; wait for that, and accept the invitation again",
        )
    return replace(invitation, access=make_access(invitation, request), token="")
