"""Journals as chains of bytes: each entry is signed for the hash of the journal before it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Entry

#: Hash of the empty journal.
EMPTY = bytes(16)


@dataclass(frozen=True)
class Record:
    """An entry on its way into a journal.

    Attributes:
        entry: the entry.
        payload: its bytes.
        head: hash of the journal up to and with it (16 bytes).
        signature: the server's, of the entry's bytes; empty where it was not kept.
    """

    entry: Entry
    payload: bytes
    head: bytes
    signature: bytes = b""


@dataclass(frozen=True)
class Row:
    """A round of a journal as it lies on the disk, which may be damaged.

    Attributes:
        round: the round.
        payload: the entry's bytes.
        signature: of them; empty where it was not kept.
        head: hash of the journal up to and with it.
    """

    round: int
    payload: bytes
    signature: bytes
    head: bytes

    @property
    def signed(self) -> bytes:
        """The entry as it travels."""
        return self.payload + self.signature


#: Raises MessageError unless bytes are an entry and the server's signature of it, for a journal with a hash.
Check = Callable[[bytes, bytes], None]


def find_damage(row: Row, before: bytes, check: Check | None) -> str:
    """What of a row does not fit a journal with the hash ``before``: entry, signature or hash; "" where all does.

    With a check, only the hash is blamed where entry and signature agree; without, an entry for both.
    """
    signed = True
    if check is not None and row.signature:
        try:
            check(row.signed, before)
        except MessageError:
            signed = False
    if chain(before, row.payload) == row.head:
        return "" if signed else "signature"
    return "hash" if signed and check is not None and row.signature else "entry"


def make_records(entries: Iterable[Entry], head: bytes) -> Iterator[Record]:
    """Records of entries that follow a journal with a hash."""
    for entry in entries:
        payload = encode(entry)
        head = chain(head, payload)
        yield Record(entry, payload, head)


def chain(head: bytes, payload: bytes) -> bytes:
    """Hash (16 bytes) of a journal that has a hash and then an entry's bytes; the empty journal's is :data:`EMPTY`."""
    return hashlib.blake2b(head + payload, digest_size=16, person=b"fedspzo journal").digest()
