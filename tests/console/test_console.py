"""The console without a browser: who is let in, what they may do, and what they are told."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S, wait_until
from refusals import raises, refused
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from fedspzo.broker.mqtt.certificates import ensure_certificates
from fedspzo.broker.mqtt.logins_on_demand import LoginsOnDemand
from fedspzo.broker.privacy.accounting import Spent
from fedspzo.broker.rounds.aggregate import ClosedRound, Spending
from fedspzo.broker.rounds.anomalies import Record
from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.server.backup import back_up
from fedspzo.broker.server.console.app import make_console, make_refusal, make_site
from fedspzo.broker.server.console.curves import POINTS
from fedspzo.broker.server.console.device_rows import Search
from fedspzo.broker.server.console.enrolling import LISTED, Enrolling
from fedspzo.broker.server.console.gate import FREE_TRIES, LONGEST_S, SESSION_S, UNUSED_S, Gate
from fedspzo.broker.server.console.headers import HEADERS
from fedspzo.broker.server.console.job_view import JobView
from fedspzo.broker.server.console.logins import Login, Logins
from fedspzo.broker.server.console.recent_log import LINES, RecentLog, recent_log
from fedspzo.broker.server.console.running import ACTS, Backups, DeviceControls, Running
from fedspzo.broker.server.controls import Controls, Wish, store_job
from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.enrolment.enrolled import Enrolled
from fedspzo.broker.server.enrolment.invitations import list_askers, list_offers
from fedspzo.broker.server.enrolment.requests import Enrolment
from fedspzo.broker.server.http import may_serve_console
from fedspzo.broker.server.progress import Progress
from fedspzo.broker.server.signing_key import KEY
from fedspzo.broker.server.state_folder import ADDRESS, DATABASE, told_address
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.window import Window
from fedspzo.cli import main
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.files import is_locked, lock_folder
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.protocol.enrolment import ASKED, Request
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Decline, Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import Signer

MARKUP = "<img src=x onerror=alert(1)>"
PASSWORD = "a password that is long"
GROUPS = {"a": "east"}


class Served:
    """A console over a store with three rounds, as a server would serve it; its controls are real."""

    def __init__(self, folder: Path, bundle: Bundle, make_plan: Callable[..., Plan], log: RecentLog) -> None:
        self.folder, self.store = folder, ServerStore(folder, bytes(32))
        for round in range(1, 4):
            entry = Entry(make_plan(round=round), (Contribution("", 1.0, (0.5,) * 4),))
            spent = Spending(3.0 * round, 0.1, 2, 0)
            self.store.close_round(entry, ClosedRound(round, 1.0 / round, ("a", "b"), 0.5 * round, 0.1, spent))
        self.members = [
            Member(
                "a",
                bytes([1]) * 32,
                battery=0.5,
                examples=5,
                results=2,
                bytes_up=10,
                version=MARKUP,
                seen=time.monotonic(),
            ),
            Member("b", bytes([2]) * 32, battery=float("inf"), round=1, can=frozenset({"objectives"})),
        ]
        self.store.save_members(self.members)
        self.store.save_records({"b": Record(large=3, accused=2, expelled=3)})
        self.store.save_counts({"results late": 2})
        job = check_job(Job(cohort=2, split=(3,), fanouts=(1, 4), rounds=10), bundle)
        self.controls = Controls(self.store, job, lambda changed: check_job(changed, bundle))
        result = Result(4, b"", (0.0,) * 4, 0.0, 1, 0.0, b"")
        opened = OpenRound(make_plan(round=4), ("a", "b", "c"), {"a": result}, time.monotonic())
        opened.declined["b"] = Decline(4, MARKUP, passing=True)
        self.progress = Progress(Counter(), opened)
        window = Window(self.progress, Roster(iter(self.members)), self._take, lambda name: GROUPS.get(name, ""))
        self.logins = Logins(folder)
        self.now = 0.0
        self.gate = Gate(self.logins, clock=lambda: self.now)
        self.backups = Backups(folder)
        self.cut: list[str] = []
        self.broker, self.url = folder.parent / "broker", "https://server.test:8443"  # whose mosquitto does not run
        self.broker.mkdir()
        ensure_certificates(self.broker, [])
        (self.broker / "passwords").touch()
        enrolling = Enrolling(folder, LoginsOnDemand(), self.broker, lambda: self.url)
        running = Running(window, log, DeviceControls(folder, self._cut_off), enrolling, self.backups)
        self.app = make_site(make_console([JobView(folder, running)], self.gate, secure=True))

    def _take(self, wish: Wish) -> None:
        self.controls.take(wish, 5)
        self.controls.tell()

    def _cut_off(self, names: Sequence[str]) -> Sequence[str]:
        self.cut += names
        return names[:1]  # the others have no login

    def client(self) -> TestClient:
        return TestClient(self.app, "https://console.test", follow_redirects=False)

    def enter(self, name: str, role: str) -> TestClient:
        """Somebody who has logged in, whose requests show the session's token."""
        client, password = self.client(), self.logins.add(name, role)
        assert (
            client.post("/console/login", data={"name": name, "password": password}).headers["Location"] == "/console/"
        )
        client.headers["X-CSRF-Token"] = client.get("/console/api/session").json()["csrf"]
        return client


