"""A device that was away: entries in batches, a snapshot where that is quicker; data and power as they are now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from refusals import raises
from victim import BLOCKS, DEVICE, Victim

from fedspzo.broker.server.http import serve
from fedspzo.device_runtime.data.live import LiveData
from fedspzo.device_runtime.model.bundle import Bundle, file_hash
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import EntryBatch, Offer
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.chain import EMPTY, chain
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica


@pytest.fixture
def ahead(
    pinned: Bundle, make_plan: Callable[..., Plan], tmp_path: Path
) -> Iterator[tuple[list[Entry], Replica, Offer]]:
    """A journal of 80 rounds, the replica at its end, and the offer of its snapshot, which can be had."""
    entries = [
        Entry(make_plan(round=n, base_seed=n, blocks=BLOCKS), (Contribution("", 1.0, (1.0, -2.0, 0.5, n)),))
        for n in range(1, 81)
    ]
    replica, file = Replica(pinned), tmp_path / "snapshot"
    for entry in entries:
        replica.apply(entry)
    replica.save_snapshot(file)
    with serve(pinned, CollectorRegistry(), lambda: {80: file}) as url:
        sha256 = bytes.fromhex(file_hash(file))
        yield (
            entries,
            replica,
            Offer(80, sha256, file.stat().st_size, f"{url}/snapshot/80"),
        )


def test_a_snapshot_where_the_journal_is_slow(victim: Victim, ahead: tuple[list[Entry], Replica, Offer]) -> None:
    _, replica, offer = ahead
    victim.agent._catch_up.pace.applied(1, 10.0)
    victim.hear(victim.sign(offer, DEVICE))
    assert victim.standing == (80, replica.head, replica.digest())
    folder = victim.state.folder
    victim.state.close()
    again = DeviceState(folder, victim.state.replica.bundle)
    assert again.replica.digest() == replica.digest()


def test_the_journal_where_it_is_quick(victim: Victim, ahead: tuple[list[Entry], Replica, Offer]) -> None:
    entries, replica, offer = ahead
    head, signed = EMPTY, []
    for entry in entries:
        signed.append(victim.sign(entry, head=head))
        head = chain(head, encode(entry))
    victim.hear(victim.sign(EntryBatch(tuple(signed[:2])), DEVICE))
    victim.agent._catch_up.pace.applied(10**9, 0.0)  # as if it had been very quick so far
    victim.hear(victim.sign(offer, DEVICE))
    assert victim.standing[0] == 2
    victim.hear(victim.sign(EntryBatch(tuple(signed)), DEVICE))
    assert victim.standing == (80, replica.head, replica.digest())
    victim.hear(victim.sign(offer, DEVICE))  # late
    assert victim.standing[0] == 80


def test_a_snapshot_that_is_not_the_one(
    victim: Victim, ahead: tuple[list[Entry], Replica, Offer], tmp_path: Path
) -> None:
    _, _, offer = ahead
    victim.agent._catch_up.pace.applied(1, 10.0)
    start = victim.standing
    for changed in (
        replace(offer, sha256=bytes(32)),
        replace(offer, size=offer.size - 1),
        replace(offer, url="ftp://x"),
    ):
        victim.hear(victim.sign(changed, DEVICE))
        assert victim.standing == start
    damaged = tmp_path / "damaged"
    content = bytearray((tmp_path / "snapshot").read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with raises("state.snapshot-damaged", "--afresh"):
        victim.state.adopt(damaged)
    assert victim.standing == start


def test_examples_that_are_added_while_it_runs(
    bundle: Bundle, tmp_path: Path, write_examples: Callable[[Path, int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    file = write_examples(tmp_path / "data.jsonl", 5)
    data = LiveData(str(file), bundle, tmp_path / "tokens.npz")
    assert len(data.current()) == 5
    with file.open("a") as stream:
        stream.write(json.dumps({"text": "call mum now", "label": "call"}) + "\n")
    assert len(data.current()) == 6
    with file.open("a") as stream:
        stream.write('{"text": "half a li')
    assert len(data.current()) == 6
    with file.open("a") as stream:
        stream.write('ne", "label": "call"}\n')
    assert len(data.current()) == 7
    file.unlink()
    assert len(data.current()) == 7
    assert "cannot be read" in caplog.text


def test_a_bad_line_hides_no_other(
    bundle: Bundle, tmp_path: Path, write_examples: Callable[[Path, int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither those before nor those after it, now or at the next start; it is named once."""
    file = write_examples(tmp_path / "data.jsonl", 5)
    data = LiveData(str(file), bundle, tmp_path / "tokens.npz")
    bad = ["no JSON", '{"text": "call mum", "label": "dance"}', '{"label": "call"}', '"a text"', "\ud800"]
    good = json.dumps({"text": "call mum now", "label": "call"})
    for count, line in enumerate(bad, start=1):
        with file.open("ab") as stream:
            stream.write(f"{line}\n{good}\n".encode("utf-8", "surrogatepass"))
        assert len(data.current()) == 5 + count
    for count in range(len(bad)):
        assert caplog.text.count(f"{file}, line {6 + 2 * count}: ") == 1
    caplog.clear()
    assert len(LiveData(str(file), bundle, tmp_path / "other.npz").current()) == 10
    assert f"{file}, line 6: it is not JSON" in caplog.text
    file.write_text("\n".join(bad[:3]))
    assert len(data.current()) == 10
    assert "the examples stay as they were" in caplog.text
    with raises("data.not-json", "line 1"):
        LiveData(str(file), bundle, tmp_path / "none.npz")


def test_a_device_that_begins_afresh(pinned: Bundle, victim: Victim, ahead: tuple[list[Entry], Replica, Offer]) -> None:
    """It forgets its replica and not who it is."""
    folder, key = victim.state.folder, victim.state.signer.public
    start = victim.state.replica.digest()
    victim.state.apply(ahead[0][0])
    victim.state.snapshot()
    victim.state.close()
    again = DeviceState(folder, pinned, afresh=True)
    assert (again.device, again.signer.public) == (DEVICE, key)
    assert (again.replica.round, again.replica.digest()) == (0, start)
