"""Sums of a pool's coefficients: they stand for the journal, bit for bit, on who was there and on who comes late."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_checkpoint
from refusals import raises
from victim import DEVICE, Victim

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import EntryBatch, Rebase
from fedspzo.device_runtime.protocol.plan import MAX_SUMS, Block, Plan, pool_seed
from fedspzo.device_runtime.protocol.sums import EMPTY_SUMS, Sums, check_continues, follow, follow_all
from fedspzo.device_runtime.replica import state as state_module
from fedspzo.device_runtime.replica.chain import EMPTY, chain
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

POOL, EVERY = 16, 5
Make = Callable[..., Plan]


def make_entries(make_plan: Make, count: int, stages: int = 5, **changes: object) -> list[Entry]:
    """A journal of shared and of own directions in turn, whose first block rests now and then, and whose cut moves."""
    numbers, entries = np.random.default_rng(0), []
    for round in range(1, count + 1):
        split = 2 if round > 7 else 3
        blocks = (Block(split, int(round % 3 > 0), 0.25, 1e-2), Block(stages, 4, 1.0, 1e-2))
        common = {
            "seed_pool": POOL,
            "rebase_every": EVERY,
            "blocks": blocks,
            "base_seed": round * 17,
            "shared": bool(round % 2),
        }
        plan = make_plan(**{**common, "round": round, **changes})
        names = [""] if plan.shared else ["device-1", "device-2"]
        scalars = numbers.standard_normal((len(names), plan.scalars)).astype(np.float32).tolist()
        own = zip(names, scalars, strict=True)
        entries.append(Entry(plan, tuple(Contribution(name, 1 / len(names), tuple(row)) for name, row in own)))
    return entries


def head_after(entries: Sequence[Entry]) -> bytes:
    head = EMPTY
    for entry in entries:
        head = chain(head, encode(entry))
    return head


def rebase_after(entries: Sequence[Entry]) -> Rebase:
    """What a server says of these entries, the last of which rebases, as it arrives."""
    sums = follow_all(EMPTY_SUMS, entries).sums
    assert sums is not None
    message = decode(encode(Rebase(len(entries), head_after(entries), sums)))
    assert isinstance(message, Rebase)
    assert message.sums == sums
    return message


def standing(replica: Replica) -> tuple[int, bytes, bytes, Sums | None]:
    return replica.round, replica.head, replica.digest(), replica.sums


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model whose matrices are stored so."""
    if request.param == "float32":
        return Bundle(request.getfixturevalue("bundle_folder"))
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(folder / "model", "llama-untied")
    target = Target(["torch"], [4], [24], weights=request.param)
    return export_bundle(str(checkpoint), load_task("sst2"), target, folder / "bundle")


def one_by_one(bundle: Bundle, entries: Sequence[Entry]) -> list[tuple[int, bytes, bytes, Sums | None]]:
    """Where a replica stands that was there from the beginning, before and after each round."""
    replica = Replica(bundle)
    found = [standing(replica)]
    for entry in entries:
        replica.apply(entry)
        found.append(standing(replica))
    return found


def test_late_and_present_replicas_are_the_same_bits(stored: Bundle, make_plan: Make, tmp_path: Path) -> None:
    """Entries one by one, in heaps, from a snapshot, and from the sums alone."""
    entries = make_entries(make_plan, 13, len(stored.manifest.stages))
    expected = one_by_one(stored, entries)
    assert len({digest for _, _, digest, _ in expected}) == 14
    for cuts in ([0, 13], [0, 4, 13], [0, 5, 11, 13], [0, 7, 10, 13]):
        replica = Replica(stored)
        for start, stop in pairwise(cuts):
            replica.apply_all(entries[start:stop])
            assert standing(replica) == expected[stop]
            replica.save_snapshot(tmp_path / "snapshot")
            replica = Replica(stored, tmp_path / "snapshot")
    for round in (5, 10):
        replica, message = Replica(stored), rebase_after(entries[:round])
        replica.apply_all(entries[:3])
        replica.rebase(message.round, message.head, message.sums)
        assert standing(replica) == expected[round]
        replica.apply_all(entries[round:])
        assert standing(replica) == expected[13]


def test_the_weights_are_those_of_the_entries_but_for_rounding(bundle: Bundle, make_plan: Make) -> None:
    rebased, plain, start = Replica(bundle), Replica(bundle), Replica(bundle)
    rebased.apply_all(make_entries(make_plan, 10))
    plain.apply_all(make_entries(make_plan, 10, rebase_every=0))
    assert rebased.digest() != plain.digest()
    assert plain.sums is None
    for index, weights in rebased.trainable.items():
        assert np.allclose(weights, plain.trainable[index], rtol=0, atol=1e-6)
        assert not np.allclose(weights, start.trainable[index], rtol=0, atol=1e-4)