@pytest.fixture
def served(tmp_path: Path, bundle: Bundle, make_plan: Callable[..., Plan]) -> Iterator[Served]:
    with recent_log() as log:
        served = Served(tmp_path / "server", bundle, make_plan, log)
        with closing(served.store):
            yield served


def check_none(job: Job) -> Job:
    return job


SETTINGS, DEVICES, BACKUP, INVITATIONS, TAKE_BACK, ASKERS, ENROLMENT = (
    f"/console/api/jobs/0/{name}"
    for name in ("settings", "devices", "backup", "invitations", "invitations/take-back", "askers", "enrolment")
)
INVITATION = {"name": "hall", "uses": 5, "seconds": 3600, "group": "lab", "waits": True}
#: Whatever changes something.
WISHES = {
    SETTINGS: {"name": "cohort", "value": 1},
    DEVICES: {"act": "block", "names": ["a"], "label": ""},
    BACKUP: {},
    INVITATIONS: INVITATION,
    TAKE_BACK: {"name": "hall"},
    ASKERS: {"names": ["phone-1"], "admit": True},
}


def test_without_a_session_there_is_a_form_and_nothing_else(served: Served) -> None:
    client = served.client()
    assert client.get("/").headers["Location"] == "/console/"
    assert client.get("/console/").headers["Location"] == "/console/login"
    assert "Nobody can log in yet" in client.get("/console/login").text
    served.logins.add("ann", "look")
    assert 'autocomplete="current-password"' in client.get("/console/login").text
    for path in ("session", "jobs", *(f"jobs/0/{name}" for name in ("state", "curves", "devices", "names", "log"))):
        assert client.get(f"/console/api/{path}").status_code == 401
    assert client.get(ENROLMENT).status_code == client.get(ASKERS).status_code == 401
    for place, wish in WISHES.items():
        assert client.post(place, json=wish).status_code == 401
    for path in ("static/../app.py", "static/%2e%2e/app.py", "static/..%2fapp.py", "static/", "api/jobs/0/settings"):
        assert client.get(f"/console/{path}").status_code in (404, 405)


def test_passwords_are_hashed_in_a_file_of_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "server"
    assert main(["console", "login", str(state), "ann", "--role", "operate"]) == 0
    password = capsys.readouterr().out.splitlines()[-1]
    logins = Logins(state)
    assert stat.S_IMODE(logins.path.stat().st_mode) == 0o600
    assert password not in logins.path.read_text()
    assert logins()["ann"].admits(password)
    assert not logins()["ann"].admits(password + "x")
    assert logins.add("ann", "look") != password
    assert not logins()["ann"].admits(password), "a new password replaces the old one"
    assert "[state.login-name]" in refused(capsys, "console login", state, "a b")
    assert "[state.no-such-login]" in refused(capsys, "console login", state, "bob", "--remove")
    assert main(["console", "login", str(state), "ann", "--remove"]) == 0
    assert logins() == {}
    logins.path.chmod(0o640)
    with raises("state.logins-readable", "chmod 600"):
        logins()
    logins.path.chmod(0o600)
    logins.path.write_text("{")
    with raises("state.logins-damaged", logins.path):
        logins()


def test_a_session_is_in_a_cookie_that_no_script_and_no_other_site_has(served: Served) -> None:
    client, password = served.client(), served.logins.add("ann", "look")
    wrong = client.post("/console/login", data={"name": "ann", "password": "wrong"})
    assert (wrong.status_code, wrong.headers["Location"]) == (303, "/console/login?wrong")
    assert client.post("/console/login", data={"name": "bob", "password": password}).headers["Location"] == (
        "/console/login?wrong"
    )
    entered = client.post("/console/login", data={"name": "ann", "password": password})
    flags = entered.headers["Set-Cookie"].split("; ")[1:]
    assert set(flags) == {"HttpOnly", "Path=/console/", "SameSite=strict", "Secure"}
    assert client.get("/console/").status_code == 200
    assert client.get("/console/api/session").json()["role"] == "look"


def test_a_session_ends(served: Served) -> None:
    client = served.enter("ann", "look")
    assert client.post("/console/logout", headers={"X-CSRF-Token": "wrong"}).status_code == 403
    assert client.post("/console/logout").status_code == 204
    assert client.get("/console/api/session").status_code == 401
    others = {name: served.enter(name, "look") for name in ("bob", "eve", "kim")}
    served.logins.remove("bob")
    assert others["bob"].get("/console/api/session").status_code == 401, "its login was taken away"
    served.now += UNUSED_S / 2
    assert others["kim"].get("/console/api/session").status_code == 200
    served.now += UNUSED_S / 2 + 1
    assert others["eve"].get("/console/api/session").status_code == 401, "it was not used"
    while served.now < SESSION_S:
        assert others["kim"].get("/console/api/session").status_code == 200
        served.now += UNUSED_S
    assert others["kim"].get("/console/api/session").status_code == 401, "a day's work is over"


