"""An invitation: an access, a job, and where its bundle is, as one line of text, short enough for a QR code.

It is ``fedspzo:`` and then, in base64url without padding, a CBOR array of version, URL, user, password, certificates
(DER) and job; in version 2 also the URL that the bundle comes from. A QR code takes 2,953 bytes; with one certificate
on an elliptic curve this is some 700. It holds the password: whoever sees it can join in the device's place.

An invitation for many (version 3) has neither user nor password. It has a token at its end, by which each device gets a
login of its own from the server, see :mod:`fedspzo.device_runtime.device.enrolment`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

import cbor2

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.authorities import read_certificates, write_certificates
from fedspzo.device_runtime.protocol.topics import valid_id

SCHEME = "fedspzo:"
#: Most bytes in a QR code, of the largest kind with the least correction of errors (ISO/IEC 18004, version 40-L).
QR_BYTES = 2953
_VERSIONS = (1, 2, 3)


@dataclass(frozen=True)
class Invitation:
    """What a device needs to take part in a job, and perhaps where it gets the bundle.

    Attributes:
        access: the broker and the login.
        job: the job's name.
        bundle_url: of the server's HTTP endpoint, which the access's authority vouches for as well; "" for none.
        token: of an invitation for many, whose access has no user yet; "" for one device's invitation.
    """

    access: Access
    job: str = "default"
    bundle_url: str = ""
    token: str = field(default="", repr=False)

    def text(self) -> str:
        """As one line. Raises BrokerError when the authority is not a certificate."""
        access = self.access
        try:
            authorities = list(read_certificates(access.authority))
        except ValueError:
            authorities = []
        if bool(access.authority.strip()) != bool(authorities):
            raise BrokerError(
                "access.authority",
                f"the authority in the access to {access.place} is not a certificate; make the access file again",
            )
        record = [1, access.url, access.user, access.password, authorities, self.job]
        if self.bundle_url:  # programs that know version 1 alone say that they are too old
            record = [2, *record[1:], self.bundle_url]
        if self.token:
            record = [3, *record[1:7], self.token]
        return SCHEME + base64.urlsafe_b64encode(cbor2.dumps(record)).rstrip(b"=").decode()

    @classmethod
    def load(cls, path: Path) -> Invitation:
        """Read a file with an invitation for many. Raises BrokerError when it has none."""
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise BrokerError(
                "access.invitation-unreadable",
                f"the invitation {path} cannot be read ({error.strerror}); correct the path or its permissions",
            ) from None
        invitation = cls.parse(text)
        if not invitation.token:
            raise BrokerError(
                "access.invitation-of-one",
                f"{path} is the invitation of one device; give that device its access file with --access",
            )
        return invitation

    @classmethod
    def parse(cls, text: str) -> Invitation:
        """Read what :meth:`text` gave.

        Raises:
            BrokerError: it is cut off, or no invitation.
        """
        encoded = "".join(text.split()).removeprefix(SCHEME)
        try:
            record = cbor2.loads(base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True))
            version, url, user, password, authorities, job, *more = record
            bundle_url, token = (*more, "", "")[:2]
            authority = write_certificates(authorities)
            texts = (url, user, password, job, bundle_url, token)
            if not all(isinstance(part, str) for part in texts) or not valid_id(job) or (version == 3 and not token):
                raise ValueError
        except Exception:  # anybody may send one, and tags of CBOR raise what they like: KeyError, RecursionError
            raise BrokerError(
                "access.invitation",
                "this is not a whole invitation; scan or copy again what fedspzo enroll --qr or fedspzo invite gave",
            ) from None
        if version not in _VERSIONS:
            raise BrokerError(
                "access.invitation-version",
                f"the invitation has version {version}, which this program cannot read; update it",
            )
        return cls(Access(url, user, password, authority), job, bundle_url, token)
