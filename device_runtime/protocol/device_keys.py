"""A device's keys, one after the other: each signs which is the next, so that the device keeps its name."""

from __future__ import annotations

from collections.abc import Sequence

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, SIGNATURE_BYTES, Scope, Signer, check

#: Former keys that a device tells of at most, so that a :class:`~.messages.Sync` stays small.
MOST = 8


def hand_over(signer: Signer, device: str, key: bytes) -> bytes:
    """A device's former key, and its signature that another key is the device's from now on (96 bytes)."""
    return signer.public + signer.sign(key, _scope(device))[-SIGNATURE_BYTES:]


def former_keys(device: str, key: bytes, hand_overs: Sequence[bytes]) -> tuple[bytes, ...]:
    """The keys that a device had before one, the oldest first, which have signed so.

    Args:
        hand_overs: by :func:`hand_over`, the oldest first.

    Raises:
        MessageError: they do not lead to the key.
    """
    if len(hand_overs) > MOST or any(len(each) != KEY_BYTES + SIGNATURE_BYTES for each in hand_overs):
        raise MessageError("message.former-keys", f"it does not name up to {MOST} former keys")
    former = [each[:KEY_BYTES] for each in hand_overs]
    for each, following in zip(hand_overs, [*former, key][1:], strict=True):
        check(following + each[KEY_BYTES:], _scope(device), each[:KEY_BYTES])
    return tuple(former)


def _scope(device: str) -> Scope:
    """Of no job, so that it is the scope of nothing else."""
    return Scope("", b"", device)