def test_wrong_passwords_make_an_address_wait(tmp_path: Path) -> None:
    now = [0.0]
    logins = Logins(tmp_path)
    password = logins.add("ann", "look")
    gate = Gate(logins, clock=lambda: now[0])

    def enter(password: str, address: str) -> int:
        try:
            gate.enter("ann", password, address)
        except HTTPException as refused:
            return refused.status_code
        return 200

    assert [enter("wrong", "1.2.3.4") for _ in range(FREE_TRIES)] == [403] * FREE_TRIES
    assert enter(password, "1.2.3.4") == 429, "even the right one has to wait"
    assert enter(password, "5.6.7.8") == 200
    for seconds in itertools.takewhile(lambda wait: wait <= LONGEST_S, (2.0**power for power in itertools.count())):
        now[0] += seconds - 0.1
        assert enter("wrong", "1.2.3.4") == 429
        now[0] += 0.2
        assert enter("wrong", "1.2.3.4") == 403
    now[0] += LONGEST_S
    assert enter(password, "1.2.3.4") == 200
    assert enter("wrong", "1.2.3.4") == 403, "the right one clears the account"


def test_who_may_look_does_not_clear_tries_at_another_login(tmp_path: Path) -> None:
    logins = Logins(tmp_path)
    logins.add("ann", "operate")
    own = logins.add("bob", "look")
    gate = Gate(logins, clock=lambda: 0.0)
    for tried in range(1, FREE_TRIES + 1):
        with pytest.raises(HTTPException, match="403"):
            gate.enter("ann", "wrong", "1.2.3.4")
        if tried < FREE_TRIES:
            gate.enter("bob", own, "1.2.3.4")
    with pytest.raises(HTTPException, match="429"):
        gate.enter("ann", "wrong", "1.2.3.4")


def test_a_right_password_takes_no_wait_of_wrong_ones_beside_it(tmp_path: Path) -> None:
    """They come while it is hashed."""
    logins = Logins(tmp_path)
    logins.add("ann", "operate")
    own = logins.add("bob", "look")
    hashing, go_on = threading.Event(), threading.Event()

    class Slow(Login):
        def admits(self, password: str) -> bool:
            hashing.set()
            return go_on.wait(PATIENCE_S) and super().admits(password)

    slow = {name: Slow(**vars(login)) if name == "bob" else login for name, login in logins().items()}
    gate = Gate(lambda: slow, clock=lambda: 0.0)
    entering = threading.Thread(target=gate.enter, args=("bob", own, "1.2.3.4"))
    entering.start()
    assert hashing.wait(PATIENCE_S)
    for _ in range(FREE_TRIES - 1):
        with pytest.raises(HTTPException, match="403"):
            gate.enter("ann", "wrong", "1.2.3.4")
    go_on.set()
    entering.join()
    with pytest.raises(HTTPException, match="429"):
        gate.enter("ann", "wrong", "1.2.3.4")


def test_looking_is_not_operating(served: Served) -> None:
    looker, operator = served.enter("ann", "look"), served.enter("bob", "operate")
    for place, wish in WISHES.items():
        answer = looker.post(place, json=wish)
        assert (answer.status_code, "may look, but not operate" in answer.json()["error"]) == (403, True)
    assert looker.get(ENROLMENT).status_code == looker.get(ASKERS).status_code == 403
    assert (served.store.load_blocked(), list_offers(served.folder)) == ({}, [])
    assert operator.post(SETTINGS, json=WISHES[SETTINGS]).status_code == 204
    assert served.controls.job(5).cohort == 1
    assert served.controls.job(4).cohort == 2, "the plan of the open round stays"


def test_another_page_changes_nothing(served: Served) -> None:
    operator = served.enter("ann", "operate")
    others: list[dict[str, Any]] = [
        {"X-CSRF-Token": ""}, {"X-CSRF-Token": "é".encode("latin-1")}, {"Origin": "https://evil.test"},
        {"Sec-Fetch-Site": "cross-site"},
    ]  # fmt: skip
    for headers, (place, wish) in itertools.product(others, WISHES.items()):
        assert operator.post(place, json=wish, headers=headers).status_code == 403
    assert served.controls.job(5).cohort == 2
    assert (served.store.load_blocked(), list_offers(served.folder)) == ({}, [])


def test_another_page_cannot_log_somebody_in(served: Served) -> None:
    form = {"name": "ann", "password": served.logins.add("ann", "look")}
    answer = served.client().post("/console/login", data=form, headers={"Origin": "https://evil.test"})
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_what_cannot_be_is_refused_in_a_sentence(served: Served) -> None:
    operator = served.enter("ann", "operate")
    for name, value, kind in (
        ("cohort", 0, "job.out-of-range"),
        ("cohort", "2", "job.wrong-type"),
        ("cohort", {"a": 1}, "job.wrong-type"),
        ("deadline", float("nan"), "job.out-of-range"),
        ("learning_rates", [1e-3], "job.blocks-differ"),
        ("learning_rates", 1e-3, "job.wrong-type"),
        ("state", "stopped", "job.unknown-choice"),
        ("state", None, "job.unknown-choice"),
        ("rounds", 7, "job.cannot-change"),
        ("__class__", 7, "job.cannot-change"),
    ):
        answer = operator.post(SETTINGS, content=json.dumps({"name": name, "value": value}))
        assert (answer.status_code, answer.json()["kind"]) == (400, kind)
    for body in (b"", b"[]", b"{", b'{"name": "cohort"}', b"\xff", b"7", b"[" * 5000):
        assert operator.post(SETTINGS, content=body).status_code == 400
    assert operator.get("/console/api/jobs/0/state").json()["changes"] == []


