"""The real thing, small: broker, server and devices as processes; what they do when others misbehave or die."""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace
from pathlib import Path

import cbor2
import psutil
import pytest
from federation import JOB, Peer, Processes, assert_equal_replicas, broker, finish, held, processes, read_rounds
from patience import PATIENCE_S, wait_until
from private import exposed

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.rounds.job import check_job, plan_round
from fedspzo.broker.server.signing_key import KEY
from fedspzo.broker.server.state_folder import read_journal
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.engines.executorch_build import find_compiler
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.messages import Ack, EntryBatch, Presence, Rebase, Refusal, Result, Sync, Wanted
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.options.job import add_job_options, make_job

__all__ = ["broker", "processes"]


@pytest.mark.parametrize("seeds", ["shared", "device"])
def test_a_job_from_start_to_end(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path, seeds: str
) -> None:
    watcher = Peer(broker, "watcher", [Topics("default").up("+")], tmp_path / "key", bundle)
    engines = {"a": "litert", "b": "litert", "c": "executorch" if find_compiler() else "litert"}
    devices = {name: processes.device(name, engine=engine) for name, engine in engines.items()}
    for name, process in devices.items():
        library, other = ("libLiteRt", "libexecutorch")[:: 1 if engines[name] == "litert" else -1]
        while library not in (maps := Path(f"/proc/{process.pid}/maps").read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        assert not [found for found in ("libtorch", "transformers", other) if found in maps]
    server = processes.server("--rounds", "12", "--seeds", seeds)
    progress, last, errors = finish(server)
    assert [event["round"] for event in progress if "results" in event][-1] == 12
    assert [event["round"] for event in progress if "accuracy" in event][-1] == 12
    # A result that was sent again, for want of a timely acknowledgement, may come after its round.
    assert last["counts"].pop("results accepted") == 24, errors
    assert last["counts"].keys() <= {"results late"}, errors
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})
    up = [(topic.rsplit("/", 1)[1], payload) for topic, payload in watcher.wait_quiet()]
    for name, report in last["devices"].items():
        assert report["bytes_up"] <= sum(len(payload) for device, payload in up if device == name)
        # One sync and one report besides the results, each of which may have been sent again.
        once = sum(map(len, {payload for device, payload in up if device == name}))
        assert 0 < once <= report["results"] * (128 + 4 * 4) + 500
    watcher.close()
    for process in devices.values():
        assert process.wait(PATIENCE_S) == 0
    assert not [path for name in ("a", "b", "c", "server") for path in exposed(tmp_path / name)]


def test_a_killed_device_and_a_killed_server_go_on(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    options = ("--rounds", "40", "--deadline", "3")
    devices = {name: processes.device(name) for name in ("a", "b", "c")}
    server = processes.server(*options)
    read_rounds(server, 5)
    devices["a"].send_signal(signal.SIGKILL)
    read_rounds(server, 4)
    devices["a"].wait()
    processes.device("a")
    read_rounds(server, 8)
    server.send_signal(signal.SIGKILL)
    server.wait()
    progress, last, _ = finish(processes.server(*options))
    rounds = [event["round"] for event in progress if "results" in event]
    assert rounds[-1] == 40
    assert rounds == list(range(rounds[0], 41))
    assert [entry.round for entry in read_journal(tmp_path / "server")] == list(range(1, 41))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})


def test_a_device_that_comes_late_catches_up(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    watcher = Peer(broker, "watcher", [Topics("default").down("late")], tmp_path / "key", bundle)
    devices = [processes.device(name) for name in ("a", "b")]
    server = processes.server("--rounds", "30", "--devices", "2")
    read_rounds(server, 10)
    with held(*devices):  # or the job may be over before the newcomer has started
        processes.device("late")
        watcher.wait(EntryBatch)
    watcher.close()
    _, last, _ = finish(server)
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "late"})


def test_a_device_that_comes_late_catches_up_by_sums(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    """With seeds from a pool it is sent what the journal adds up to, and no entry up to there; a restart keeps it."""
    options = ("--rounds", "40", "--devices", "2", "--seeds", "device", "--seed-pool", "64", "--rebase-every", "10")
    down = Topics("default").down("late")
    watcher = Peer(broker, "watcher", [down], tmp_path / "key", bundle)
    devices = [processes.device(name) for name in ("a", "b")]
    server = processes.server(*options)
    read_rounds(server, 23)
    with held(*devices):  # or the job may be over before the newcomer has started
        server.send_signal(signal.SIGKILL)
        server.wait()
        server = processes.server(*options)
        processes.device("late")
        wait_until(lambda: watcher.received)
    _, last, _ = finish(server)
    said = [decode(signed[:-SIGNATURE_BYTES]) for topic, signed in watcher.wait_quiet() if topic == down]
    watcher.close()
    first = next(message for message in said if isinstance(message, Rebase | EntryBatch))
    assert isinstance(first, Rebase)
    assert first.round in (20, 30)
    batches = [message.entries for message in said if isinstance(message, EntryBatch)]
    rounds = [decode(entry[:-SIGNATURE_BYTES]).round for entries in batches for entry in entries]  # type: ignore[union-attr]
    assert all(round > first.round for round in rounds)
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "late"})


