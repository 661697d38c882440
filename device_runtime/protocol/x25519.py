"""X25519 in pure Python, for devices without a wheel of `cryptography` (RFC 7748, section 5).

Nothing runs in constant time: a device agrees with each partner once a job, and nobody is near enough to time it.
"""

from __future__ import annotations

KEY_BYTES = 32
_P = 2**255 - 19
_A24 = 121665
_BASE = (9).to_bytes(KEY_BYTES, "little")


class PrivateKey:
    """A private key.

    Attributes:
        public: the public key (32 bytes).
    """

    def __init__(self, secret: bytes) -> None:
        """The key that 32 bytes are. Raises ValueError for any other number of bytes."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"an X25519 private key is {KEY_BYTES} bytes long")
        self._scalar = int.from_bytes(secret, "little") & (1 << 254) - 8 | 1 << 254
        self.public = _times(self._scalar, _BASE)

    def agree(self, public: bytes) -> bytes:
        """The secret (32 bytes) shared with the owner of a public key.

        Raises:
            ValueError: it is no key, or one with which everybody's secret is zero.
        """
        if len(public) != KEY_BYTES:
            raise ValueError(f"an X25519 public key is {KEY_BYTES} bytes long")
        shared = _times(self._scalar, public)
        if not any(shared):
            raise ValueError("the public key is of small order")
        return shared


def _times(scalar: int, point: bytes) -> bytes:
    """The Montgomery ladder over u coordinates."""
    x1 = (int.from_bytes(point, "little") & (1 << 255) - 1) % _P
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for place in range(254, -1, -1):
        bit = scalar >> place & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b = x2 + z2, x2 - z2
        aa, bb = a * a % _P, b * b % _P
        e = aa - bb
        da, cb = (x3 - z3) * a % _P, (x3 + z3) * b % _P
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + _A24 * e) % _P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(KEY_BYTES, "little")
