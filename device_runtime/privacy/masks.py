"""Masks that cancel in a sum: each pair of devices derives one from a secret of its own; one adds it, one subtracts it.

A mask is SHAKE-256 over the pair's key, the pair and what it is for, so it costs no message. Who lacks one pair's key
learns nothing from a masked vector but its length.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cbor2
import numpy as np

from fedspzo.device_runtime.protocol.agreement import PrivateKey

PSEUDONYM_BYTES = 16


@dataclass(frozen=True)
class Purpose:
    """What masks are for: those of another purpose do not cancel with them.

    Attributes:
        job: the job's name.
        bundle: identity of the job's bundle.
        plan: fingerprint of the plan that was measured for, which says the round and its attempt.
        group: hash of the group's members (see :func:`hash_group`).
    """

    job: str
    bundle: bytes
    plan: bytes
    group: bytes

    def text(self) -> bytes:
        """The bytes that stand for it."""
        return cbor2.dumps([self.job, self.bundle, self.plan, self.group])


def seed_attempt(seed: int, round: int, attempt: int) -> int:
    """A base seed (64 bits) that no other round or attempt has, with the upper half of another.

    Devices mask results of such alone, so that no server has one measurement made twice, in sums whose difference is
    one device's result.
    """
    said = struct.pack("<QQ", round, attempt)
    own = hashlib.blake2b(said, digest_size=4, person=b"fedspzo attempt").digest()
    return seed >> 32 << 32 | int.from_bytes(own, "little")


def pseudonym(job: str, bundle: bytes, key: bytes, agreement_key: bytes) -> bytes:
    """What a device is called in a job's groups (16 bytes): whoever lists it commits to both of its public keys."""
    text = cbor2.dumps([job, bundle, key, agreement_key])
    return hashlib.blake2b(text, digest_size=PSEUDONYM_BYTES, person=b"fedspzo pseudo").digest()


def hash_group(members: Sequence[bytes]) -> bytes:
    """16 bytes that stand for a group: members are pseudonyms, in order."""
    return hashlib.blake2b(b"".join(members), digest_size=16, person=b"fedspzo group").digest()


def pair_key(own: PrivateKey, partner: bytes) -> bytes:
    """The key (32 bytes) that a device shares with the owner of a public key.

    Raises:
        ValueError: it is no key, or one with which everybody's secret is zero.
    """
    first, second = sorted((own.public, partner))
    secret = own.agree(partner)
    return hashlib.blake2b(secret + first + second, digest_size=32, person=b"fedspzo pair").digest()


def mask(words: np.ndarray, own: bytes, keys: Mapping[bytes, bytes], purpose: Purpose) -> np.ndarray:
    """Words, int64 of shape (words,), under the masks of a group: uint32 of the same shape.

    Args:
        own: the device's pseudonym.
        keys: pseudonym → pair's key, of the other members.
    """
    masked = np.asarray(words).astype(np.uint32)  # modulo 2³², as all that follows
    text = purpose.text()
    for member, key in keys.items():
        # The pair is in it: otherwise who shows another's public key as its own has masks cancel within one device.
        pair = own + member if own < member else member + own
        stream = np.frombuffer(hashlib.shake_256(key + pair + text).digest(4 * len(masked)), "<u4")
        masked = masked + stream if own < member else masked - stream
    return masked


def unmask(masked: Sequence[np.ndarray]) -> np.ndarray:
    """The sum, int64, of the words of all members of a group, of which ``masked`` has each one's."""
    total = np.asarray(np.sum(masked, axis=0, dtype=np.uint32))
    return total.astype(np.int32).astype(np.int64)
