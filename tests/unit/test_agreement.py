"""X25519 in Python alone is X25519 as the standard and the library have it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedspzo.device_runtime.protocol.agreement import ByLibrary, InPython, key_agreement

LIBRARY, PYTHON = ByLibrary(), InPython()
P = 2**255 - 19
#: RFC 7748, 5.2: scalar, u coordinate, product.
PRODUCTS = [
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
]
#: RFC 7748, 5.2: the base point times itself so often.
ITERATED = {
    1: "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
    1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
}
#: RFC 7748, 6.1: two private keys with their public keys, and what they share.
ALICE = (
    "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
)
BOB = (
    "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
)
SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
#: u coordinates of points of small order, and of others with second encodings.
ODD = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    *(P - 1 + n for n in range(20)),
]


@pytest.mark.parametrize("by", [LIBRARY, PYTHON])
def test_products_of_the_standard(by: InPython | ByLibrary) -> None:
    for scalar, point, product in PRODUCTS:
        assert by.private_key(bytes.fromhex(scalar)).agree(bytes.fromhex(point)).hex() == product


@pytest.mark.parametrize(("times", "product"), [(1, ITERATED[1]), pytest.param(1000, ITERATED[1000], id="1000")])
def test_iterated_products_of_the_standard(times: int, product: str) -> None:
    scalar = point = (9).to_bytes(32, "little")
    for _ in range(times):
        scalar, point = PYTHON.private_key(scalar).agree(point), scalar
    assert scalar.hex() == product


@pytest.mark.parametrize("by", [LIBRARY, PYTHON])
def test_two_owners_of_the_standard_agree(by: InPython | ByLibrary) -> None:
    for (secret, public), (_, other) in ((ALICE, BOB), (BOB, ALICE)):
        key = by.private_key(bytes.fromhex(secret))
        assert key.public.hex() == public
        assert key.agree(bytes.fromhex(other)).hex() == SHARED


def _agreed(key: object, public: bytes) -> bytes | None:
    try:
        return key.agree(public)  # type: ignore[attr-defined, no-any-return]
    except ValueError:
        return None


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=33) | st.binary(min_size=32, max_size=32))
def test_both_agree_or_refuse_alike(secret: bytes, public: bytes) -> None:
    theirs, ours = LIBRARY.private_key(secret), PYTHON.private_key(secret)
    assert ours.public == theirs.public
    assert _agreed(ours, public) == _agreed(theirs, public)


def test_odd_keys_are_taken_or_refused_alike() -> None:
    """Points of small order give everybody the same secret; second encodings are reduced."""
    theirs, ours = LIBRARY.private_key(bytes(range(32))), PYTHON.private_key(bytes(range(32)))
    found = []
    for u in ODD:
        for top in (0, 1 << 255):
            public = (u | top).to_bytes(32, "little")
            found.append(_agreed(ours, public))
            assert found[-1] == _agreed(theirs, public), u
    assert None in found
    assert any(found)


def test_the_library_is_taken_where_it_is() -> None:
    assert isinstance(key_agreement(), ByLibrary)
