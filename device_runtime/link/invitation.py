"""An invitation: an access, a job, and where its bundle is, as one line of text, short enough for a QR code.

It is ``fedspzo:`` and then, in base64url without padding, a CBOR array of version, URL, user, password, certificates
(DER) and job; in version 2 also the URL that the bundle comes from. A QR code takes 2,953 bytes; with one certificate
on an elliptic curve this is some 700. It holds the password: whoever sees it can join in the device's place.
"""

from __future__ import annotations

import base64
import re
import ssl
from dataclasses import dataclass

import cbor2

from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.protocol.topics import valid_id

SCHEME = "fedspzo:"
#: Most bytes in a QR code, of the largest kind with the least correction of errors (ISO/IEC 18004, version 40-L).
QR_BYTES = 2953
_VERSIONS = (1, 2)
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Invitation:
    """What a device needs to take part in a job, and perhaps where it gets the bundle.

    Attributes:
        access: the broker and the login.
        job: the job's name.
        bundle_url: of the server's HTTP endpoint, which the access's authority vouches for as well; "" for none.
    """

    access: Access
    job: str = "default"
    bundle_url: str = ""

    def text(self) -> str:
        """As one line. Raises BrokerError when the authority is not a certificate."""
        access = self.access
        try:
            authorities = [ssl.PEM_cert_to_DER_cert(pem) for pem in _CERTIFICATE.findall(access.authority)]
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
        return SCHEME + base64.urlsafe_b64encode(cbor2.dumps(record)).rstrip(b"=").decode()

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
            bundle_url = more[0] if more else ""
            authority = "".join(map(ssl.DER_cert_to_PEM_cert, authorities))
            if not all(isinstance(part, str) for part in (url, user, password, job, bundle_url)) or not valid_id(job):
                raise ValueError
        except Exception:  # anybody may send one, and tags of CBOR raise what they like: KeyError, RecursionError
            raise BrokerError(
                "access.invitation",
                "this is not a whole invitation; scan or copy again what fedspzo enroll --qr printed",
            ) from None
        if version not in _VERSIONS:
            raise BrokerError(
                "access.invitation-version",
                f"the invitation has version {version}, which this program cannot read; update it",
            )
        return cls(Access(url, user, password, authority), job, bundle_url)
