"""Signatures: good for one scope, one payload, one key; keys and pins on disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import raises

from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import Ack
from fedspzo.device_runtime.protocol.signing import (
    PIN,
    SIGNATURE_BYTES,
    Scope,
    Signer,
    check,
    read_pin,
    split,
    write_pin,
)

KEY = bytes(range(32))
VECTOR = (
    "1687792c13ec4e1c5b4fc0d667f97754e87ef965f0bb3b55550f76142f71d52b"
    "b91b23f234ded9e2ab96576ba2b32d67d74ea52a7489270fb6a4dcf1c0a7a404"
)
SCOPE = Scope("job", bytes(32), "phone-1", bytes(16))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    (tmp_path / "key").write_bytes(KEY)
    return Signer(tmp_path / "key")


def test_vectors(signer: Signer) -> None:
    """What is signed, the public key and the signature are formats too."""
    payload = encode(Ack(7, True))
    text = "6665647370 7a6f20312084636a6f625820" + "00" * 32 + "6770686f6e652d3150" + "00" * 16 + "84010407f5"
    assert SCOPE.text(payload).hex() == text.replace(" ", "")
    assert signer.public.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    signed = signer.sign(payload, SCOPE)
    assert signed[:-SIGNATURE_BYTES] == payload
    assert signed[-SIGNATURE_BYTES:].hex() == VECTOR
    check(signed, SCOPE, signer.public)


scopes = st.builds(Scope, st.text(max_size=5), st.binary(max_size=4), st.text(max_size=5), st.binary(max_size=4))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scopes, scopes, st.binary(min_size=1, max_size=40), st.integers(0, 10**6), st.integers(1, 255))
def test_a_signature_is_good_for_one_scope_and_payload(
    signer: Signer, scope: Scope, other: Scope, payload: bytes, place: int, change: int
) -> None:
    signed = signer.sign(payload, scope)
    check(signed, scope, signer.public)
    if other != scope:
        with raises("message.wrong-signature"):
            check(signed, other, signer.public)
    altered = bytearray(signed)
    altered[place % len(signed)] ^= change
    with raises("message.wrong-signature"):
        check(bytes(altered), scope, signer.public)


@given(scopes, scopes, st.binary(max_size=20), st.binary(max_size=20))
def test_no_two_scopes_sign_the_same(scope: Scope, other: Scope, payload: bytes, another: bytes) -> None:
    if (scope, payload) != (other, another):
        assert scope.text(payload) != other.text(another)


def test_what_is_no_signed_message() -> None:
    for blob in (b"", bytes(SIGNATURE_BYTES), bytes(70_000)):
        with raises("message.not-signed"):
            split(blob)
    with raises("message.wrong-signature"):
        check(bytes(100), SCOPE, b"not a key")


def test_keys_on_disk(tmp_path: Path) -> None:
    made = Signer(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert Signer(tmp_path / "new").public == made.public != Signer(tmp_path / "other").public
    (tmp_path / "new").write_bytes(b"short")
    with raises("state.key-unusable", tmp_path / "new"):
        Signer(tmp_path / "new")


def test_pins(tmp_path: Path) -> None:
    with raises("bundle.no-server-key", "fedspzo fetch"):
        read_pin(tmp_path)
    write_pin(tmp_path, KEY)
    write_pin(tmp_path, KEY)
    assert read_pin(tmp_path) == KEY
    with raises("bundle.other-server", "state folder"):
        write_pin(tmp_path, bytes(32))
    (tmp_path / PIN).write_text("00")
    with raises("bundle.server-key-damaged", "server.pub"):
        read_pin(tmp_path)
