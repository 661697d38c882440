"""Ed25519 signatures in pure Python, for devices without a wheel of `cryptography`.

RFC 8032, section 5.1. Signatures are checked as OpenSSL checks them, to the bit: S is below the group's order, R is
compared as bytes, cofactors are not multiplied away, and a public key's y is taken modulo p. (The package `ecdsa` takes
second encodings of R and refuses such keys: devices would differ on what is forged.) Nothing runs in constant time: on
a device that signs a message a round, nobody is near enough to time it.
"""

from __future__ import annotations

import hashlib
from functools import cache

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)  # of −1
#: Bits of a scalar that are multiplied at once.
_WINDOW = 4

#: Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


class PrivateKey:
    """A private key.

    Attributes:
        public: the public key (32 bytes).
    """

    def __init__(self, secret: bytes) -> None:
        """The key that 32 bytes are. Raises ValueError for any other number of bytes."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"an Ed25519 private key is {KEY_BYTES} bytes long")
        digest = hashlib.sha512(secret).digest()
        self._scalar = int.from_bytes(digest[:KEY_BYTES], "little") & (1 << 254) - 8 | 1 << 254
        self._prefix = digest[KEY_BYTES:]
        self.public = _encoded(_base_times(self._scalar))

    def sign(self, text: bytes) -> bytes:
        """The signature (64 bytes) of some bytes."""
        nonce = _hash(self._prefix, text) % _ORDER
        point = _encoded(_base_times(nonce))
        scalar = (nonce + _hash(point, self.public, text) * self._scalar) % _ORDER
        return point + scalar.to_bytes(KEY_BYTES, "little")


def verify(public: bytes, signature: bytes, text: bytes) -> bool:
    """Whether some bytes were signed by the owner of a public key; also False if it is not a key."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    point, scalar = signature[:KEY_BYTES], int.from_bytes(signature[KEY_BYTES:], "little")
    key = _decoded(public)
    if key is None or scalar >= _ORDER:
        return False
    x, y, z, t = key
    challenge = _hash(point, public, text) % _ORDER
    return _encoded(_add(_base_times(scalar), _times(challenge, _multiples((-x, y, z, -t))))) == point


def _hash(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def _add(p: _Point, q: _Point) -> _Point:
    """RFC 8032, 5.1.4: complete, so that it doubles as well."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _double(p: _Point) -> _Point:
    a, b = p[0] * p[0] % _P, p[1] * p[1] % _P
    h = a + b
    e, g = h - (p[0] + p[1]) ** 2 % _P, a - b
    f = 2 * p[2] * p[2] % _P + g
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiples(point: _Point) -> list[_Point]:
    multiples = [_NEUTRAL]
    for _ in range((1 << _WINDOW) - 1):
        multiples.append(_add(multiples[-1], point))
    return multiples


def _times(scalar: int, multiples: list[_Point]) -> _Point:
    product = _NEUTRAL
    for place in reversed(range(0, 256, _WINDOW)):
        for _ in range(_WINDOW):
            product = _double(product)
        product = _add(product, multiples[scalar >> place & (1 << _WINDOW) - 1])
    return product


@cache
def _base() -> list[list[_Point]]:
    """Multiples of the base point, for each window of a scalar."""
    point = _decoded((4 * pow(5, -1, _P) % _P).to_bytes(KEY_BYTES, "little"))
    assert point is not None
    tables = []
    for _ in range(0, 256, _WINDOW):
        tables.append(_multiples(point))
        point = _add(tables[-1][-1], point)
    return tables


def _base_times(scalar: int) -> _Point:
    product = _NEUTRAL
    for place, multiples in enumerate(_base()):
        product = _add(product, multiples[scalar >> place * _WINDOW & (1 << _WINDOW) - 1])
    return product


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(KEY_BYTES, "little")


def _decoded(encoding: bytes) -> _Point | None:
    """The point that a key is; None if it is not one. As OpenSSL: any y, and any sign of x = 0."""
    number = int.from_bytes(encoding, "little")
    sign, y = number >> 255, (number & (1 << 255) - 1) % _P
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if (v * x * x - u) % _P:
        x = x * _ROOT % _P
    if (v * x * x - u) % _P:
        return None
    if x & 1 != sign:
        x = -x % _P
    return x, y, 1, x * y % _P
