"""Signatures (Ed25519): a broker can delay messages, but cannot alter or invent them.

A message travels as its bytes and then their signature. The server's first key is pinned in the bundle, see
:mod:`fedspzo.device_runtime.protocol.server_keys`; a device's key is made on the device and comes with its first
``Sync``. A signature is good in one :class:`Scope` only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cbor2

from fedspzo.device_runtime.errors import BundleError, MessageError, StateError
from fedspzo.device_runtime.files import PUBLIC, write_atomically
from fedspzo.device_runtime.protocol.codec import MAX_BYTES
from fedspzo.device_runtime.protocol.signatures import scheme

#: File of a bundle that holds its server's public key.
PIN = "server.pub"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SIGNED_BYTES = MAX_BYTES + SIGNATURE_BYTES
Key = TypeVar("Key")


@dataclass(frozen=True)
class Scope:
    """What a signature is good for, apart from the bytes that it signs.

    Attributes:
        job: the job's name.
        bundle: identity of the job's bundle.
        device: who sent it or is meant by it; "" for what is meant for all.
        head: hash of the journal that an entry, a plan or the end of a job follows; else empty.
    """

    job: str
    bundle: bytes
    device: str = ""
    head: bytes = b""

    def text(self, payload: bytes) -> bytes:
        """What is signed. The record's own length is in it, so that no two scopes give the same text."""
        return b"fedspzo 1 " + cbor2.dumps([self.job, self.bundle, self.device, self.head]) + payload


class Signer:
    """A private key, kept in a file that only its owner can read.

    Attributes:
        public: the public key (32 bytes).
    """

    def __init__(self, path: Path) -> None:
        """Read the key, or make one the first time. Raises StateError when the file cannot be used."""
        self._key = read_secret(path, scheme().private_key)
        self.public = self._key.public

    def sign(self, payload: bytes, scope: Scope) -> bytes:
        """The bytes and their signature."""
        return payload + self._key.sign(scope.text(payload))


def read_secret(path: Path, make: Callable[[bytes], Key]) -> Key:
    """What is made of the 32 bytes in a file, which are drawn the first time.

    Raises:
        StateError: the file cannot be used.
    """
    try:
        if not path.exists():
            write_atomically(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
        return make(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(
            "state.key-unusable", f"the key {path} cannot be used ({error}); restore the file from a backup"
        ) from None


def split(signed: bytes) -> bytes:
    """The bytes without their signature, which is not checked here. Raises MessageError when they cannot have one."""
    if not SIGNATURE_BYTES < len(signed) <= MAX_SIGNED_BYTES:
        raise MessageError("message.not-signed", f"it has {len(signed)} bytes, so it is not a signed message")
    return signed[:-SIGNATURE_BYTES]


def check(signed: bytes, scope: Scope, key: bytes) -> None:
    """Raise MessageError unless the bytes were signed by the owner of a key, for a scope."""
    payload = split(signed)
    if not scheme().verify(key, signed[-SIGNATURE_BYTES:], scope.text(payload)):
        raise MessageError(
            "message.wrong-signature", "its signature is not its sender's, or is for another place or time"
        )


def read_pin(folder: Path) -> bytes:
    """The public key of the server that a bundle belongs to.

    Raises:
        BundleError: the bundle has none.
    """
    try:
        key = bytes.fromhex((folder / PIN).read_text(encoding="ascii"))
    except FileNotFoundError:
        raise BundleError(
            "bundle.no-server-key",
            f"{folder} names no server (it has no {PIN}); start the server with this bundle once, or get the bundle"
            " with fedspzo fetch",
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(
            "bundle.server-key-unreadable",
            f"{folder / PIN} cannot be read ({error}); get the bundle from the server again",
        ) from None
    if len(key) != KEY_BYTES:
        raise BundleError(
            "bundle.server-key-damaged", f"{folder / PIN} is not a public key; get the bundle from the server again"
        )
    return key


def write_pin(folder: Path, key: bytes) -> None:
    """Say in a bundle which server it belongs to.

    Raises:
        BundleError: it belongs to another, or cannot be written.
    """
    if (folder / PIN).exists():
        if read_pin(folder) != key:
            raise BundleError(
                "bundle.other-server",
                f"{folder} belongs to another server; use that server's state folder, or a copy of the bundle without"
                f" {PIN}",
            )
        return
    try:
        write_atomically(folder / PIN, key.hex().encode(), PUBLIC)
    except OSError as error:
        raise BundleError(
            "bundle.unwritable", f"{folder / PIN} cannot be written ({error.strerror}); make the folder writable"
        ) from None
