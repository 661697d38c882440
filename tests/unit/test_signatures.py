"""Ed25519 in Python alone is Ed25519 as the library has it: what it makes, and what it takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspzo.device_runtime.protocol.signatures import ByLibrary, InPython, scheme

LIBRARY, PYTHON = ByLibrary(), InPython()
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
#: RFC 8032, 7.1: secret key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
#: y of the points of small order: 1, −1, 0 and two more.
_SMALL = [
    1, P - 1, 0,
    2707385501144840649318225287225658788936804267575313519463743609750303021976,
    55188659117513257062467267217118295137698188065244968500265048394206261417927,
]  # fmt: skip
#: Encodings of points of small order and others with few bits, with y below p and not, with either sign.
ODD_POINTS = [
    (y | sign << 255).to_bytes(32, "little")
    for y in sorted({*_SMALL, *range(20), *(y + P for y in range(19))})
    for sign in (0, 1)
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), VECTORS)
def test_vectors_of_the_standard(secret: str, public: str, message: str, signature: str) -> None:
    for by in (LIBRARY, PYTHON):
        key = by.private_key(bytes.fromhex(secret))
        assert key.public.hex() == public
        assert key.sign(bytes.fromhex(message)).hex() == signature
        assert by.verify(key.public, bytes.fromhex(signature), bytes.fromhex(message))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 511), st.binary(max_size=3))
def test_both_sign_and_refuse_alike(secret: bytes, message: bytes, bit: int, more: bytes) -> None:
    theirs, ours = LIBRARY.private_key(secret), PYTHON.private_key(secret)
    signature = ours.sign(message)
    assert (ours.public, signature) == (theirs.public, theirs.sign(message))
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    scalar = int.from_bytes(signature[32:], "little")
    larger = signature[:32] + (scalar + ORDER).to_bytes(32, "little")  # the same to who does not reduce it
    for text in (message, message + more):
        for forged in (signature, bytes(flipped), larger, signature[:-1], signature + b"\0"):
            wanted = forged == signature and text == message
            assert LIBRARY.verify(ours.public, forged, text) == PYTHON.verify(ours.public, forged, text) == wanted


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=70), st.binary(max_size=9))
def test_both_refuse_garbage_alike(public: bytes, signature: bytes, message: bytes) -> None:
    assert not LIBRARY.verify(public, signature, message)
    assert not PYTHON.verify(public, signature, message)


def _takes_alike(keys: list[bytes]) -> int:
    taken = 0
    for public in keys:
        for point in ODD_POINTS:
            for scalar, message in ((0, b""), (0, b"a"), (ORDER, b"a"), (1, b"b")):
                signature = point + scalar.to_bytes(32, "little")
                wanted = LIBRARY.verify(public, signature, message)
                assert PYTHON.verify(public, signature, message) == wanted, (public.hex(), signature.hex(), message)
                taken += wanted
    return taken


def test_odd_keys_and_odd_signatures_are_taken_or_refused_alike() -> None:
    """Points of small order and second encodings of points: where implementations differ."""
    assert _takes_alike(ODD_POINTS[:3]) > 0


@pytest.mark.slow
def test_all_odd_keys_and_odd_signatures() -> None:
    assert _takes_alike(ODD_POINTS) > 0


@given(st.binary(max_size=40).filter(lambda secret: len(secret) != 32))
def test_a_key_of_another_length_is_none(secret: bytes) -> None:
    for by in (LIBRARY, PYTHON):
        with pytest.raises(ValueError, match="32 bytes"):
            by.private_key(secret)


def test_the_library_is_taken_where_it_is() -> None:
    assert isinstance(scheme(), ByLibrary)
