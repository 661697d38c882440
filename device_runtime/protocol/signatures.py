"""Ed25519 by the `cryptography` library where it is installed, otherwise in pure Python: Android has no wheel.

Both make the same signatures and take the same ones, well-formed or not (tests/unit/test_signatures.py).
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from fedspzo.device_runtime.protocol import ed25519


class PrivateKey(Protocol):
    """A private key, and its public one (32 bytes)."""

    @property
    def public(self) -> bytes: ...

    def sign(self, text: bytes) -> bytes:
        """The signature (64 bytes) of some bytes."""


class Scheme(Protocol):
    """Ed25519, by whatever means."""

    def private_key(self, secret: bytes) -> PrivateKey:
        """The key that 32 bytes are; any will do. Raises ValueError for any other number of bytes."""

    def verify(self, public: bytes, signature: bytes, text: bytes) -> bool:
        """Whether some bytes were signed by the owner of a public key; also False if key or signature are not ones."""


@cache
def scheme() -> Scheme:
    """The fastest that there is here."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError:
        return InPython()
    return ByLibrary()


class InPython:
    """In Python alone: a few milliseconds each."""

    def private_key(self, secret: bytes) -> PrivateKey:
        return ed25519.PrivateKey(secret)

    def verify(self, public: bytes, signature: bytes, text: bytes) -> bool:
        return ed25519.verify(public, signature, text)


class ByLibrary:
    """By `cryptography`, which is OpenSSL's. Raises ImportError where it is not installed."""

    def private_key(self, secret: bytes) -> PrivateKey:
        return _LibraryKey(secret)

    def verify(self, public: bytes, signature: bytes, text: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


class _LibraryKey:
    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        return self._key.sign(text)
