"""Certificates: the owner of an enrolment key, which can stay offline, says which devices' keys a group may have.

A certificate is a device's public key and the enrolment key's signature of it. It names no job and no bundle, so that
one serves in all jobs whose bundles name the enrolment key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import write_atomically
from fedspzo.device_runtime.protocol.signatures import PrivateKey, scheme
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, SIGNATURE_BYTES

#: Comes before the key that is signed. What devices and servers sign begins in another way, see ``signing.Scope``.
PURPOSE = b"fedspzo certificate 1 "
CERTIFICATE_BYTES = KEY_BYTES + SIGNATURE_BYTES
#: File of a device's state folder that keeps its certificate.
CERTIFICATE = "certificate"


def certify(enrolment: PrivateKey, key: bytes) -> bytes:
    """The certificate (96 bytes) of a device's public key (32 bytes)."""
    return key + enrolment.sign(PURPOSE + key)


def is_certified(key: bytes, signature: bytes, enrolment: bytes) -> bool:
    """Whether a device's public key has the signature (64 bytes) of the owner of an enrolment key."""
    return scheme().verify(enrolment, signature, PURPOSE + key)


def keep_certificate(folder: Path, key: bytes, enrolment: bytes, certificates: Iterable[bytes]) -> None:
    """Keep in a device's state folder which of some certificates is its own.

    Args:
        key: the device's public key.
        enrolment: the enrolment key that the bundle names; empty where it names none.

    Raises:
        StateError: none is for its key, or that one is not by the enrolment key; or the disk refuses.
    """
    found = next((each for each in certificates if each[:KEY_BYTES] == key), None)
    if found is None:
        raise StateError(
            "certificate.other-device",
            f"there is no certificate of this device's key; have it made: fedspzo certify --key FILE {key.hex()}",
        )
    if enrolment and not is_certified(key, found[KEY_BYTES:], enrolment):
        raise StateError(
            "certificate.other-enrolment-key",
            f"the certificate is not by the enrolment key {enrolment.hex()} that the bundle names; have it made with"
            f" that key: fedspzo certify --key FILE {key.hex()}",
        )
    try:
        write_atomically(folder / CERTIFICATE, found)
    except OSError as error:
        raise StateError("state.unusable", f"{folder} cannot be used ({error}); choose another folder") from None


def read_certificate(folder: Path, key: bytes) -> bytes:
    """The signature in the certificate that a state folder keeps; empty where it has none of a key.

    Raises:
        StateError: the file cannot be read.
    """
    file = folder / CERTIFICATE
    try:
        kept = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise StateError("state.unusable", f"{folder} cannot be used ({error}); choose another folder") from None
    return kept[KEY_BYTES:] if kept[:KEY_BYTES] == key and len(kept) == CERTIFICATE_BYTES else b""
