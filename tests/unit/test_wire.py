"""Messages: every one comes back as it went out, and nothing else gets in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated_message, read_message, sample_messages
from refusals import raises

from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.model.modes import MASKED
from fedspzo.device_runtime.protocol.codec import MAX_BYTES, decode, encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.glance import glance
from fedspzo.device_runtime.protocol.masked import Group, Inquiry, Masked, Partner, Partners, Ready
from fedspzo.device_runtime.protocol.messages import (  # fmt: skip
    Ack,
    Authorities,
    Decline,
    Dismissal,
    Energy,
    EntryBatch,
    Finish,
    HandOver,
    Hello,
    Keep,
    Message,
    Offer,
    Presence,
    Rebase,
    Refusal,
    Report,
    Result,
    Sync,
    Wanted,
)
from fedspzo.device_runtime.protocol.plan import UNITS, Block, Masking, Noise, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.protocol.sums import BlockSums, Sums

numbers = st.integers(0, 2**64 - 1)
rounds = st.integers(1, 2**31)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-6, 1e3)
single = st.floats(allow_nan=False, allow_infinity=False, width=32)
rows = st.tuples(st.integers(1, 9), st.integers(1, 4), positive, st.floats(-1e9, 1e9))
blocks = st.lists(rows, min_size=1, max_size=3).map(
    lambda drawn: tuple(Block(sum(row[0] for row in drawn[: i + 1]), *drawn[i][1:]) for i in range(len(drawn)))
)
plans = st.builds(
    Plan, rounds, numbers, st.booleans(), st.sampled_from(["rademacher", "gaussian"]), st.integers(1, 3),
    st.integers(1, 64), positive, blocks, positive, st.booleans(), st.booleans(), st.integers(1, 2),
    st.integers(0, 1 << 20),
)  # fmt: skip
plans = st.builds(
    lambda plan, pool, rebase: replace(plan, seed_pool=pool, rebase_every=rebase) if rebase else plan,
    plans, st.integers(1, 5000), st.integers(0, 1 << 20),
)  # fmt: skip
plans = st.builds(
    lambda plan, rule, bound: replace(plan, aggregate=rule, bound=bound),
    plans, st.sampled_from(["", "median"]), st.just(0.0) | positive,
)  # fmt: skip
maskings = st.builds(
    Masking, st.sampled_from(MASKED), st.integers(1, 9), positive, st.integers(4, 9), st.integers(9, 99)
)
plans = st.builds(
    lambda plan, masking: replace(plan, shared=True, masking=masking) if masking else plan,
    plans, st.lists(maskings, max_size=1).map(tuple),
)  # fmt: skip
noises = st.builds(
    Noise, st.sampled_from(UNITS), positive, st.integers(1, 1 << 20), st.integers(1, 1 << 40), st.integers(1, 4)
)
plans = st.builds(
    lambda plan, noise: replace(plan, shared=True, steps=1, energy=False, noise=noise) if noise else plan,
    plans, st.lists(noises, max_size=1).map(tuple),
)  # fmt: skip


@st.composite
def sums(draw: st.DrawFn) -> Sums:
    pool, stops = draw(st.integers(1, 20)), sorted(draw(st.sets(st.integers(1, 9), max_size=3)))
    coefficients = st.lists(single, min_size=pool, max_size=pool).map(tuple)
    own = [BlockSums(n, start, stop, draw(coefficients)) for n, (start, stop) in enumerate(pairwise([0, *stops]))]
    return Sums(pool, draw(st.sampled_from(["rademacher", "gaussian"])), tuple(own))


energies = st.lists(st.builds(Energy, finite, finite, st.booleans()), max_size=2).map(tuple)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    plan = draw(plans)
    scalars = st.lists(single, min_size=plan.scalars, max_size=plan.scalars).map(tuple)
    return Entry(
        plan, tuple(draw(st.lists(st.builds(Contribution, st.text(max_size=8), positive, scalars), max_size=3)))
    )


partners = st.builds(
    Partner, st.binary(max_size=32), st.binary(max_size=32), st.binary(max_size=64), st.binary(max_size=64)
)
messages = st.one_of(
    plans,
    entries(),
    st.builds(
        Result,
        rounds,
        st.binary(max_size=8),
        st.lists(single, max_size=40).map(tuple),
        finite,
        numbers,
        finite,
        st.binary(max_size=16),
        energies,
    ),
    st.builds(Ack, rounds, st.booleans()),
    st.builds(
        Sync,
        st.binary(max_size=32),
        numbers,
        st.binary(max_size=32),
        numbers,
        st.binary(max_size=16),
        numbers,
        finite,
        st.booleans(),
        st.booleans(),
        st.text(max_size=9),
        st.lists(st.text(max_size=9), max_size=3).map(tuple),
        numbers,
        st.binary(max_size=8),
    ),
    st.builds(Authorities, st.lists(st.binary(max_size=99), max_size=3).map(tuple)),
    st.builds(HandOver, st.binary(max_size=32), st.binary(max_size=32), numbers),
    st.builds(Refusal, st.binary(max_size=32), numbers, st.text(max_size=100)),
    st.builds(EntryBatch, st.lists(st.binary(max_size=300), max_size=4).map(tuple)),
    st.builds(Offer, numbers, st.binary(max_size=32), numbers, st.text(max_size=99)),
    st.builds(Finish, rounds),
    st.builds(Report, numbers, st.binary(max_size=16), numbers, numbers, numbers, numbers, energies),
    st.builds(Presence, st.booleans(), numbers),
    st.builds(Hello),
    st.builds(Dismissal, numbers),
    st.builds(Rebase, rounds, st.binary(max_size=16), sums()),
    st.builds(Decline, rounds, st.text(max_size=100)),
    st.builds(Keep, numbers, numbers),
    st.builds(Wanted, numbers),
    st.builds(Ready, rounds, st.binary(max_size=8), st.binary(max_size=16), st.lists(partners, max_size=1).map(tuple)),
    st.builds(Group, rounds, st.binary(max_size=8), st.lists(st.binary(max_size=16), max_size=9).map(tuple)),
    st.builds(Masked, rounds, numbers, st.binary(max_size=99)),
    st.builds(Inquiry, st.lists(st.binary(max_size=16), max_size=9).map(tuple)),
    st.builds(Partners, st.lists(partners, max_size=4).map(tuple)),
)


@settings(max_examples=300, deadline=None)
@given(messages)
def test_every_message_comes_back(message: Message) -> None:
    assert decode(encode(message)) == message


def test_a_sync_of_a_device_from_before_it_said_its_version_has_the_bytes_of_then() -> None:
    sync = Sync(b"k", 1, b"b", 2, b"h", 3, 0.5, True, True)
    assert encode(sync).hex() == "8b0105416b0141620241680" + "3f93800f5f5"
    later = [
        *(replace(sync, version="1.0"), replace(sync, version="1.0", can=("bound",)), replace(sync, can=("x",))),
        *(replace(sync, hand_overs=1), replace(sync, authorities=b"a")),
    ]
    assert [len(cbor2.loads(encode(each))) - 2 for each in (sync, *later)] == [9, 10, 11, 11, 12, 13]
    assert [decode(encode(each)) for each in (sync, *later)] == [sync, *later]


def test_a_word_on_backups_that_does_not_tell_of_rounds_has_the_bytes_of_before() -> None:
    assert [encode(message).hex() for message in (Keep(4), Keep(4, 40))] == ["83011004", "840110041828"]
    with raises("message.not-canonical"):
        decode(bytes.fromhex("8401100400"))


@settings(max_examples=100, deadline=None)
@given(messages)
def test_the_first_bytes_say_what_a_message_is(message: Message) -> None:
    round = message.round if isinstance(message, Plan | Entry | Finish | Rebase) else 0
    assert glance(encode(message)) == (type(message), round)


@settings(max_examples=500, deadline=None)
@given(messages, st.data())
def test_a_mutated_message_is_a_message_or_refused(message: Message, data: st.DataObject) -> None:
    blob = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        assert encode(decode(bytes(blob)))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(blob: bytes) -> None:
    with pytest.raises(MessageError):
        decode(blob)


@pytest.mark.parametrize(
    ("record", "kind", "field"),
    [
        ([2, 4, 1], "message.version", ""),
        ([1, 99, 1], "message.unknown-type", ""),
        ([1, 4], "message.field-count", "Ack"),
        ([1, 4, -1, True], "message.field-type", "Ack.round"),
        ([1, 4, True, True], "message.field-type", "Ack.round"),
        ([1, 4, 1 << 64, True], "message.not-plain", "tag"),
        ([1, 4, 1.0, True], "message.field-type", "Ack.round"),
        ([1, 4, 1, 1], "message.field-type", "Ack.counted"),
        ([1, 6, b"", 1, "x" * 5000], "message.field-type", "Refusal.reason"),
        ([1, 12, ["x"]], "message.field-type", "EntryBatch.entries"),
        ([1, 12, b""], "message.field-type", "EntryBatch.entries"),
        ([1, 3, 1, b"", b"123", 0.0, 1, 0.0, b"", []], "message.not-float32", "Result.scalars"),
        (
            [1, 3, 1, b"", np.float32("nan").tobytes(), 0.0, 1, 0.0, b"", []],
            "message.not-finite",
            "Result.scalars",
        ),
        (
            [1, 3, 1, b"", np.float32("inf").tobytes(), 0.0, 1, 0.0, b"", []],
            "message.not-finite",
            "Result.scalars",
        ),
        ([1, 3, 1, b"", b"", float("nan"), 1, 0.0, b"", []], "message.field-type", "Result.loss"),
        ([1, 3, 1, b"", b"", 2**2000, 1, 0.0, b"", []], "message.not-plain", "tag"),
        ([1, 3, 1, b"", b"", 1, 1, 0.0, b"", []], "message.field-type", "Result.loss"),
        ([1, 3, 1, b"", b"", 0.0, 1, 0.0, b"", [[1.0, 1.0]]], "message.field-count", "Energy"),
        (
            [1, 3, 1, b"", b"", 0.0, 1, 0.0, b"", [[1.0, float("inf"), True]]],
            "message.field-type",
            "Energy.uncertainty",
        ),
        ([2**20000, 3], "message.not-plain", "tag"),
        ([1, 2**20000], "message.not-plain", "tag"),
        ([1, 4, [[]], True], "message.field-type", "Ack.round"),
        ({"a": 1}, "message.not-plain", "map"),
        ([], "message.foreign", ""),
    ],
)
def test_what_is_wrong_is_said(record: object, kind: str, field: str) -> None:
    with raises(kind, field):
        decode(cbor2.dumps(record))


def test_a_plan_with_fanouts_beyond_all_measure_is_refused(make_plan: Callable[..., Plan]) -> None:
    """Their product has more digits than Python prints."""
    record = cbor2.loads(encode(make_plan()))
    record[9] = [[stop, 2**63, 1.0, 0.0] for stop in range(1, 3000)]
    with raises("message.contradictory", "fanouts"):
        decode(cbor2.dumps(record, canonical=True))


@pytest.mark.parametrize("seed", range(10))
def test_mutated_messages_are_messages_or_refused(make_plan: Callable[..., Plan], seed: int) -> None:
    """A thousand or two; benchmarks/mutated_inputs.py reads a million."""
    random = Random(seed)
    for blob in sample_messages(make_plan()):
        for _ in range(10):
            mutated = mutated_message(blob, random)
            if read_message(mutated) == "":
                assert glance(mutated)[0] is type(decode(mutated))


def test_a_message_has_one_form() -> None:
    for blob in (encode(Ack(7, True)) + b"\x00", bytes.fromhex("8401041807f5")):
        with raises("message.not-canonical"):
            decode(blob)
    with raises("message.not-plain", "indefinite"):
        decode(bytes.fromhex("9f010407f5ff"))


def test_the_decoder_sees_plain_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tag 35 compiles a pattern, tag 2 makes a number of any size; arrays nest and count without end."""
    seen: list[bytes] = []
    monkeypatch.setattr(cbor2, "loads", seen.append)
    hostile = {
        "message.not-plain": (b"\x83\x01\x04\xd8\x23\x63(a)", b"\xc2\x41\x01", b"\xa0", b"\xf7", b"\x5f\xff", b"\x1c"),
        "message.too-deep": (b"\x81" * 5000 + b"\x00",),
        "message.too-many-values": (b"\x99\xff\x00" + bytes(0xFF00),),
        "message.not-cbor": (b"", b"\x19\x01", b"\x9b" + b"\xff" * 8, b"\x7b" + b"\xff" * 8, b"\x82\x01"),
    }
    for kind, blobs in hostile.items():
        for blob in blobs:
            with raises(kind):
                decode(blob)
    assert not seen