def test_bad_messages_hurt_nobody(processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path) -> None:
    """A peer that takes part answers every plan with rubbish; the round closes without it."""
    topics = Topics("default")
    peer = Peer(broker, "evil", [topics.down("evil")], tmp_path / "key", bundle)
    for name in ("a", "b"):
        processes.device(name)
    server = processes.server("--rounds", "6", "--cohort", "3", "--quorum", "2", "--deadline", "60")

    def asked() -> bool:
        peer.say(topics.up("evil"), peer.sync())
        return any(isinstance(decode(payload[:-SIGNATURE_BYTES]), Plan) for _, payload in peer.wait_quiet(0.1))

    wait_until(asked)
    plan = peer.wait(Plan)
    sound = Result(plan.round, fingerprint(plan), (1.0,) * 4, 1.0, 4, 0.1, b"")
    nan = encode(sound).replace(b"\x00\x00\x80\x3f", b"\x00\x00\xc0\x7f", 1)
    rubbish = [
        b"\xff" * 50, b"{}", nan, encode(Ack(1, True)), encode(plan),
        cbor2.dumps([1, 3, 1, b"", b"", 2**2000, 1, 0.0, b""]),
        encode(replace(sound, scalars=(1.0,) * 3)),
        encode(replace(sound, round=plan.round + 1)),
        encode(replace(sound, examples=4000)),
        encode(replace(sound, loss=1.7e308)),
        encode(replace(sound, plan=bytes(8))),
    ]  # fmt: skip
    for payload in rubbish:
        peer.publish(topics.up("evil"), peer.sign(payload))
    peer.publish(topics.up("evil"), b"")
    peer.publish(topics.up("evil"), encode(sound))  # not signed
    peer.say(topics.up("evil"), sound, job="another")
    peer.say(topics.up("a"), sound)  # for another device, and in its name
    peer.say(topics.up("a"), sound, device="a")
    peer.say(topics.up("stranger"), sound, device="stranger")
    peer.say(topics.up("a"), peer.sync(), device="a")  # its key is not that of the device
    peer.publish(topics.result, b"not ours")
    peer.say(topics.state("evil"), Presence(online=False, session=8), retain=True)
    peer.say(topics.state("evil"), Presence(online=False, session=9), retain=True)
    progress, last, errors = finish(server)
    peer.close()
    assert all(event["results"] == 2 for event in progress if "results" in event)
    assert last["counts"]["results refused"] >= 5
    assert last["counts"]["messages dropped"] >= 11
    for kind in (
        "message.foreign", "message.not-plain", "message.topic", "message.not-finite", "message.wrong-signature",
        "message.unknown-sender",
        "message.not-signed", "result.scalar-count", "result.example-count", "result.number-too-large",
        "result.other-plan",
    ):  # fmt: skip
        assert f'"kind": "{kind}"' in errors
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_a_late_result_is_acknowledged_and_does_not_count(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    topics = Topics("default")
    peer = Peer(broker, "slow", [topics.down("slow")], tmp_path / "key", bundle)
    devices = [processes.device(name) for name in ("a", "b")]
    server = processes.server("--rounds", "60", "--devices", "2")
    read_rounds(server, 5)
    with held(*devices):
        peer.say(topics.up("slow"), peer.sync())
        peer.say(topics.state("slow"), Presence(online=False, session=9))
        peer.say(topics.up("slow"), Result(2, bytes(8), (1.0,) * 4, 1.0, 4, 0.1, b""))
        assert peer.wait(Ack) == Ack(2, counted=False)
    peer.close()
    _, last, _ = finish(server)
    assert last["counts"]["results late"] == 1
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_a_device_with_another_bundle_is_refused(
    processes: Processes, checkpoint: Path, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path
) -> None:
    topics = Topics("default")
    peer = Peer(broker, "other", [topics.down("other")], tmp_path / "key", bundle)
    devices = [processes.device(name) for name in ("a", "b", "c")]
    server = processes.server("--rounds", "30")
    read_rounds(server, 2)
    with held(*devices):
        peer.say(topics.up("other"), peer.sync(bundle=bytes(32)), bundle=bytes(32))
        assert "its bundle is not this job's" in peer.wait(Refusal).reason
        peer.say(topics.up("other"), peer.sync(round=1000))
        assert peer.wait(Wanted).after >= 2  # what it would have, had this server signed it
        peer.say(topics.up("other"), EntryBatch(()))
        refusal = peer.wait(Refusal)
        assert "it stands at round 1000" in refusal.reason
        assert "--afresh" not in refusal.reason
        peer.say(topics.up("other"), peer.sync(session=10, round=1, head=bytes(15) + b"x"))
        assert peer.wait(Wanted) == Wanted(0)
        peer.say(topics.up("other"), EntryBatch(()))
        assert "its journal is not this job's" in peer.wait(Refusal).reason
    peer.close()
    _, last, _ = finish(server)
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})