@st.composite
def journals(draw: st.DrawFn) -> list[Entry]:
    """Short ones of one pool, whose cut, fan-outs, sides and steps change."""
    pool, distribution = draw(st.integers(1, 9)), draw(st.sampled_from(["rademacher", "gaussian"]))
    entries = []
    for round in range(1, draw(st.integers(1, 8)) + 1):
        split, fanouts = draw(st.integers(1, 4)), draw(st.tuples(st.integers(0, 2), st.integers(1, 3)))
        plan = Plan(
            round=round, base_seed=draw(st.integers(0, 99)), shared=False, distribution=distribution,
            steps=draw(st.integers(1, 2)), batch=1, epsilon=1e-3,
            blocks=(Block(split, fanouts[0], 0.5, 0.1), Block(5, fanouts[1], 1.0, 0.3)), deadline=1.0, digest=False,
            sides=draw(st.integers(1, 2)), seed_pool=pool, rebase_every=draw(st.integers(1, 4)),
        )  # fmt: skip
        scalars = st.lists(st.floats(-100, 100, width=32), min_size=plan.scalars, max_size=plan.scalars).map(tuple)
        devices = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
        entries.append(Entry(plan, tuple(Contribution(device, 0.5, draw(scalars)) for device in devices)))
    return entries


@settings(max_examples=100)
@given(journals(), st.integers(0, 8))
def test_sums_are_a_function_of_the_journal(entries: list[Entry], cut: int) -> None:
    """Each is that of its direction's coefficients in order, wherever the journal is taken up."""
    course = follow_all(EMPTY_SUMS, entries)
    assert course.sums is not None
    added: dict[tuple[int, int, int, int], np.float32] = {}
    for entry in entries:
        for block, (stages, directions) in enumerate(zip(entry.plan.stages(), entry.updates(), strict=True)):
            for direction in directions:
                at = block, stages.start, stages.stop, direction.seed
                added[at] = added.get(at, np.float32(0)) + np.float32(direction.coefficient)
    found = {
        (own.block, own.start, own.stop, direction.seed): direction.coefficient
        for own in course.sums.blocks
        for direction in own.directions()
    }
    assert found == {at: float(total) for at, total in added.items() if total}
    first = follow_all(EMPTY_SUMS, entries[:cut])
    rest = follow_all(first.sums, entries[cut:])
    assert rest.sums == course.sums
    assert course.superseded == max((entry.round for entry in entries if entry.plan.rebases), default=0)
    if rest.superseded:
        assert (rest.rebased, rest.superseded + len(entries[:cut])) == (course.rebased, course.superseded)
    assert decode(encode(Rebase(1, EMPTY, course.sums))) == Rebase(1, EMPTY, course.sums)


def test_a_journal_of_several_pools_has_no_sums(bundle: Bundle, make_plan: Make) -> None:
    """Its rounds then do not rebase, on any replica, and a job that asks for it is told."""
    entries = make_entries(make_plan, 10)
    for changes in ({"rebase_every": 0}, {"seed_pool": 8}, {"distribution": "gaussian"}):
        other = dataclasses.replace(entries[2], plan=dataclasses.replace(entries[2].plan, **changes))
        mixed = [*entries[:2], other, *entries[3:]]
        course = follow_all(EMPTY_SUMS, mixed)
        assert (course.sums, course.superseded) == (None, 0)
        assert follow(None, entries[0]) is None
        together = Replica(bundle)
        together.apply_all(mixed)
        assert standing(together) == one_by_one(bundle, mixed)[-1]
        with raises("plan.rebase-journal", "--rebase-every", "new state folder"):
            check_continues(course.sums, entries[0].plan)
    check_continues(EMPTY_SUMS, entries[0].plan)
    check_continues(None, make_plan())
    assert follow_all(follow_all(EMPTY_SUMS, entries).sums, make_entries(make_plan, 10)[4:5]).superseded == 1