def test_sizes_are_limited() -> None:
    with raises("message.too-large", str(MAX_BYTES)):
        decode(bytes(MAX_BYTES + 1))
    with raises("message.too-large", str(MAX_BYTES)):
        encode(Result(1, b"", (0.0,) * 20000, 0.0, 1, 0.0, b""))


def test_a_result_stays_within_its_budget() -> None:
    """At most 128 bytes and 4 for each scalar, signed; 13 more with joules, in single precision."""
    result = Result(2**31, bytes(8), (1.5,) * 16, 1.2345678, 64, 0.123456789, bytes(16))
    assert len(encode(result)) + SIGNATURE_BYTES <= 128 + 4 * 16
    joules, uncertainty = np.array([123.456, 1.2345], np.float32).tolist()
    assert len(encode(replace(result, energy=(Energy(joules, uncertainty, True),)))) <= len(encode(result)) + 13


def test_test_vector() -> None:
    """The bytes of a message are a format too."""
    result = Result(3, b"12345678", (1.0, -2.0), 0.5, 8, 0.25, b"")
    assert encode(result).hex() == "8a01030348313233343536373848" + "0000803f000000c0f9380008f934004080"
    energy = replace(result, energy=(Energy(12.5, 0.25, False),))
    assert encode(energy).hex() == encode(result).hex()[:-2] + "8183f94a40f93400f4"
    assert encode(Ack(7, True)).hex() == "84010407f5"


def test_a_plan_that_says_nothing_of_what_came_later_has_the_bytes_of_before(make_plan: Callable[..., Plan]) -> None:
    """So old journals are read, and devices of before understand a job without a bound."""
    plan = make_plan()
    later = [replace(plan, seed_pool=4, rebase_every=2), replace(plan, aggregate="mean"), replace(plan, bound=2.0)]
    assert [len(cbor2.loads(encode(each))) - 2 for each in (plan, *later)] == [13, 14, 15, 16]
    later.append(replace(plan, noise=(Noise("device", 100.0, 1 << 15, 1 << 30, 4),)))
    assert [decode(encode(each)) for each in later] == later
    short = cbor2.loads(encode(plan))
    with raises("message.not-canonical"):
        decode(cbor2.dumps([*short, 0], canonical=True))
    with raises("message.field-count", "Plan"):
        decode(cbor2.dumps(short[:-1], canonical=True))