def test_half_a_character_is_in_no_wish(served: Served) -> None:
    operator, half = served.enter("ann", "operate"), "b\ud800"
    for place, wish in (
        (SETTINGS, {"name": half, "value": 1}),
        (SETTINGS, {"name": "cohort", "value": {"a": [half]}}),
        *((DEVICES, {"act": act, "names": [half], "label": "lab"}) for act in ACTS),
        *((DEVICES, {"act": act, "names": ["a"], "label": half}) for act in ACTS),
        (INVITATIONS, INVITATION | {"name": half}),
        (TAKE_BACK, {"name": half}),
        (ASKERS, {"names": [half], "admit": True}),
    ):
        answer = operator.post(place, content=json.dumps(wish))
        assert (answer.status_code, "half a character" in answer.json()["error"]) == (400, True), (place, wish)


def test_a_body_has_an_end(served: Served) -> None:
    assert served.enter("ann", "operate").post(SETTINGS, content=b" " * 20_000).status_code == 413


def test_changes_say_who_when_old_and_new_and_outlive_the_server(served: Served, bundle: Bundle) -> None:
    operator = served.enter("ann", "operate")
    wishes = {"cohort": 1, "deadline": 7.5, "learning_rates": [1e-4, 1e-3], "state": "paused"}
    for name, value in wishes.items():
        assert operator.post(SETTINGS, json={"name": name, "value": value}).status_code == 204
    assert operator.post(SETTINGS, json={"name": "cohort", "value": 1}).status_code == 204, "it is so already"
    state = operator.get("/console/api/jobs/0/state").json()
    changes = state["changes"][::-1]
    assert {change["name"]: json.loads(change["new"]) for change in changes} == wishes
    assert [json.loads(change["old"]) for change in changes] == [
        2,
        60.0,
        list(served.controls.job(4).learning_rates),
        "running",
    ]
    assert {(change["who"], change["round"]) for change in changes} == {("ann", 5)}
    assert all(abs(change["at"] - time.time()) < 60 for change in changes)
    assert state["settings"] == {name: value for name, value in wishes.items() if name != "state"}
    again = Controls(
        served.store, check_job(Job(cohort=2, split=(3,), fanouts=(1, 4), rounds=10), bundle), lambda job: job
    )
    assert again.job(5) == served.controls.job(5)
    assert (again.job(5).cohort, again.job(5).deadline, again.job(5).learning_rates) == (1, 7.5, (1e-4, 1e-3))
    assert (again.state(4), again.state(5)) == ("running", "paused")
    for state in ("ended", "running"):
        assert operator.post(SETTINGS, json={"name": "state", "value": state}).status_code == 204
        assert served.controls.state(5) == state
    with raises("job.changes-do-not-fit", "learning_rates", "options that it had"):
        Controls(
            served.store, check_job(Job(cohort=2, fanouts=(4,), scales=(1,), learning_rates=(1,)), bundle), check_none
        )


def test_a_cohort_takes_its_default_quorum_along_and_the_mode_stays(served: Served, bundle: Bundle) -> None:
    def changed(job: Job, cohort: int) -> Job:
        controls = Controls(served.store, job, lambda job: check_job(job, bundle))
        wish = Wish("ann", "cohort", cohort)
        controls.take(wish, 5)
        controls.tell()
        wish.wait()
        return controls.job(5)

    assert (changed(Job(cohort=4), 8).quorum, changed(Job(cohort=4), 3).quorum) == (4, 2)
    assert changed(Job(cohort=4, quorum=1), 8).quorum == 1
    assert changed(Job(cohort=4), 20).runs_as == "robust"
    with raises("job.cohort-too-small"):
        changed(Job(cohort=20), 4)
    with raises("job.quorum-above-cohort"):
        changed(Job(cohort=4, quorum=4), 2)


