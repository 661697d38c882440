"""The messages of a round whose results are masked: see docs/protocol.md, "The secure sum".

Ready (device) → Group (server) → Inquiry (device) → Partners (server) → Masked (device)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Partner:
    """A device's keys, for those that it shares masks with.

    Attributes:
        key: its public key of signatures (32 bytes).
        agreement: its public key of X25519 (32 bytes).
        signature: of the second by the first, for a job and a bundle (64 bytes).
        certificate: the enrolment key's signature of the first (64 bytes); empty where the bundle names none.
    """

    key: bytes
    agreement: bytes
    signature: bytes
    certificate: bytes = b""


@dataclass(frozen=True)
class Ready:
    """Device → server: it has measured, and would now send its result in a sum.

    Attributes:
        round: the plan's round.
        plan: the plan's fingerprint.
        digest: of the replica that the round started from, or empty when the plan did not ask.
        partner: its keys, once, until the server has named it in a group in this session; then empty.
    """

    round: int
    plan: bytes
    digest: bytes
    partner: tuple[Partner, ...]


@dataclass(frozen=True)
class Group:
    """Server → the devices of a group: whose results are added up.

    Attributes:
        round: the plan's round.
        plan: the plan's fingerprint.
        members: pseudonyms (16 bytes each), in order.
    """

    round: int
    plan: bytes
    members: tuple[bytes, ...]


@dataclass(frozen=True)
class Masked:
    """Device → server: its result, under the masks of its group.

    Attributes:
        round: the plan's round.
        attempt: of the round.
        words: uint32, little-endian.
    """

    round: int
    attempt: int
    words: bytes


@dataclass(frozen=True)
class Inquiry:
    """Device → server: members of its group whose keys it lacks.

    Attributes:
        members: pseudonyms.
    """

    members: tuple[bytes, ...]


@dataclass(frozen=True)
class Partners:
    """Server → device: keys of other devices of the job, each as its owner has signed it."""

    partners: tuple[Partner, ...]
