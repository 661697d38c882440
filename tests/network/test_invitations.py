"""One invitation for many devices: who gets a login by it, and what is lost when somebody is killed on the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from federation import FEDSPZO, assert_equal_replicas, read_end
from patience import PATIENCE_S, wait_until
from ports import free_port
from refusals import raises, refused
from starlette.applications import Starlette

from fedspzo.broker.mqtt.certificates import AUTHORITY, ensure_certificates
from fedspzo.broker.mqtt.logins_on_demand import LoginsOnDemand
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.blocking import block
from fedspzo.broker.server.enrolment.enrolled import Enrolled
from fedspzo.broker.server.enrolment.invitations import decide, invite, list_askers, list_offers, take_back
from fedspzo.broker.server.enrolment.requests import Enrolment
from fedspzo.broker.server.enrolment.route import enrolment_route
from fedspzo.broker.server.enrolment.tokens import FREE_TRIES, LONGEST_S, MOST_ADDRESSES, Tries
from fedspzo.broker.server.forgetting import forget_devices
from fedspzo.broker.server.http import serve_app
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.device.download import read
from fedspzo.device_runtime.device.enrolment import ACCESS, ask, enrol
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.enrolment import ADMITTED, ASKED, MOST_BYTES, Request
from fedspzo.device_runtime.protocol.signing import PIN, Signer

#: A server that dies when it has made logins, before it can say so; and one that takes its time for them.
DYING, SLOW = (
    f"""
import os, sys, time
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
make = ManagedBroker.set_passwords
ManagedBroker.set_passwords = lambda *arguments: {steps}
from fedspzo.cli import main
sys.exit(main())
"""
    for steps in ("(make(*arguments), os._exit(9))", "(time.sleep(3), make(*arguments))")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state folder of a server's, with an empty file beside a broker's folder whose mosquitto does not run."""
    broker = tmp_path / "broker"
    broker.mkdir()
    ensure_certificates(broker, [])
    (broker / "passwords").touch()
    ServerStore(tmp_path / "server", bytes(32)).close()
    return tmp_path / "server"


@pytest.fixture
def enrolment(folder: Path) -> Iterator[Enrolment]:
    with Enrolment(folder, "default", LoginsOnDemand()) as running:
        yield running


class Asker:
    """Makes requests by a key of its own, and says them to a server's enrolment in this process."""

    def __init__(self, key: Path, enrolment: Enrolment, name: str = "") -> None:
        self.name, self.signer, self._enrolment = name or key.name, Signer(key), enrolment

    def request(self, token: str, password: str = "p" * 43, job: str = "default") -> Request:
        return Request.make(token, job, self.name, self.signer, password)

    def ask(self, token: str, password: str = "p" * 43, job: str = "default", address: str = "here") -> str:
        return self.say(self.request(token, password, job), address)

    def say(self, request: Request, address: str = "here") -> str:
        return self._enrolment.submit(request.encode(), address).result(PATIENCE_S)


needs_mosquitto = pytest.mark.skipif(not installed(), reason="mosquitto is not installed")


