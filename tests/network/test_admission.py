"""Which devices a job takes: the operator's list, and names that are let go."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from federation import Peer, Processes, assert_equal_replicas, broker, finish, processes, read_rounds
from patience import PATIENCE_S
from refusals import raises, refused

from fedspzo.broker.mqtt.embedded import EmbeddedBroker
from fedspzo.broker.server.admission import LOOK_S, Admission
from fedspzo.cli import main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.messages import EntryBatch, Refusal, Report
from fedspzo.device_runtime.protocol.signing import KEY_BYTES
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.device_key import KEY
from fedspzo.device_runtime.replica.state import read_identity

__all__ = ["broker", "processes"]


def show_key(capsys: pytest.CaptureFixture[str], state: Path, *options: str) -> str:
    command = ["device", "no-bundle", "--state", str(state), "--data", "no-data", "--show-key", *options]
    assert main([*command, "--broker", "mqtt://nowhere"]) == 0
    return capsys.readouterr().out


def test_only_devices_on_the_list_take_part(
    processes: Processes, broker: EmbeddedBroker, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = Topics("default")
    names = ("a", "b", "c")
    admitted = tmp_path / "admitted"
    lines = "".join(show_key(capsys, tmp_path / name, "--id", name) for name in names)
    admitted.write_text("# the three of us\n\n" + lines)
    watched = [topics.down("late"), topics.down("a")]
    peer = Peer(broker, "late", watched, tmp_path / "key", bundle)
    server = processes.server("--rounds", "5000", "--deadline", "2", "--admit", str(admitted))
    running = {name: processes.device(name) for name in names}
    read_rounds(server, 1)
    peer.say(topics.up("late"), peer.sync())
    assert "not on the list of admitted devices; add what" in peer.wait(Refusal).reason
    peer.say(topics.up("a"), peer.sync(), device="a")  # a broker that claims another's name
    assert "has another key for its id; correct it" in peer.wait(Refusal).reason
    read_rounds(server, 5)
    admitted.write_text(lines + f"late {peer.signer.public.hex()}\n")
    time.sleep(2 * LOOK_S + 0.2)
    peer.received.clear()
    peer.say(topics.up("late"), peer.sync())
    peer.wait(EntryBatch)
    admitted.write_text("".join(line for line in lines.splitlines(keepends=True) if not line.startswith("c ")))
    _, errors = running["c"].communicate(timeout=PATIENCE_S)
    assert "the server refuses device 'c': it is not on the list" in errors
    peer.received.clear()
    peer.say(topics.up("late"), Report(0, b"", 0, 0, 0, 0))
    assert "not on the list" in peer.wait(Refusal).reason
    peer.close()
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "a" / KEY, tmp_path / "copy")
    admitted.write_text(lines + show_key(capsys, tmp_path / "copy", "--id", "copy"))
    time.sleep(2 * LOOK_S + 0.2)
    _, errors = processes.device("copy").communicate(timeout=PATIENCE_S)
    assert "the server refuses device 'copy': its key is that of device 'a'; start it with a state folder" in errors
    read_rounds(server, 1)
    assert (running["a"].poll(), running["b"].poll()) == (None, None)


def test_a_list_gives_a_name_another_key(
    processes: Processes, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        processes.device(name)
    finish(processes.server("--rounds", "2"))
    shutil.rmtree(tmp_path / "a")
    admitted = tmp_path / "admitted"
    admitted.write_text(show_key(capsys, tmp_path / "a", "--id", "a"))
    device = processes.device("a")
    _, last, _ = finish(processes.server("--rounds", "2", "--admit", str(admitted)))
    assert_equal_replicas(bundle, tmp_path, last, {"a"})
    assert device.wait(PATIENCE_S) == 0


def test_a_name_that_is_forgotten_can_be_taken_anew(
    processes: Processes, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "server"
    for name in ("a", "b", "c"):
        processes.device(name)
    server = processes.server("--rounds", "6")
    read_rounds(server, 2)
    assert "start it again afterwards [state.in-use]" in refused(capsys, "forget", state, "a")
    finish(server)
    shutil.rmtree(tmp_path / "a")
    device, server = processes.device("a"), processes.server("--rounds", "6")
    _, errors = device.communicate(timeout=PATIENCE_S)
    assert "belongs to another device's key; bring back its device.key, give it another id, or have" in errors
    finish(server)
    assert "lists the names [device.unknown]" in refused(capsys, "forget", state, "a", "d")
    assert main(["forget", str(state), "a"]) == 0
    device = processes.device("a")
    _, last, _ = finish(processes.server("--rounds", "6"))
    assert_equal_replicas(bundle, tmp_path, last, {"a"})
    assert device.wait(PATIENCE_S) == 0
    assert "[state.no-journal]" in refused(capsys, "forget", tmp_path / "none", "a")


def test_a_key_is_shown_again_and_belongs_to_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = show_key(capsys, tmp_path / "state")
    assert first == show_key(capsys, tmp_path / "state")
    name, key = read_identity(tmp_path / "state")
    assert first == f"{name} {key.hex()}\n"
    assert len(key) == KEY_BYTES
    with raises("state.other-owner", f"'{name}'", "'other'"):
        read_identity(tmp_path / "state", "other")


def test_a_list_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, key = tmp_path / "admitted", bytes(range(32))
    with raises("access.list-unreadable", "admitted cannot be read (No such file or directory)"):
        Admission(path)
    good = f"a {key.hex()}  # mine\n"
    for bad in (
        "a\n",
        f"a {key.hex()} b\n",
        f"a {key.hex()} group=\n",
        f"a {key.hex()} group=x group=y\n",
        "a zz\n",
        f"a {key.hex()[2:]}\n",
        f"a/b {key.hex()}\n",
        f"a {'00' * 32}\n",
    ):
        path.write_text(good + bad)
        with raises("access.list-line", "line 2 of ", "admitted", "--show-key"):
            Admission(path)
    path.write_text(good + good + f"c {key.hex()} group=lab\n")
    admission = Admission(path)
    assert [admission.group(name) for name in ("a", "b", "c")] == ["", "", "lab"]
    assert admission.refusal("a", key) is None
    assert admission.refusal("b", key)
    for change in (lambda: path.write_text("nonsense"), lambda: os.unlink(path)):
        change()
        time.sleep(2 * LOOK_S + 0.2)
        assert admission.refusal("a", key) is None
        assert "; until then, the list as it was holds" in caplog.text
        caplog.clear()
    path.write_text(f"b {key.hex()}\n")
    time.sleep(2 * LOOK_S + 0.2)
    assert admission.refusal("b", key) is None
    assert admission.refusal("a", key)
