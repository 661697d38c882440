"""Certificates of the authorities that one end trusts: as PEM text, as they travel, and what tells them from others."""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Iterable

#: Bytes of a :func:`fingerprint`.
FINGERPRINT_BYTES = 8
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def read_certificates(text: str) -> tuple[bytes, ...]:
    """The certificates in a PEM text, as DER. Raises ValueError when one is damaged."""
    return tuple(ssl.PEM_cert_to_DER_cert(pem) for pem in _CERTIFICATE.findall(text))


def write_certificates(certificates: Iterable[bytes]) -> str:
    """PEM text of certificates that are DER."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, certificates))


def fingerprint(certificates: Iterable[bytes]) -> bytes:
    """What tells some certificates from others, whatever their order."""
    digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES, person=b"fedspzo ca")
    for certificate in sorted(certificates):
        digest.update(hashlib.sha256(certificate).digest())
    return digest.digest()