def test_plans_that_contradict_themselves(make_plan: Make) -> None:
    with raises("plan.no-pool-to-rebase", "seed_pool", "7500"):
        make_plan(rebase_every=5)
    with raises("plan.no-pool-to-rebase", "not 7501"):
        make_plan(rebase_every=5, seed_pool=7501)
    assert make_plan(rebase_every=5, seed_pool=MAX_SUMS // 2).rebases is False
    assert make_plan(rebase_every=5, seed_pool=9, round=10).rebases


def test_the_largest_sums_fit_a_message(make_plan: Make) -> None:
    entries = make_entries(make_plan, 7, seed_pool=MAX_SUMS // 2)
    assert len(encode(rebase_after(entries))) < 60_100


def test_a_server_keeps_the_sums(bundle: Bundle, make_plan: Make, tmp_path: Path) -> None:
    """Of the last round that rebased, and what came after, through restarts."""
    entries = make_entries(make_plan, 13)
    for entry in entries:
        store = ServerStore(tmp_path, bundle.identity)
        closed = ClosedRound(entry.round, 0.0, (), 0.0, 0.0)
        store.close_round(entry, closed)
        assert store.sums == follow_all(EMPTY_SUMS, entries[: entry.round]).sums
        last = entry.round - entry.round % EVERY
        assert store.rebase == (rebase_after(entries[:last]) if last else None)
        del store


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_restart_continues(
    bundle: Bundle, make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(state_module, "SNAPSHOT_EVERY", every)
    entries = make_entries(make_plan, 12)
    expected = one_by_one(bundle, entries)
    for entry in entries:
        state = DeviceState(tmp_path, bundle)
        state.apply(entry)
        state.close()
        state = DeviceState(tmp_path, bundle)
        assert standing(state.replica) == expected[entry.round]
        state.close()


def test_damaged_sums_are_named(bundle: Bundle, make_plan: Make, tmp_path: Path) -> None:
    state = DeviceState(tmp_path, bundle)
    state.apply_all(make_entries(make_plan, 3))
    state.snapshot()
    state.close()
    file = tmp_path / "snapshot.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # sums come last
    file.write_bytes(content)
    with raises("state.snapshot-damaged", "its sums do not match their digest"):
        DeviceState(tmp_path, bundle)


def test_a_late_device_goes_on_from_the_sums(victim: Victim, bundle: Bundle, make_plan: Make) -> None:
    entries = make_entries(make_plan, 12)
    expected = one_by_one(bundle, entries)
    victim.state.apply_all(entries[:2])
    message = rebase_after(entries[:10])
    victim.hear(victim.sign(message, DEVICE, head=head_after(entries[:2])))
    assert standing(victim.state.replica) == expected[10]
    victim.hear(victim.sign(message, DEVICE, head=head_after(entries[:2])))  # again
    victim.hear(victim.sign(rebase_after(entries[:5]), DEVICE, head=head_after(entries[:10])))  # late
    assert standing(victim.state.replica) == expected[10]
    signed = [victim.sign(entries[n], head=head_after(entries[:n])) for n in (10, 11)]
    victim.hear(victim.sign(EntryBatch(tuple(signed)), DEVICE))
    assert standing(victim.state.replica) == expected[12]
    victim.state.close()
    again = DeviceState(victim.state.folder, victim.state.replica.bundle)
    assert standing(again.replica) == expected[12]


def test_what_no_server_says_changes_nothing(
    victim: Victim, make_plan: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = make_entries(make_plan, 10)
    victim.state.apply_all(entries[:2])
    start, head = standing(victim.state.replica), head_after(entries[:2])
    message = rebase_after(entries)
    other = dataclasses.replace(message.sums.blocks[-1], stop=99)
    beyond = dataclasses.replace(message.sums, blocks=(*message.sums.blocks[:-1], other))
    damaged = bytearray(victim.sign(message, DEVICE, head=head))
    damaged[-100] ^= 1
    for signed in (
        victim.sign(message, "b", head=head),
        victim.sign(message, DEVICE, head=EMPTY),  # for a device that stands elsewhere
        victim.sign(message, DEVICE, head=head, job="another"),
        victim.sign(message, DEVICE, head=head, signer=victim.state.signer),
        victim.sign(dataclasses.replace(message, sums=beyond), DEVICE, head=head),
        bytes(damaged),
    ):
        victim.hear(signed)
        assert standing(victim.state.replica) == start
    assert "the sums need more than the 5 stages of this bundle" in caplog.text
    victim.hear(victim.sign(message, DEVICE, head=head))
    assert victim.standing[0] == 10


def test_sums_that_contradict_themselves_are_refused(make_plan: Make) -> None:
    sums = rebase_after(make_entries(make_plan, 5)).sums
    first, second = sums.blocks
    for changed, kind in (
        ({"blocks": (second, first)}, "plan.sums-blocks"),
        ({"blocks": (first, first)}, "plan.sums-blocks"),
        ({"blocks": (dataclasses.replace(first, stop=0),)}, "plan.sums-blocks"),
        ({"blocks": (dataclasses.replace(first, block=1 << 40),)}, "plan.sums-blocks"),
        ({"pool": 15}, "plan.sums-size"),
        ({"distribution": "cauchy"}, "plan.unknown-distribution"),
    ):
        with raises(kind):
            dataclasses.replace(sums, **changed)  # type: ignore[arg-type]
    blob = encode(Rebase(5, EMPTY, sums))
    with raises("message.contradictory", "15 seeds"):
        decode(blob.replace(b"\x83\x10\x6a", b"\x83\x0f\x6a", 1))
    with pytest.raises(MessageError):
        decode(blob[:-1])


def test_a_plan_without_it_is_as_it_was(make_plan: Make) -> None:
    """The field came later: what was written before it is read, and is written alike."""
    plan = make_plan(seed_pool=4)
    assert encode(plan)[0] == 0x8F  # 15 items
    assert decode(encode(plan)) == plan
    longer = make_plan(seed_pool=4, rebase_every=9)
    assert encode(longer) == b"\x90" + encode(plan)[1:] + b"\x09"
    assert decode(encode(longer)) == longer
    with raises("message.not-canonical"):
        decode(b"\x90" + encode(plan)[1:] + b"\x00")


def test_pool_seeds_are_as_they_were(make_plan: Make) -> None:
    """Golden: journals of pools that were written before stay what they are."""
    plan = make_plan(seed_pool=8)
    assert plan.seed("", 0, next(plan.paths(0))) in {pool_seed(8, 0, index) for index in range(8)}
    assert pool_seed(8, 1, 3) == 17958343564335711553
