"""X25519 by the `cryptography` library where it is installed, otherwise in pure Python: what two devices agree on."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from fedspzo.device_runtime.protocol import x25519


class PrivateKey(Protocol):
    """A private key, and its public one (32 bytes)."""

    @property
    def public(self) -> bytes: ...

    def agree(self, public: bytes) -> bytes:
        """The secret (32 bytes) shared with a public key's owner. Raises ValueError for a key that gives none."""


class KeyAgreement(Protocol):
    """X25519, by whatever means."""

    def private_key(self, secret: bytes) -> PrivateKey:
        """The key that 32 bytes are; any will do. Raises ValueError for any other number of bytes."""


@cache
def key_agreement() -> KeyAgreement:
    """The fastest that there is here."""
    try:
        import cryptography.hazmat.primitives.asymmetric.x25519  # noqa: F401
    except ImportError:
        return InPython()
    return ByLibrary()


class InPython:
    """In Python alone: a few milliseconds each."""

    def private_key(self, secret: bytes) -> PrivateKey:
        return x25519.PrivateKey(secret)


class ByLibrary:
    """By `cryptography`, which is OpenSSL's. Raises ImportError where it is not installed."""

    def private_key(self, secret: bytes) -> PrivateKey:
        return _LibraryKey(secret)


class _LibraryKey:
    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        return self._key.exchange(X25519PublicKey.from_public_bytes(public))