def test_what_devices_say_is_data(served: Served) -> None:
    """It comes as JSON, which no browser takes for a page, and numbers that JSON has not are left out."""
    client = served.enter("ann", "look")
    answer = client.get("/console/api/jobs/0/devices")
    assert answer.headers["Content-Type"] == "application/json"
    first, second = answer.json()["devices"]
    assert (first["name"], first["version"], first["battery"], first["lag"], first["state"]) == (
        "a",
        MARKUP,
        0.5,
        3,
        "away",
    )
    assert (second["battery"], second["can"], second["unusual"]) == (
        None, ["objectives"], "sent away after round 3; 3 results far larger than others' since round 2",
    )  # fmt: skip
    now = client.get("/console/api/jobs/0/state").json()["now"]
    assert now["reasons"] == {"b": MARKUP}
    assert (now["round"], now["asked"], now["answered"], now["waiting_for"]) == (4, 3, 1, ["c"])
    scripts = Path(make_console.__code__.co_filename).parent / "static"
    for script in scripts.glob("*.js"):
        if not script.name.startswith("uplot"):
            assert not any(
                word in script.read_text() for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(")
            )
    for page in (scripts.parent / "pages").glob("*.html"):
        assert not any(word in page.read_text() for word in ("<style", "style=", "onclick", "<script>", "http"))


def test_numbers_are_the_journals(served: Served) -> None:
    state = served.enter("ann", "look").get("/console/api/jobs/0/state").json()
    history = served.store.history()
    rounds = state["curves"]["rounds"]
    assert rounds["round"] == [1, 2, 3]
    assert rounds["loss"] == [closed.loss for closed in history]
    assert rounds["seconds"] == [closed.seconds for closed in history]
    assert rounds["results"] == [2, 2, 2]
    assert rounds["joules"] == [1.5, 3.0, 4.5]
    assert (state["round"], state["rounds"], state["counts"]) == (3, 10, {"results late": 2})
    signatures = 64 * 3
    assert state["disk"]["journal"] == served.store.journal.size(0, 3) - signatures
    assert state["fleet"]["up"] == 10
    assert state["privacy"] is None


def test_long_runs_are_thinned_and_a_part_of_one_is_whole(served: Served, tmp_path: Path) -> None:
    with served.store.transaction() as execute:
        for round in range(4, 5 * POINTS + 1):
            execute("INSERT INTO history VALUES (?, ?, 'a', 1, 1, 1, NULL, NULL, NULL, NULL)", (round, float(round)))
    client = served.enter("ann", "look")
    found = client.get("/console/api/jobs/0/curves").json()
    assert found["step"] == 5
    assert len(found["rounds"]["round"]) <= POINTS + 1
    assert found["rounds"]["round"][-1] == 5 * POINTS
    assert all(
        loss == round for round, loss in zip(found["rounds"]["round"][1:], found["rounds"]["loss"][1:], strict=True)
    )
    part = client.get("/console/api/jobs/0/curves?first=100&last=200").json()
    assert (part["step"], part["rounds"]["round"]) == (1, list(range(100, 201)))


def test_devices_are_found_ordered_and_cut(served: Served) -> None:
    served.store.save_members(
        Member(f"phone-{n:03d}", n.to_bytes(32, "big"), round=n % 4, results=n) for n in range(120)
    )
    client = served.enter("ann", "look")

    def names(**asked: object) -> list[str]:
        found = client.get("/console/api/jobs/0/devices", params=asked).json()  # type: ignore[arg-type]
        return [device["name"] for device in found["devices"]]

    assert names(match="PHONE-01") == [f"phone-01{n}" for n in range(10)]
    assert names(order="results", descending=1)[0] == "phone-119"
    assert names(match="phone", page=2) == [f"phone-{n:03d}" for n in range(100, 120)]
    assert names(match="phone", page=99) == names(match="phone", page=2)
    assert names(choice="unusual") == ["b"]
    assert names(choice="away", match="phone", page=1)[0] == "phone-050"
    assert names(choice="ready") == []
    found = client.get("/console/api/jobs/0/names", params={"choice": "behind", "match": "phone"}).json()
    assert found == [f"phone-{n:03d}" for n in range(120) if n % 4 < 3]
    assert "phone-003" not in names(choice="behind", match="phone")
    assert names(order="lag", match="phone")[0] == "phone-003"
    assert names(match="%") == names(match="' OR 1") == []
    assert client.get("/console/api/jobs/0/names?choice=none").status_code == 400
    for asked in ("order=name;--", "choice=none", "page=-1", "page=1e3", "page=99999999999999"):
        assert client.get(f"/console/api/jobs/0/devices?{asked}").status_code == 400
    assert client.get("/console/api/jobs/1/state").status_code == 404


def test_devices_are_labelled_and_found_by_it(served: Served, tmp_path: Path) -> None:
    operator = served.enter("ann", "operate")

    def say(act: str, label: str, *names: str) -> dict[str, Any]:
        answer: dict[str, Any] = operator.post(DEVICES, json={"act": act, "names": names, "label": label}).json()
        return answer

    def found(**asked: str) -> list[str]:
        names: list[str] = operator.get("/console/api/jobs/0/names", params=asked).json()
        return names

    assert say("label", "old", "a", "b")["changed"] == 2
    assert say("label", "old", "a", "b")["changed"] == 0
    assert say("label", "lent", "b")["changed"] == 1
    assert say("unlabel", "old", "b", "a", "b")["changed"] == 2
    assert say("label", "old", "a")["changed"] == 1
    assert say("label", MARKUP, "a")["kind"] == "device.label"
    assert say("label", "x", "a", MARKUP)["kind"] == "device.unknown"
    listed = operator.get("/console/api/jobs/0/devices").json()
    assert [(device["labels"], device["group"]) for device in listed["devices"]] == [
        (["old"], "east"),
        (["lent"], None),
    ]
    assert (found(label="old"), found(label="lent"), found(label="x"), found(group="east"), found(group="none")) == (
        ["a"], ["b"], [], ["a"], [],
    )  # fmt: skip
    state = operator.get("/console/api/jobs/0/state").json()
    assert (state["groups"], state["labels"]) == (["east"], ["lent", "old"])
    changes = [(change["who"], change["old"], change["new"], change["devices"]) for change in state["device_changes"]]
    assert changes == [
        ("ann", "null", '"old"', ["a"]),
        ("ann", '"old"', "null", ["b", "a"]),
        ("ann", "null", '"lent"', ["b"]),
        ("ann", "null", '"old"', ["a", "b"]),
    ]
    back_up(served.folder, tmp_path / "backup")
    assert JobView(tmp_path / "backup").names(Search(label="lent")) == ["b"]


def test_devices_are_blocked_as_the_command_does_it(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    operator = served.enter("ann", "operate")

    def say(act: str, *names: str) -> dict[str, Any]:
        answer: dict[str, Any] = operator.post(DEVICES, json={"act": act, "names": names, "label": ""}).json()
        return answer

    assert say("block", "a", "nobody")["kind"] == "device.unknown"
    assert (served.store.load_blocked(), served.cut) == ({}, [])
    assert say("block", "a", "b") == {"changed": 2, "logins": 1, "problem": ""}
    assert served.store.load_blocked() == {member.name: member.key for member in served.members}
    assert served.cut == ["a", "b"]
    assert operator.get("/console/api/jobs/0/names?choice=blocked").json() == ["a", "b"]
    assert operator.get("/console/api/jobs/0/names?choice=away").json() == []
    assert {device["state"] for device in operator.get(DEVICES).json()["devices"]} == {"blocked"}
    assert main(["block", str(served.folder), "a", "--undo"]) == 0
    assert say("unblock", "a", "b") == {"changed": 1, "logins": None, "problem": ""}
    assert served.store.load_blocked() == {}
    changes = operator.get("/console/api/jobs/0/state").json()["device_changes"]
    assert [(change["who"], change["name"], change["new"], change["count"]) for change in changes] == [
        ("ann", "blocked", "false", 1), ("fedspzo block", "blocked", "false", 1), ("ann", "blocked", "true", 2),
    ]  # fmt: skip
    for body in ({"act": "forget"}, {"act": "block", "names": "a"}, {"act": "block", "names": [1]}, []):
        assert operator.post(DEVICES, json={"names": [], "label": "", **dict(body)}).status_code == 400


def test_an_invitation_is_made_shown_once_and_taken_back(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    operator = served.enter("ann", "operate")
    caplog.set_level(logging.INFO)
    stamp = operator.get("/console/api/jobs/0/state").json()["enrolment"]
    answer = operator.post(INVITATIONS, json=INVITATION)
    assert (answer.headers["Cache-Control"], answer.json()["certified"]) == ("no-store", False)
    made = Invitation.parse(answer.json()["text"])
    assert (made.access.url, made.bundle_url, made.job) == ("mqtts://localhost:8883", served.url, "default")
    assert made.access.authority == (served.broker / "ca.pem").read_text()
    (offer,) = list_offers(served.folder)
    assert (offer.name, offer.uses, offer.group, offer.waits, offer.broker) == ("hall", 5, "lab", True, served.broker)
    assert abs(offer.expires - time.time() - 3600) < 60
    shown = operator.get(ENROLMENT).json()
    assert (shown["lacks"], shown["asking"], shown["askers"]) == ("", 0, [])
    assert shown["invitations"] == [
        {"name": "hall", "uses": 5, "used": 0, "expires": offer.expires, "group": "lab", "waits": True}
    ]
    taken = operator.post(INVITATIONS, json=INVITATION)
    assert (taken.status_code, taken.json()["kind"]) == (400, "enrolment.invitation-taken")
    state = operator.get("/console/api/jobs/0/state").json()
    assert state["enrolment"] != stamp
    assert operator.post(TAKE_BACK, json={"name": "hall"}).status_code == 204
    assert operator.post(TAKE_BACK, json={"name": "hall"}).json()["kind"] == "enrolment.no-invitation"
    assert operator.get(ENROLMENT).json()["invitations"] == []
    state = operator.get("/console/api/jobs/0/state").json()
    assert [(change["who"], change["name"], change["old"], change["new"]) for change in state["device_changes"]] == [
        ("ann", "invitation", '"hall"', "null"), ("ann", "invitation", "null", '"hall"'),
    ]  # fmt: skip
    assert "'ann' has made the invitation 'hall' for 5 devices" in caplog.text
    log = operator.get("/console/api/jobs/0/log").text
    for said in (caplog.text, log, json.dumps(shown), json.dumps(state)):
        assert made.token not in said


def test_an_invitation_that_cannot_be_made(served: Served) -> None:
    operator = served.enter("ann", "operate")
    for wrong, kind in (
        ({"name": "a b"}, "enrolment.invitation-name"),
        ({"group": MARKUP}, "enrolment.invitation-name"),
        ({"uses": 0}, "enrolment.invitation-range"),
        ({"uses": 10**30}, "enrolment.invitation-range"),
        ({"seconds": 10**30}, "enrolment.invitation-range"),
    ):
        answer = operator.post(INVITATIONS, json={**INVITATION, **wrong})
        assert (answer.status_code, answer.json()["kind"]) == (400, kind)
    for wrong in ({"name": 1}, {"uses": "5"}, {"uses": 1.5}, {"seconds": None}, {"group": None}, {"waits": "no"}):
        assert operator.post(INVITATIONS, json={**INVITATION, **wrong}).status_code == 400
    served.url = "http://127.0.0.1:8080"
    assert operator.get(ENROLMENT).json()["lacks"].startswith("--http-certificate")
    answer = operator.post(INVITATIONS, json=INVITATION)
    assert (answer.status_code, answer.json()["kind"]) == (400, "enrolment.cannot-invite")
    assert "start it with --http-certificate" in answer.json()["error"]
    with raises("enrolment.cannot-invite", "--cut-off"):
        Enrolling(served.folder, LoginsOnDemand(), None, lambda: "https://server.test").invite(
            "ann", "a", 1, 1, "", False
        )
    served.url = "https://server.test"
    (served.broker / "passwords").unlink()
    assert operator.post(INVITATIONS, json=INVITATION).json()["kind"] == "broker.not-a-state-folder"
    assert list_offers(served.folder) == []


def test_devices_that_ask_are_admitted_or_refused(served: Served, tmp_path: Path) -> None:
    operator = served.enter("ann", "operate")
    token = Invitation.parse(operator.post(INVITATIONS, json={**INVITATION, "uses": 99}).json()["text"]).token
    keys = {f"phone-{number:02d}": Signer(tmp_path / f"key-{number}") for number in range(LISTED + 3)}
    with Enrolment(served.folder, "default", LoginsOnDemand()) as enrolment:
        for name, signer in keys.items():
            request = Request.make(token, "default", name, signer, "p" * 43)
            assert enrolment.submit(request.encode(), "here").result() == ASKED
    shown = operator.get(ENROLMENT).json()
    assert (shown["asking"], len(shown["askers"]), shown["invitations"][0]["used"]) == (LISTED + 3, LISTED, LISTED + 3)
    first = shown["askers"][0]
    assert (first["name"], first["key"], first["invitation"], first["group"]) == (
        "phone-00", keys["phone-00"].public.hex(), "hall", "lab",
    )  # fmt: skip
    assert abs(first["asked"] - time.time()) < 60
    assert operator.get(ASKERS).json() == list(keys)
    stamp = operator.get("/console/api/jobs/0/state").json()["enrolment"]

    def decide(admit: object, *names: object) -> Any:
        return operator.post(ASKERS, json={"names": names, "admit": admit})

    assert decide(True, "phone-00", "phone-01", "phone-00").status_code == 204
    assert decide(False, "phone-02").status_code == 204
    assert decide(True, "phone-03", "nobody").json()["kind"] == "enrolment.not-asking"
    assert decide(False, "phone-03", "phone-00").json()["kind"] == "enrolment.takes-part"
    for wrong in (decide("no", "phone-03"), decide(True, 3), operator.post(ASKERS, json={"names": "a", "admit": True})):
        assert wrong.status_code == 400
    assert operator.get(ASKERS).json() == list(keys)[3:]
    assert main(["admit", str(served.folder), "phone-02"]) == 0
    known = Enrolled(served.store)
    assert [known.key(name) for name in list(keys)[:4]] == [
        *(keys[name].public for name in list(keys)[:3]), None,
    ]  # fmt: skip
    assert known.group("phone-00") == "lab"
    state = operator.get("/console/api/jobs/0/state").json()
    assert state["enrolment"] != stamp
    changes = [(change["who"], change["old"], change["new"], change["devices"]) for change in state["device_changes"]]
    assert changes[:3] == [
        ("fedspzo admit", '"refused"', '"admitted"', ["phone-02"]),
        ("ann", '"asked"', '"refused"', ["phone-02"]),
        ("ann", '"asked"', '"admitted"', ["phone-00", "phone-01"]),
    ]
    assert list_askers(served.folder, "refused") == []


def test_logins_that_stay_are_told_of(served: Served) -> None:
    def cut_off(names: Sequence[str]) -> Sequence[str]:
        raise BrokerError("broker.not-a-state-folder", "it is not the state folder of a broker; look")

    told = DeviceControls(served.folder, cut_off).act("ann", "block", ["a"])
    assert (told["changed"], told["logins"], told["problem"][:9]) == (1, None, "it is not")
    assert DeviceControls(served.folder).act("ann", "block", ["b"])["logins"] is None
    assert served.store.load_blocked().keys() == {"a", "b"}


def test_the_last_lines_of_the_log(served: Served) -> None:
    client, log = served.enter("ann", "look"), logging.getLogger("fedspzo.broker.server.loop")
    stamp = client.get("/console/api/jobs/0/state").json()["log"]
    log.warning("device '%s' is odd\n\x1b[31m", MARKUP, extra={"kind": "device.odd"})
    try:
        raise ValueError("seven")
    except ValueError:
        log.exception("it failed")
    log.debug("a secret")
    *_, odd, failed = client.get("/console/api/jobs/0/log").json()
    assert (odd["level"], odd["kind"], odd["text"]) == (
        "warning", "device.odd", f"device '{MARKUP}' is odd\\n\\x1b[31m",
    )  # fmt: skip
    assert (failed["level"], failed["text"]) == ("error", "it failed: ValueError('seven')")
    assert abs(failed["at"] - time.time()) < 60
    assert client.get("/console/api/jobs/0/state").json()["log"] != stamp
    for number in range(LINES + 5):
        log.error("%d", number)
    lines = client.get("/console/api/jobs/0/log").json()
    assert [line["text"] for line in lines] == [str(number) for number in range(5, LINES + 5)]


def test_a_backup_is_made_again_where_one_is(served: Served, tmp_path: Path) -> None:
    """Whoever may operate starts it; where it goes was chosen on the server's machine."""
    operator, target = served.enter("ann", "operate"), tmp_path / "backup"

    def state() -> Any:
        return operator.get("/console/api/jobs/0/state").json()

    assert state()["backup"] is None
    assert operator.post(BACKUP, json={"folder": str(target)}).json()["kind"] == "state.never-backed-up"
    assert main(["server", "backup", str(served.folder), str(target)]) == 0
    assert (state()["backup"]["who"], state()["backup"]["folder"]) == ("fedspzo server backup", str(target.resolve()))
    served.controls.take(Wish("ann", "cohort", 1), 5)
    assert operator.post(BACKUP).status_code == 204
    wait_until(lambda: state()["backing_up"]["seconds"] is None)
    assert (state()["backing_up"]["problem"], state()["backup"]["who"], state()["backup"]["round"]) == ("", "ann", 3)
    assert JobView(target).state(0)["settings"]["cohort"] == 1
    (target / "notes").touch()
    (target / KEY).unlink()
    (target / KEY).mkdir()
    operator.post(BACKUP)
    wait_until(lambda: state()["backing_up"]["seconds"] is None)
    assert "cannot take the backup" in state()["backing_up"]["problem"]
    shutil.rmtree(target)
    assert operator.post(BACKUP).json()["kind"] == "state.backup-gone"
    assert not target.exists(), "a disk that is away is not filled from below"


def test_every_answer_has_the_headers(served: Served) -> None:
    client = served.enter("ann", "look")
    for path in ("", "login", "api/jobs", "api/none", "static/console.js", "static/none", "api/jobs/0/curves?first=x"):
        answer = client.get(f"/console/{path}")
        for name, value in HEADERS.items():
            if name != "Cache-Control":
                assert answer.headers[name] == value, path
        assert answer.headers["Cache-Control"] == ("no-cache" if "ETag" in answer.headers else "no-store"), path
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_folder_alone_can_be_looked_at_by_the_link_that_was_printed(served: Served) -> None:
    gate = Gate(dict, "secret")
    client = TestClient(make_site(make_console([JobView(served.folder)], gate, secure=False)), follow_redirects=False)
    assert client.get("/console/enter?key=wrong").status_code == 403
    assert client.get("/console/enter").status_code == 403
    assert client.get("/console/enter?key=secret").headers["Location"] == "/console/"
    session = client.get("/console/api/session").json()
    assert session["role"] == "look"
    state = client.get("/console/api/jobs/0/state").json()
    assert (state["live"], state["now"], state["round"]) == (False, None, 3)
    assert (state["log"], state["groups"], client.get("/console/api/jobs/0/log").json()) == (None, [], None)
    for place, wish in WISHES.items():
        assert client.post(place, json=wish, headers={"X-CSRF-Token": session["csrf"]}).status_code == 403
    assert client.get("/console/api/jobs").json()[0]["best"] is None


def test_what_noise_has_cost_is_the_accountants(tmp_path: Path, bundle: Bundle) -> None:
    job = check_job(Job(rounds=5, privacy="device", privacy_budget=20, mode="robust"), bundle)
    with ServerStore(tmp_path, bytes(32)) as store:
        store_job(store, job)
        view = JobView(tmp_path)
        for round in (1, 2, 3):
            plan = plan_round(job, round)
            store.close_round(
                Entry(plan, (Contribution("", 1.0, (0.5,) * plan.scalars),)), ClosedRound(round, 1.0, ("a",), 1.0, 0.1)
            )
            found = view.state(0)["privacy"]
            assert found["epsilon"] == epsilon(Spent(job, store.journal.entries()).rho, job.delta)
            assert 0 < found["epsilon"] < found["budget"] == 20


def test_a_file_of_an_older_version_lacks_what_came_later(served: Served) -> None:
    with served.store.transaction() as execute:
        for table in (
            "settings",
            "changes",
            "conduct",
            "records",
            "evaluations",
            "labels",
            "device_changes",
            "backups",
        ):
            execute(f"DROP TABLE {table}")
    view = JobView(served.folder)
    assert (view.state(0)["rounds"], view.state(0)["settings"], view.devices()["found"]) == (None, None, 2)


@pytest.mark.parametrize(
    ("host", "tls", "safe"),
    [("127.0.0.1", False, True), ("::1", False, True), ("[::1]", False, True), ("localhost", False, True),
     ("0.0.0.0", False, False), ("::", False, False), ("192.168.1.2", False, False), ("example.org", False, False),
     ("", False, False), ("0.0.0.0", True, True), ("example.org", True, True)],
)  # fmt: skip
def test_passwords_travel_over_tls_or_not_at_all(host: str, tls: bool, safe: bool) -> None:
    assert may_serve_console(host, tls) == safe


def test_where_it_is_not_safe_there_is_no_console(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    client = TestClient(make_site(make_refusal("only over HTTPS")))
    for path in ("", "login", "static/console.js"):
        answer = client.get(f"/console/{path}")
        assert (answer.status_code, answer.json()) == (403, {"error": "only over HTTPS"})
    assert "[option.console-without-tls]" in refused(capsys, "console", served.folder, "--http", "0.0.0.0:0")
    assert "[state.not-a-servers]" in refused(capsys, "console", served.folder / "snapshots")


def test_the_command_leads_to_a_server_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with told_address(tmp_path, "https://host:8443/console/"):
        assert not is_locked(tmp_path)
        (tmp_path / DATABASE).touch()
        with lock_folder(tmp_path):
            assert main(["console", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "the console is at https://host:8443/console/\n"
    assert not (tmp_path / ADDRESS).exists()
