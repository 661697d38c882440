"""What a device sends to be enrolled by an invitation for many: its name, its key, and the login that it wants.

It is JSON, with bytes as hexadecimal digits. The signature shows that the device has the key. It is good for this
invitation, job, name and password alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from fedspzo.device_runtime.errors import EnrolmentError, MessageError
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, SIGNATURE_BYTES, Scope, Signer, check

#: Path of the server's HTTP endpoint that takes requests.
PATH = "/enrol"
#: Bytes of a request at most.
MOST_BYTES = 4096
#: What a device is after a request: it has its login, or a person decides.
ADMITTED, ASKED = "admitted", "asked"
#: Comes before the password in what is signed. What devices sign elsewhere names a bundle, see ``signing.Scope``.
_PURPOSE = b"fedspzo enrolment 1 "
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{32,64}")


@dataclass(frozen=True)
class Request:
    """A device's request.

    Attributes:
        token: of the invitation.
        name: the device's id.
        key: its public key.
        password: that it will use at the broker.
        signature: by the key.
    """

    token: str
    name: str
    key: bytes
    password: str
    signature: bytes

    @classmethod
    def make(cls, token: str, job: str, name: str, signer: Signer, password: str) -> Request:
        """Sign a request."""
        signed = signer.sign(_PURPOSE + password.encode(), _scope(token, job, name))
        return cls(token, name, signer.public, password, signed[-SIGNATURE_BYTES:])

    def encode(self) -> bytes:
        """As it travels."""
        texts = {"token": self.token, "name": self.name, "password": self.password}
        return json.dumps({**texts, "key": self.key.hex(), "signature": self.signature.hex()}).encode()

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Read what :meth:`encode` gave; the signature is not checked here.

        Raises:
            EnrolmentError: it is something else.
        """
        try:
            said: Any = json.loads(body)
            texts = [said[name] for name in ("token", "name", "password", "key", "signature")]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
            "".join(texts).encode()  # JSON can say half a character, which is in no text
            token, name, password, key, signature = texts
            found = cls(token, name, bytes.fromhex(key), password, bytes.fromhex(signature))
        except (ValueError, TypeError, KeyError, RecursionError):
            found = None
        if found is None or len(found.key) != KEY_BYTES or not _PASSWORD.fullmatch(found.password):
            raise EnrolmentError(
                "enrolment.request", "this is not a request to be enrolled; send it with fedspzo device --invitation"
            )
        return found

    def check(self, job: str) -> None:
        """Raise EnrolmentError unless the owner of the key has signed this, for a job."""
        try:
            signed = _PURPOSE + self.password.encode() + self.signature
            check(signed, _scope(self.token, job, self.name), self.key)
        except MessageError:
            raise EnrolmentError(
                "enrolment.signature",
                "the request is not signed by its key for this job; use the invitation as it is, with a device of this"
                " version",
            ) from None


def digest(token: str) -> bytes:
    """All that a server keeps of a token (32 bytes)."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _scope(token: str, job: str, name: str) -> Scope:
    return Scope(job, b"", name, digest(token))
