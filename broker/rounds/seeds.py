"""All of a job's randomness: numbers that depend on its seed, the round and a purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, round: int, purpose: str) -> int:
    """64 bits that depend on nothing but the arguments."""
    message = f"{seed}/{round}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, person=b"fedspzo round 1").digest(), "little")
