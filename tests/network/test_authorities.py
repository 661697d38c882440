"""Another authority at the broker: the three steps, what is left where one is killed, and who believes what."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port
from refusals import raises, refused

from fedspzo.broker.mqtt.certificates import (
    AUTHORITY,
    AUTHORITY_KEY,
    NEXT_KEY,
    SERVER,
    Step,
    ensure_certificates,
    next_step,
    take_step,
)
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.authorities import Authorities, check_trust
from fedspzo.broker.server.devices import Member, Roster, accept
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.device.trust import AUTHORITIES, Trust
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.authorities import fingerprint, read_certificates, write_certificates
from fedspzo.device_runtime.link.connection import Link
from fedspzo.device_runtime.protocol.codec import decode
from fedspzo.device_runtime.protocol.messages import CAPABILITIES, Sync
from fedspzo.device_runtime.protocol.messages import Authorities as Message
from fedspzo.device_runtime.protocol.signing import split
from fedspzo.device_runtime.protocol.topics import Topics
from fedspzo.device_runtime.replica.chain import EMPTY

needs_mosquitto = pytest.mark.skipif(not installed(), reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedBroker]:
    with ManagedBroker(tmp_path_factory.mktemp("broker"), port=free_port()) as running:
        yield running


@pytest.fixture
def access(broker: ManagedBroker) -> Access:
    return broker.add_user("a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another authority, as PEM."""
    folder = tmp_path_factory.mktemp("other")
    ensure_certificates(folder, [])
    return (folder / AUTHORITY).read_text()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def good(folder: Path) -> bool:
    """Whether the server's certificate is by an authority that clients trust."""
    shown = x509.load_pem_x509_certificate((folder / SERVER).read_bytes())
    for authority in x509.load_pem_x509_certificates((folder / AUTHORITY).read_bytes()):
        try:
            shown.verify_directly_issued_by(authority)
            return True
        except Exception:
            continue
    return False


def test_three_steps_each_as_a_whole_or_again(tmp_path: Path) -> None:
    """Killed between any two files, a folder has a certificate that clients trust, and the same step follows."""
    ensure_certificates(tmp_path, [])
    old = (tmp_path / AUTHORITY).read_bytes()
    shutil.copy(tmp_path / AUTHORITY_KEY, tmp_path / NEXT_KEY)  # of an attempt that was killed before it counted
    assert next_step(tmp_path) is Step.ADD
    take_step(tmp_path, Step.ADD)
    assert not ensure_certificates(tmp_path, [])
    both = (tmp_path / AUTHORITY).read_bytes()
    assert both.startswith(old)
    assert len(read_certificates(both.decode())) == 2
    assert next_step(tmp_path) is Step.USE
    killed = shutil.copytree(tmp_path, tmp_path / "killed")
    (killed / NEXT_KEY).rename(killed / AUTHORITY_KEY)
    assert not ensure_certificates(killed, [])
    for folder in (killed, tmp_path):
        assert next_step(folder) is Step.USE
        take_step(folder, Step.USE)
        assert next_step(folder) is Step.DROP
        assert good(folder)
        assert ensure_certificates(folder, [])
        assert good(folder)
        assert fingerprint(read_certificates((folder / AUTHORITY).read_text())) == fingerprint(
            read_certificates(both.decode())
        )
        take_step(folder, Step.DROP)
        assert not ensure_certificates(folder, [])
        assert good(folder)
        assert next_step(folder) is Step.ADD
    new = (tmp_path / AUTHORITY).read_bytes()
    assert both == old + new
    assert NEXT_KEY not in names(tmp_path)
    (tmp_path / AUTHORITY_KEY).write_bytes(b"x")
    with raises("broker.certificate-damaged", "enroll again"):
        next_step(tmp_path)
    (tmp_path / AUTHORITY_KEY).unlink()
    with raises("broker.certificate-missing", AUTHORITY_KEY):
        next_step(tmp_path)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=3, unique=True))
def test_certificates_travel_and_are_told_apart(certificates: list[bytes]) -> None:
    assert read_certificates(write_certificates(certificates)) == tuple(certificates)
    assert fingerprint(reversed(certificates)) == fingerprint(certificates)
    assert fingerprint([*certificates, b""]) != fingerprint(certificates)