@pytest.mark.parametrize("rounds", ["6", "4"])
def test_a_finished_server_started_again_brings_the_rest_up(
    processes: Processes, bundle: Bundle, tmp_path: Path, rounds: str
) -> None:
    """Killed after the last round was closed, or with devices away at the end: started again, it serves them.

    Its journal may then be longer than what it is asked for.
    """
    for name in ("a", "b", "c"):
        processes.device(name)
    _, last, _ = finish(processes.server("--rounds", "6"))
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b", "c"})
    late = processes.device("late")
    assert late.stderr is not None
    late.stderr.readline()
    server = processes.server("--rounds", rounds, serve_after=())
    assert late.wait(PATIENCE_S) == 0
    replica = DeviceState(tmp_path / "late", Bundle(processes.bundle)).replica
    assert (replica.round, replica.digest().hex()) == (6, last["server_digest"])
    server.terminate()
    assert server.wait(PATIENCE_S) == 0


def test_a_reopened_round_waits_for_its_cohort(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """After a restart, one stored result and a quorum of one do not close a round whose devices are only coming."""
    store = ServerStore(tmp_path / "server", bundle.identity)
    options = argparse.ArgumentParser()
    add_job_options(options)
    given = [*JOB[:2], *JOB[6:]]  # without what is the server's alone
    plan = plan_round(check_job(make_job(options.parse_args(given)), bundle), 1)
    store.save_open_round(plan, ("a", "b"))
    store.save_result("a", Result(1, fingerprint(plan), (1.0,) * 4, 1.0, 4, 0.1, b""))
    del store
    server = processes.server("--rounds", "3", "--deadline", "60")
    processes.device("a")
    processes.device("b")
    progress, last, _ = finish(server)
    results = [event["results"] for event in progress if "results" in event]
    assert len(results) == 3
    assert results[0] == 2, "a later round may begin before the slower device is there"
    assert_equal_replicas(bundle, tmp_path, last, {"a", "b"})


def test_divergence_ends_the_job_with_a_sentence(processes: Processes) -> None:
    for name in ("a", "b", "c"):
        processes.device(name)
    server = processes.server("--rounds", "20", "--learning-rates", "1e9,1e9", "--deadline", "1")
    _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 78
    assert "cannot continue, and most devices agree; device" in errors
    assert "the model has diverged; lower the learning rates" in errors
    assert "Traceback" not in errors


def test_a_folder_serves_one_server(processes: Processes) -> None:
    first = processes.server("--rounds", "5")
    wait_until((processes.folder / "server" / "lock").exists)
    second = processes.server("--rounds", "5")
    _, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 1
    assert "is in use by another process" in errors
    assert first.poll() is None


def test_a_refused_device_ends_with_a_sentence(processes: Processes, broker: EmbeddedBroker, bundle: Bundle) -> None:
    topics = Topics("default")
    peer = Peer(broker, "server-default", [topics.up("+")], processes.folder / "server" / KEY, bundle)
    device = processes.device("a")
    sync = peer.wait(Sync)
    assert sync.bundle == bundle.identity
    peer.say(topics.down("a"), Refusal(sync.key, sync.session, "not by you"), device="b")
    peer.say(topics.down("a"), Refusal(sync.key, sync.session + 1, "not now"), device="a")
    peer.say(topics.down("a"), Refusal(bytes(32), sync.session, "not you"), device="a")
    peer.say(topics.down("a"), Refusal(sync.key, sync.session, "it may not"), device="a")
    _, errors = device.communicate(timeout=PATIENCE_S)
    peer.close()
    assert device.returncode == 78
    assert "fedspzo device: the server refuses device 'a': it may not" in errors
    assert "Traceback" not in errors


def test_sigterm_is_a_clean_stop(processes: Processes, broker: EmbeddedBroker, bundle: Bundle) -> None:
    topics = Topics("default")
    peer = Peer(broker, "watcher", [topics.state("a")], processes.folder / "key", bundle)
    device = processes.device("a")
    assert peer.wait(Presence).online
    device.terminate()
    assert device.wait(PATIENCE_S) == 0
    assert not peer.wait(Presence).online
    assert "Traceback" not in device.communicate()[1]
    peer.close()


def test_a_device_holds_little_memory(processes: Processes) -> None:
    """The tiny model's process is the runtime's own size: engine, numpy, MQTT."""
    for name in ("a", "b", "c"):
        device = processes.device(name)
    server = processes.server("--rounds", "10")
    read_rounds(server, 5)
    resident = psutil.Process(device.pid).memory_info().rss / 1e6
    _, last, _ = finish(server)
    assert resident < 110
    assert max(report["rss_mb"] for report in last["devices"].values()) < 110