@needs_mosquitto
def test_an_invitation_counts_each_key_once(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    token = invite(folder, "hall", 2, 60, tmp_path / "broker", "lab")
    assert token not in (folder / "server.sqlite").read_bytes().decode("latin-1")
    first, second, third = (Asker(tmp_path / name, enrolment) for name in ("first", "second", "third"))
    assert first.ask(token) == first.ask(token) == ADMITTED
    with raises("enrolment.name-taken", "'first'", "--id"):
        Asker(tmp_path / "thief", enrolment, "first").ask(token)
    with raises("enrolment.other-name", "'first'"):
        Asker(tmp_path / "first", enrolment, "alias").ask(token)
    with raises("enrolment.other-password", "access file"):
        first.ask(token, "q" * 43)
    assert second.ask(token) == ADMITTED
    with raises("enrolment.used-up", "2 devices"):
        third.ask(token)
    (offer,) = list_offers(folder)
    assert (offer.used, offer.uses, offer.group) == (2, 2, "lab")
    assert ManagedBroker(tmp_path / "broker").users() == {"first", "second"}
    with ServerStore(folder, bytes(32)) as store:
        assert Enrolled(store).key("first") == first.signer.public
        assert (Enrolled(store).group("second"), Enrolled(store).key("third")) == ("lab", None)
    take_back(folder, "hall")
    with raises("enrolment.token", "taken back"):
        first.ask(token)
    assert first.ask(invite(folder, "again", 1, 60, tmp_path / "broker")) == ADMITTED
    assert list_offers(folder)[0].used == 0


@needs_mosquitto
def test_a_person_decides(
    folder: Path, enrolment: Enrolment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = invite(folder, "hall", 5, 60, tmp_path / "broker", waits=True)
    good, bad = Asker(tmp_path / "good", enrolment), Asker(tmp_path / "bad", enrolment)
    assert good.ask(token) == good.ask(token) == bad.ask(token) == ASKED
    assert ManagedBroker(tmp_path / "broker").users() == set()
    with ServerStore(folder, bytes(32)) as store:
        assert Enrolled(store).key("good") is None
    assert [asker.name for asker in list_askers(folder)] == ["good", "bad"]
    assert main(["admit", str(folder)]) == 0
    assert f"good {good.signer.public.hex()}  # by 'hall'" in capsys.readouterr().out
    assert "'nobody' has not asked" in refused(capsys, "admit", folder, "good", "nobody")
    assert good.ask(token) == ASKED
    assert main(["admit", str(folder), "good"]) == main(["admit", str(folder), "bad", "--refuse"]) == 0
    assert good.ask(token) == ADMITTED
    with raises("enrolment.refused", "the operator"):
        bad.ask(token)
    assert ManagedBroker(tmp_path / "broker").users() == {"good"}
    with raises("enrolment.takes-part", "fedspzo block"):
        decide(folder, ["bad", "good"], admit=False)
    decide(folder, ["bad"], admit=True)
    assert bad.ask(token) == ADMITTED


@needs_mosquitto
def test_names_and_keys_that_are_not_free(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    token = invite(folder, "hall", 9, 60, tmp_path / "broker")
    ManagedBroker(tmp_path / "broker").set_passwords({"by-hand": "x"})
    with raises("enrolment.name-taken", "'by-hand'"):
        Asker(tmp_path / "key", enrolment, "by-hand").ask(token)
    for name, kind in (("a/b", "enrolment.name"), ("a\n", "enrolment.name"), ("server-x", "access.server-name")):
        with raises(kind, "id" if kind == "enrolment.name" else "server"):
            Asker(tmp_path / "key", enrolment, name).ask(token)
    listed = Asker(tmp_path / "listed", enrolment)
    (tmp_path / "admitted").write_text(f"listed {listed.signer.public.hex()}\nother {bytes(32).hex()}\n")
    with Enrolment(folder, "default", LoginsOnDemand(), Admission(tmp_path / "admitted")) as strict:
        with raises("enrolment.name-taken", "'other'"):
            Asker(tmp_path / "other", strict).ask(token)
        assert Asker(tmp_path / "listed", strict).ask(token) == ADMITTED
    block(folder, ["listed"])
    for key, name in (("listed", "listed"), ("new", "listed")):
        with raises("enrolment.blocked", "the operator"):
            Asker(tmp_path / key, enrolment, name).ask(token)
    assert list_offers(folder)[0].used == 1


@needs_mosquitto
def test_hostile_requests_are_refused_and_cost_nothing(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    token, asker = invite(folder, "hall", 9, 60, tmp_path / "broker"), Asker(tmp_path / "a", enrolment)
    for body in (b"", b"[]", b"\xff", b"[" * 5000, b'{"token": 3}', asker.request(token).encode()[:-2]):
        with raises("enrolment.request", "fedspzo device --invitation"):
            enrolment.submit(body, "there")
    good = asker.request(token)
    no_text = (replace(good, name="\ud800"), replace(good, token="\udc00"))
    short = (replace(good, key=bytes(31)), replace(good, password="short"), replace(good, password="p:\n" * 20))
    for bad in (*no_text, *short):
        with raises("enrolment.request"):
            asker.say(bad)
    forged = (
        asker.request(token, job="other"),
        replace(good, signature=bytes(64)),
        replace(good, signature=b""),
        replace(good, name="b"),
        replace(good, password="q" * 43),
        replace(good, key=Signer(tmp_path / "b").public),
    )
    for bad in forged:
        with raises("enrolment.signature", "its key"):
            asker.say(bad)
    expired = invite(folder, "short", 1, 0.001, tmp_path / "broker")
    time.sleep(0.002)
    with raises("enrolment.expired", "ask for a new one"):
        asker.ask(expired)
    own = Asker(tmp_path / "attackers", enrolment)
    for _ in range(FREE_TRIES):
        with raises("enrolment.token"):
            asker.ask("guessed", address="attacker")
        with raises("enrolment.signature"):
            own.ask(token, job="other", address="attacker")
    with raises("enrolment.too-often", "wait"):
        asker.ask("guessed", address="attacker")
    with raises("enrolment.token"):
        asker.ask("guessed", address="elsewhere")
    assert (list_offers(folder)[0].used, list_askers(folder, ADMITTED)) == (0, [])
    assert asker.ask(token, address="attacker") == ADMITTED, "who has the invitation shares an address with who has not"


@needs_mosquitto
def test_one_request_fails_alone(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with it, and though others came together with it."""
    token, together = invite(folder, "hall", 9, 60, tmp_path / "broker"), threading.Event()

    class Faulty(LoginsOnDemand):
        def check(self, name: str) -> None:
            together.wait(PATIENCE_S)
            if name == "odd":
                raise RuntimeError("nobody thought of this name")

    with Enrolment(folder, "default", Faulty()) as enrolment:
        first, odd, good = (
            enrolment.submit(Asker(tmp_path / name, enrolment).request(token).encode(), "here")
            for name in ("first", "odd", "good")
        )
        together.set()
        assert first.result(PATIENCE_S) == good.result(PATIENCE_S) == ADMITTED
        with raises("enrolment.unable", "its log"):
            odd.result(PATIENCE_S)
    assert "nobody thought of this name" in caplog.text
    assert [asker.name for asker in list_askers(folder, ADMITTED)] == ["first", "good"]
    assert list_offers(folder)[0].used == 2


def test_addresses_wait_longer_and_are_forgotten() -> None:
    now, address = [0.0], "a"
    tries = Tries(lambda: now[0])
    for _ in range(40):
        tries.note(address, right=False)
        now[0] += LONGEST_S + 1
    with raises("enrolment.too-often", "60 s"):
        tries.note(address, right=False) or tries.note(address, right=False)
    for number in range(MOST_ADDRESSES):
        tries.note(str(number), right=False)
    tries.note(address, right=False)


def test_an_invitation_that_cannot_be_made(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, uses, seconds, group, kind in (
        ("a b", 1, 1, "", "enrolment.invitation-name"),
        ("a", 1, 1, "x y", "enrolment.invitation-name"),
        ("a", 0, 1, "", "enrolment.invitation-range"),
        ("a", 10**6, 1, "", "enrolment.invitation-range"),
        ("a", 1, 10**9, "", "enrolment.invitation-range"),
    ):
        with raises(kind):
            invite(folder, name, uses, seconds, tmp_path / "broker", group)
    invite(folder, "a", 1, 60, tmp_path / "broker")
    with raises("enrolment.invitation-taken", "--remove"):
        invite(folder, "a", 1, 60, tmp_path / "broker")
    assert "option.invitation-incomplete" in refused(capsys, "invite", folder, "b")
    assert "enrolment.no-invitation" in refused(capsys, "invite", folder, "b", "--remove")
    for command in (
        ("invite", folder, "\udcff", "--remove"),
        ("admit", folder, "\udcff"),
        ("forget", folder, "\udcff"),
    ):
        assert "is not in UTF-8" in refused(capsys, *command)
    assert main(["invite", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:4] == ["a", "-", "0", "1"]


@needs_mosquitto
def test_a_login_that_was_taken_away_is_not_said_to_be_there(
    folder: Path, enrolment: Enrolment, tmp_path: Path
) -> None:
    """Nor is it made again: an operator, or a server with --cut-off, has taken it away."""
    token, asker = invite(folder, "hall", 2, 60, tmp_path / "broker"), Asker(tmp_path / "a", enrolment)
    assert asker.ask(token) == asker.ask(token) == ADMITTED
    ManagedBroker(tmp_path / "broker").remove_users(["a"])
    with raises("enrolment.no-login", "'a'", "fedspzo enroll"):
        asker.ask(token)
    assert "a" not in ManagedBroker(tmp_path / "broker").users()
    assert Asker(tmp_path / "b", enrolment).ask(token) == ADMITTED
    ManagedBroker(tmp_path / "broker").set_passwords({"a": "p" * 43})
    assert asker.ask(token) == ADMITTED


@needs_mosquitto
def test_backups_and_forgetting(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    token, asker = invite(folder, "hall", 2, 60, tmp_path / "broker"), Asker(tmp_path / "a", enrolment)
    assert asker.ask(token) == ADMITTED
    back_up(folder, tmp_path / "backup")
    assert list_offers(tmp_path / "backup") == list_offers(folder)
    with Enrolment(tmp_path / "backup", "default", LoginsOnDemand()) as restored:
        assert Asker(tmp_path / "a", restored).ask(token) == ADMITTED
    forget_devices(folder, ["a"])
    assert list_askers(folder, ADMITTED) == []
    with raises("enrolment.name-taken"):  # its login is still there
        Asker(tmp_path / "new", enrolment, "a").ask(token)
    ManagedBroker(tmp_path / "broker").remove_users(["a"])
    assert Asker(tmp_path / "new", enrolment, "a").ask(token) == ADMITTED
    assert list_offers(folder)[0].used == 2


def test_a_broker_that_is_not_there(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    """The row stays, and the device gets its login once the broker's folder is back."""
    token = invite(folder, "hall", 2, 60, tmp_path / "elsewhere")
    with raises("enrolment.unable", "its log"):
        Asker(tmp_path / "a", enrolment).ask(token)
    assert list_offers(folder)[0].used == 1
    if installed():
        (tmp_path / "broker").rename(tmp_path / "elsewhere")
        assert Asker(tmp_path / "a", enrolment).ask(token) == ADMITTED
        assert list_offers(folder)[0].used == 1


@needs_mosquitto
def test_over_http(folder: Path, enrolment: Enrolment, tmp_path: Path) -> None:
    """What a device makes of the answers: it is let in, refused by a kind, or told of another server."""
    broker, waits = Access("mqtts://localhost", authority=""), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        for asker in list_askers(folder):
            decide(folder, [asker.name], admit=True)

    with serve_app(Starlette(routes=[enrolment_route(enrolment)])) as url:
        invitation = Invitation(broker, "default", url, invite(folder, "hall", 9, 60, tmp_path / "broker", waits=True))
        access = enrol(tmp_path / "a", invitation, None, sleep)
        assert len(waits) == 1
        assert access == Access.load(tmp_path / "a" / ACCESS) == enrol(tmp_path / "a", invitation)
        (tmp_path / "a" / ACCESS).unlink()
        assert enrol(tmp_path / "a", invitation) == access
        with raises("state.other-owner"):
            enrol(tmp_path / "a", invitation, "b")
        with raises("enrolment.token", "ask for a new one"):
            enrol(tmp_path / "b", replace(invitation, token="guessed"))
        request = Request("t" * MOST_BYTES, "a", bytes(32), "p" * 43, bytes(64))
        with raises("enrolment.too-large", MOST_BYTES):
            ask(invitation, request)
    with (
        serve_app(Starlette(routes=[enrolment_route(None)])) as url,
        raises("enrolment.not-secure", "--http-certificate"),
    ):
        enrol(tmp_path / "b", replace(invitation, bundle_url=url))
    with serve_app(Starlette()) as url, raises("enrolment.not-offered", "404"):
        enrol(tmp_path / "b", replace(invitation, bundle_url=url))
    with raises("enrolment.unreachable", "try again later"):
        enrol(tmp_path / "b", replace(invitation, bundle_url=f"http://127.0.0.1:{free_port()}"), None, waits.append)
    with raises("enrolment.without-tls", "https"):
        enrol(tmp_path / "b", replace(invitation, bundle_url="http://server.example.org"))


@needs_mosquitto
def test_many_at_once_share_a_change_of_the_brokers_files(
    folder: Path, enrolment: Enrolment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, changes = invite(folder, "hall", 60, 60, tmp_path / "broker"), []
    make = ManagedBroker.set_passwords

    def counted(broker: ManagedBroker, passwords: dict[str, str], jobs: list[str]) -> None:
        changes.append(len(passwords))
        time.sleep(0.2)
        make(broker, passwords, jobs)

    monkeypatch.setattr(ManagedBroker, "set_passwords", counted)
    askers = [Asker(tmp_path / f"device-{number}", enrolment) for number in range(60)]
    requests = [asker.request(token).encode() for asker in askers]
    answers = [enrolment.submit(request, "here") for request in requests]
    assert {answer.result(PATIENCE_S) for answer in answers} == {ADMITTED}
    assert sum(changes) == 60
    assert len(changes) <= 3


@pytest.mark.slow
@needs_mosquitto
def test_two_devices_join_though_server_and_device_are_killed(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    """The server dies between a login and its answer; a device while it asks. Nobody else is let in."""
    state, port, file = tmp_path / "server", free_port(), tmp_path / "hall.invitation"
    running: list[subprocess.Popen[str]] = []
    (tmp_path / "admitted").touch()
    with ManagedBroker(tmp_path / "broker", port=free_port()) as broker:
        broker.server_access()
        bundle = Path(shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN)))
        pem, url = broker.folder / "server.pem", f"https://localhost:{port}"

        def start(*words: object, program: Sequence[str] = FEDSPZO) -> subprocess.Popen[str]:
            command = list(map(str, (*program, *words)))
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            return running[-1]

        def start_server(*program: str) -> subprocess.Popen[str]:
            return start(
                "server", bundle, "--access", broker.folder / "server.json", "--state", state, "--json",
                "--rounds", 4, "--devices", 2, "--cohort", 2, "--split", 3, "--fanouts", "1,4",
                "--http", f"127.0.0.1:{port}", "--http-url", url, "--http-certificate", pem, "--http-key", pem,
                "--admit", tmp_path / "admitted", program=program or FEDSPZO,
            )  # fmt: skip

        def start_device(name: str) -> subprocess.Popen[str]:
            data = write_examples(tmp_path / f"{name}.jsonl", 12)
            return start(
                "device", tmp_path / "fetched", "--invitation", file, "--state", tmp_path / name, "--data", data,
                "--id", name,
            )  # fmt: skip

        def serves() -> bool:
            return main(["fetch", str(file), "--out", str(tmp_path / "fetched")]) == 0

        try:
            ServerStore(state, Bundle(bundle).identity).close()
            command = ["invite", state, "hall", "--uses", 2, "--expires", "1h", "--group", "lab", "--url", url,
                       "--broker", broker.folder, "--out", file]  # fmt: skip
            assert main(list(map(str, command))) == 0
            dying = start_server(sys.executable, "-c", DYING)
            wait_until(serves)
            first = start_device("first")
            assert dying.wait(PATIENCE_S) == 9
            assert broker.users() == {"server", "first"}
            server = start_server(sys.executable, "-c", SLOW)
            wait_until((tmp_path / "first" / ACCESS).exists)
            second = start_device("second")
            wait_until(lambda: len(list_askers(state, ADMITTED)) == 2)
            second.kill()
            assert not (tmp_path / "second" / ACCESS).exists()
            second = start_device("second")
            assert first.wait(PATIENCE_S) == second.wait(PATIENCE_S) == 0
            last = read_end(server)
            metrics = read(f"{url}/metrics", 1 << 20, (broker.folder / AUTHORITY).read_text()).decode()
            assert 'fedspzo_group_devices_known{group="lab"} 2.0' in metrics
            third = start_device("third")
            _, said = third.communicate(timeout=PATIENCE_S)
            assert third.returncode == 78
            assert "used up by 2 devices; ask for a new one [enrolment.used-up]" in said
            server.terminate()
            _, errors = server.communicate(timeout=PATIENCE_S)
            assert "Traceback" not in errors
            assert_equal_replicas(Bundle(bundle), tmp_path, last, {"first", "second"})
            assert list_offers(state)[0].used == 2
        finally:
            for process in running:
                process.kill()
                process.communicate()