@needs_mosquitto
def test_a_device_takes_only_what_the_broker_shows(access: Access, other: str, tmp_path: Path) -> None:
    """So nobody is locked out by a wrong step; what is taken outlives a restart, until there is a new access file."""
    own = read_certificates(access.authority)
    both = (*own, *read_certificates(other))
    trust, link = Trust(tmp_path, access), Link(access, "a", [])
    assert trust.fingerprint == b""
    with raises("access.authority-not-shown", access.place, "stay trusted"):
        trust.take(read_certificates(other), link)
    with raises("access.authority", access.place):
        trust.take([b"no certificate"], link)
    assert (trust.access, link.access, trust.fingerprint, names(tmp_path)) == (access, access, b"", set())
    trust.take((), link)
    assert trust.access == access
    trust.take(both, link)
    assert trust.fingerprint == fingerprint(both)
    assert Trust(tmp_path, access).access == trust.access == link.access != access
    trust.forget_server()
    assert trust.fingerprint == b""
    again = Trust(tmp_path, replace(access, authority=access.authority + other))
    assert again.access.authority == access.authority + other
    for damage in (b"", b"\x82\x01", b"\xff", b"\x82\x01\x02"):
        (tmp_path / AUTHORITIES).write_bytes(damage)
        assert Trust(tmp_path, access).access == access


@needs_mosquitto
def test_a_device_of_the_systems_authorities_keeps_to_them(access: Access, tmp_path: Path) -> None:
    given = replace(access, authority="")
    trust = Trust(tmp_path, given)
    trust.take(read_certificates(access.authority), Link(given, "a", []))
    assert (trust.access, trust.fingerprint, names(tmp_path)) == (given, fingerprint(()), set())


@needs_mosquitto
def test_a_server_follows_its_access_file_and_tells_devices(
    broker: ManagedBroker, access: Access, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedspzo.broker.server.authorities.LOOK_S", 0.0)
    file = tmp_path / "server.json"
    access.save(file)
    able = frozenset(CAPABILITIES)
    members = [Member(name, name.encode() * 32, can=able, synced=True, online=True, seen=1e12) for name in ("a", "b")]
    members.append(replace(members[0], name="old", key=bytes(32), can=able - {"keys"}))
    with ServerStore(tmp_path / "server", bytes(32)) as store:
        roster, link = Roster(iter(members)), Link(access, "server", [])
        outbox = Outbox(link, Topics("default"), store, roster)
        authorities = Authorities(store, roster, outbox, link, lambda: Access.load(file).authority)

        def told() -> dict[str, Message]:
            waiting = {topic.rpartition("/")[2]: decode(split(signed)) for topic, signed, _ in outbox._waiting}
            outbox._waiting.clear()
            return waiting  # type: ignore[return-value]

        def say(member: Member, trusted: bytes) -> None:
            sync = Sync(member.key, 1, bytes(32), 0, EMPTY, 1, 1.0, True, True, "1", CAPABILITIES, 0, trusted)
            accept(member, sync)
            authorities.tell(member)

        own = read_certificates(access.authority)
        assert authorities.end == x509.load_der_x509_certificate(own[0]).not_valid_after_utc.timestamp()
        for member in members:
            authorities.tell(member)
        assert told() == {"a": Message(own), "b": Message(own)}
        say(members[0], fingerprint(own))
        say(members[1], fingerprint(()))
        say(members[0], b"")  # after a restart it has yet to be told, and trusts what it did
        assert told() == {}
        store.save_members(members)
        replace(access, authority=other).save(file)
        authorities.look()
        file.unlink()
        authorities.look()
        assert (told(), link.access) == ({}, access)
        both = (*own, *read_certificates(other))
        replace(access, authority=access.authority + other).save(file)
        authorities.look()
        assert told() == {"a": Message(both)}
        assert link.access.authority == access.authority + other
        store.save_members(members)
    with raises("broker.authority-not-trusted", "'a'", "'stranger'", "--remove"):
        check_trust([tmp_path / "server"], ["a", "b", "stranger"], fingerprint(both))
    with raises("broker.authority-not-trusted", f"the server of {tmp_path / 'server'}"):
        check_trust([tmp_path / "server"], ["a"], fingerprint(own))
    check_trust([tmp_path / "server"], ["b"], fingerprint(both))
    with ServerStore(tmp_path / "server", bytes(32)) as store:
        assert {member.name: member.authorities for member in store.load_members()}["a"] == fingerprint(own)
    forget_devices(tmp_path / "server", ["b"])
    with raises("broker.authority-not-trusted", "'b'"):
        check_trust([tmp_path / "server"], ["b"], fingerprint(both))


def test_where_there_is_no_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ServerStore(tmp_path / "server", bytes(32)).close()
    said = refused(capsys, "broker rotate", tmp_path / "nowhere", "--server", tmp_path / "server")
    assert "[broker.not-a-state-folder]" in said
