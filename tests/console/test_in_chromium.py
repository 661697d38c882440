"""The console in Chromium, before a real server, mosquitto and devices: its numbers, its controls, its access."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from browser import browsing, missing, violations
from federation import FEDSPZO, PIPES, Processes
from patience import PATIENCE_S, wait_until
from ports import free_port

from fedspzo.api.simulation import simulate
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.server.console.logins import Logins
from fedspzo.broker.server.controls import store_job
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.enrolment.invitations import list_askers, list_offers
from fedspzo.broker.server.state_folder import ADDRESS, read_history, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import main
from fedspzo.device_runtime.files import make_folder
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.signing import Signer
from fedspzo.device_runtime.replica.device_key import KEY

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="mosquitto is not installed"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

DEVICES, INVITED = ("phone-1", "phone-2"), ("tablet-1", "tablet-2")
MARKUP = "<img src=x onerror=alert(1)>"
OPTIONS = ("--rounds", "100000", "--devices", "2", "--http", "127.0.0.1:0", "--evaluate-every", "20")


class Federation:
    """A job, and the passwords of those who watch it."""

    def __init__(self, processes: Processes, broker: ManagedBroker) -> None:
        self.processes, self.broker, self.state = processes, broker, processes.folder / "server"
        logins = Logins(self.state)
        self.passwords = {role: logins.add(role, role) for role in ("look", "operate")}
        self.admitted = processes.folder / "admitted"
        self.admitted.touch()

    def begin(self) -> None:
        """Start the server and two devices in two groups, which it knows, and wait for some rounds."""
        for name, group in zip(DEVICES, ("east", "west"), strict=True):
            make_folder(self.processes.folder / name, 0o700)
            key = Signer(self.processes.folder / name / KEY).public.hex()
            with self.admitted.open("a") as file:
                print(name, key, f"group={group}", file=file)
        self.start("--cut-off", str(self.broker.folder))
        for name in DEVICES:
            self.processes.device(name)
        wait_until(lambda: len(read_history(self.state)) > 25)

    def start(self, *more: str) -> None:
        self.server = self.processes.server(*OPTIONS, "--admit", str(self.admitted), *more)
        assert self.server.stdout is not None
        threading.Thread(target=list, args=(self.server.stdout,)).start()  # or it would wait for a reader of its rounds
        wait_until((self.state / ADDRESS).exists)
        self.url = (self.state / ADDRESS).read_text()

    def invited(self, name: str, invitation: Path) -> subprocess.Popen[str]:
        """A device that comes by an invitation for many."""
        processes = self.processes
        data = processes.write(processes.folder / f"{name}.jsonl", 12)
        options = ("--invitation", invitation, "--state", processes.folder / name, "--data", data, "--id", name)
        command = list(map(str, (*FEDSPZO, "device", processes.bundle, *options)))
        processes.running.append(subprocess.Popen(command, text=True, **PIPES))
        return processes.running[-1]

    def kill(self) -> None:
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        (self.state / ADDRESS).unlink()

    def enter(self, page: Page, role: str) -> None:
        """Come as somebody who knows the password."""
        page.goto(self.url)
        page.get_by_label("Name").fill(role)
        page.get_by_label("Password").fill(self.passwords[role])
        page.get_by_role("button", name="Log in").click()
        page.locator("#status").filter(has_text=".").wait_for()


@pytest.fixture
def federation(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> Iterator[Federation]:
    with ManagedBroker(tmp_path / "broker", port=free_port(), plain_port=(plain := free_port())) as broker:
        processes = Processes(bundle_folder, tmp_path, f"mqtt://127.0.0.1:{plain}", write_examples)
        processes.logins = {
            access.user: f"mqtt://{access.user}:{access.password}@127.0.0.1:{plain}"
            for access in broker.add_users(["server", *DEVICES])
        }
        try:
            yield Federation(processes, broker)
        finally:
            processes.stop()


def fact(page: Page, term: str) -> str:
    pair = page.locator("#facts > div").filter(has=page.locator("dt", has_text=re.compile(f"^{term}$")))
    return pair.locator("dd").inner_text()


def until(page: Page, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).wait_for(timeout=PATIENCE_S * 1000)


def test_an_operator_runs_the_job(federation: Federation) -> None:
    """Each control does what it says, what it changed is in the journal, and outlives a killed server."""
    federation.begin()
    with browsing() as (page, wrong):
        _comes_in(page, federation)
        _follows_live(page)
        page.get_by_role("button", name="Pause").click()
        until(page, "#status", "Paused.")
        _numbers_are_the_journals(page, federation.state)
        last = read_history(federation.state)[-1].round
        for setting, value in {"Cohort": "1", "Deadline": "17.5", "Learning rates": "1e-5, 2e-4"}.items():
            page.get_by_label(setting).fill(value)
            page.get_by_role("button", name=f"Change {setting.split()[-1].lower()}").click()
            until(page, "#changed", f"{setting.lower()} is")
        page.get_by_label("Cohort").fill("0")
        page.get_by_role("button", name="Change cohort").click()
        until(page, "#changed", "Not changed: cohort lies between 1 and")
        page.get_by_label("Cohort").fill("many")
        page.get_by_role("button", name="Change cohort").click()
        until(page, "#changed", "“many” is no number")
        _treats_devices(page, federation)
        _backs_up(page, federation)
        assert violations(page) == []
        assert read_history(federation.state)[-1].round == last, "no round is opened while the job is paused"
        federation.kill()
        until(page, "#connection", "No news")
        federation.start()
        wrong.clear()  # a browser says that a server is away
        federation.enter(page, "operate")
        until(page, "#status", "Paused.")
        assert page.get_by_label("Cohort").input_value() == "1"
        _takes_no_logins(page, federation)
        page.get_by_role("button", name="Resume").click()
        until(page, "#status", "Running.")
        wait_until(lambda: read_history(federation.state)[-1].round > last + 3)
        for entry in read_journal(federation.state)[last:]:
            assert entry.plan.deadline == 17.5
            rate = 1 - 0.9 * (entry.round - 1) / 100_000
            assert [block.learning_rate for block in entry.plan.blocks] == [rate * 1e-5, rate * 2e-4]
        assert {len(closed.devices) for closed in read_history(federation.state)[last:]} == {1}
        page.get_by_role("button", name="End the job …").click()
        page.get_by_role("button", name="Keep it").click()
        page.get_by_role("button", name="End the job …").click()
        page.get_by_role("dialog").get_by_role("button", name="End the job").click()
        assert federation.server.wait(PATIENCE_S) == 0
        rows = page.locator("#changes tbody tr").all_inner_texts()
        made = [row.split("\t")[1:5] for row in rows[::-1]]
        assert [row for row in made if "phone-2" in row[1]] == [
            ["operate", "phone-2: label", "–", "lent"],
            ["operate", "phone-2: blocked", "false", "true"],
            ["operate", "phone-2: blocked", "true", "false"],
            ["operate", "phone-2: blocked", "false", "true"],
        ]
        assert [row for row in made if "phone" not in row[1]][:5] == [
            ["operate", "state", "running", "paused"],
            ["operate", "cohort", "2", "1"],
            ["operate", "deadline", "20", "17.5"],
            ["operate", "learning rates", "0.0001875, 0.003", "0.00001, 0.0002"],
            ["operate", "state", "paused", "running"],
        ]
        assert not [said for said in wrong if "Failed to load resource" not in said]


def test_an_operator_invites_devices_and_lets_one_in(federation: Federation) -> None:
    """One invitation for two devices that ask: one takes part, the other ends, and the token was shown once."""
    port, pem, folder = free_port(), federation.broker.folder / "server.pem", federation.processes.folder
    federation.start(
        "--cut-off", str(federation.broker.folder), "--http", f"127.0.0.1:{port}", "--devices", "1", "--cohort", "1",
        "--http-url", f"https://localhost:{port}", "--http-certificate", str(pem), "--http-key", str(pem),
    )  # fmt: skip
    with browsing() as (page, wrong):
        federation.enter(page, "operate")
        file = _invites(page, folder)
        admitted, refused = (federation.invited(name, file) for name in INVITED)
        _decides(page, federation)
        assert refused.wait(PATIENCE_S) == 78
        assert "[enrolment.refused]" in refused.communicate()[1]
        wait_until(lambda: len(read_history(federation.state)) > 3)
        assert admitted.poll() is None
        assert federation.broker.users() == {"server", *DEVICES, INVITED[0]}
        until(page, "#devices tbody", "lab")
        until(page, "#invited tbody", "2 of 2")
        page.get_by_role("button", name="Take hall back").press("Enter")
        page.keyboard.press("Enter")
        assert len(list_offers(federation.state)) == 1, "who only presses Enter does nothing"
        page.get_by_role("button", name="Take hall back").press("Enter")
        page.get_by_role("button", name="Take it back", exact=True).press("Enter")
        until(page, "#invitations-said", "Taken back: hall.")
        page.locator("#no-invitation").wait_for()
        assert list_offers(federation.state) == []
        changes = [row.split("\t")[1:5] for row in page.locator("#changes tbody tr").all_inner_texts()]
        assert changes == [
            ["operate", "invitation", "hall", "–"],
            ["operate", "tablet-2: request", "asked", "refused"],
            ["operate", "tablet-1: request", "asked", "admitted"],
            ["operate", "invitation", "–", "hall"],
        ]
        assert wrong == []


def _invites(page: Page, folder: Path) -> Path:
    """The file of an invitation that is made by keyboard."""
    page.locator("#invite-name").fill("hall")
    page.locator("#invite-uses").fill("2")
    page.locator("#invite-group").fill("lab")
    page.get_by_label("Admit each device here first").check()
    page.keyboard.press("Enter")
    until(page, "#made-title", "Invitation hall")
    assert violations(page) == []
    text = page.locator("#made code").inner_text().strip()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download its file").click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    assert (file.name, file.read_text()) == ("hall.invitation", f"{text}\n")
    page.keyboard.press("Escape")
    page.locator("#made").wait_for(state="hidden")
    page.locator("#made code:empty").wait_for(state="attached")  # the browser tells of a closed dialog in a later task
    assert text not in page.content()
    return file


def _decides(page: Page, federation: Federation) -> None:
    """By keyboard, where somebody is sure; on a screen in the light, and on a phone in the dark."""
    until(page, "#asking-found", "2 devices ask")
    assert violations(page) == []
    page.set_viewport_size({"width": 390, "height": 900})
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    key = Signer(federation.processes.folder / "tablet-1" / KEY).public.hex()
    row = page.locator("#askers tbody tr").filter(has_text="tablet-1").inner_text().split("\t")
    assert (row[1], row[2], row[4]) == ("hall", "lab", key)
    page.get_by_role("button", name="tablet-1", exact=True).press("Enter")
    until(page, "#decision-key", key)
    assert violations(page) == []
    page.keyboard.press("Enter")
    assert len(list_askers(federation.state)) == 2, "who only presses Enter does nothing"
    page.get_by_role("button", name="tablet-1", exact=True).press("Enter")
    page.get_by_role("button", name="Admit", exact=True).press("Enter")
    until(page, "#decided", "Admitted: tablet-1.")
    until(page, "#asking-found", "1 device asks")
    page.get_by_role("button", name="Admit or refuse all").press("Enter")
    page.get_by_role("button", name="Refuse", exact=True).press("Enter")
    until(page, "#decided", "Refused: tablet-2.")
    until(page, "#asking-found", "0 devices ask")


def _comes_in(page: Page, federation: Federation) -> None:
    """First with a wrong password, then to look, and then to operate."""
    page.goto(federation.url)
    assert violations(page) == []
    page.get_by_label("Name").fill("operate")
    page.get_by_label("Password").fill("guess")
    page.keyboard.press("Enter")
    until(page, "#why", "wrong")
    federation.enter(page, "look")
    until(page, "#found", "2 found")
    for place in ("#controls", "#all-found", "#invitations", "#asking"):
        assert page.locator(place).is_hidden()
    assert page.locator("#devices td button").count() == 0
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Password").wait_for()
    federation.enter(page, "operate")
    until(page, "#lacks", "start the server with --http-certificate and --http-key")
    assert page.locator("#invite").is_hidden()


def _treats_devices(page: Page, federation: Federation) -> None:
    """By keyboard: one is labelled, found by its label and by groups, and blocked where somebody is sure."""
    page.get_by_role("button", name="phone-2", exact=True).press("Enter")
    page.get_by_label("A label").fill("lent")
    page.keyboard.press("Enter")
    until(page, "#chosen-said", "“lent” was put on 1 device.")
    page.keyboard.press("Escape")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.activeElement.textContent") == "phone-2", (
        "what is news elsewhere takes no focus away"
    )
    for choice, name, device in (("Group", "east", "phone-1"), ("Label", "lent", "phone-2")):
        page.get_by_label(choice, exact=True).select_option(name)
        until(page, "#found", "1 found")
        wait_until(partial(_are_seen, page, [device]))
        if choice == "Group":
            page.get_by_label(choice, exact=True).select_option("any")
    page.get_by_role("button", name="Change all found").press("Enter")
    until(page, "#chosen-title", "phone-2")
    page.locator("#block").press("Enter")
    assert page.locator("#sure-title").inner_text() == "Block phone-2?"
    assert violations(page) == []
    page.keyboard.press("Enter")
    assert read_status(federation.state)["blocked"] == [], "who only presses Enter does nothing"
    page.locator("#block").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(page, "#chosen-said", "Blocked: 1 device. Logins taken away: 1.")
    assert read_status(federation.state)["blocked"] == ["phone-2"]
    assert federation.broker.users() >= {"phone-1"}
    assert "phone-2" not in federation.broker.users()
    page.keyboard.press("Escape")
    until(page, "#devices tbody", "blocked")
    page.get_by_label("Label", exact=True).select_option("any")
    page.get_by_label("Level").select_option("errors")
    until(page, "#lines", "0 of the last")
    page.get_by_label("Level").select_option("all")
    until(page, "#log tbody", "'operate' blocks 1 device")


def _are_seen(page: Page, devices: list[str]) -> bool:
    return page.locator("#devices td:first-child").all_inner_texts() == devices


def _backs_up(page: Page, federation: Federation) -> None:
    """First somebody on the server's machine says where to."""
    command, folder = page.locator("#backup-command code").inner_text(), federation.processes.folder / "backup"
    assert command == f"fedspzo server backup {federation.state} BACKUP-FOLDER"
    assert page.locator("#back-up").is_hidden()
    assert main([*command.split()[1:-1], str(folder)]) == 0
    page.get_by_role("button", name="Back up now").click()
    until(page, "#backup-last", "by operate, in ")
    until(page, "#backup-said", "Backed up.")
    assert read_status(folder)["blocked"] == ["phone-2"]


def _takes_no_logins(page: Page, federation: Federation) -> None:
    """The server that was started again cannot, and says what can."""
    page.get_by_label("Show", exact=True).select_option("blocked")
    until(page, "#found", "1 found")
    page.get_by_role("button", name="phone-2", exact=True).click()
    page.locator("#unblock").click()
    until(page, "#chosen-command", "fedspzo enroll phone-2 --broker BROKER-FOLDER")
    assert read_status(federation.state)["blocked"] == []
    page.locator("#block").click()
    page.locator("#sure-yes").click()
    until(page, "#chosen-command", "fedspzo enroll phone-2 --broker BROKER-FOLDER --remove")
    assert read_status(federation.state)["blocked"] == ["phone-2"]
    page.keyboard.press("Escape")


def _follows_live(page: Page) -> None:
    """The page has other rounds as they are closed, without being loaded again."""
    seen = "(window.seen ||= new Set()).add(document.title)"
    page.wait_for_function(f"() => {seen}.size >= 3", timeout=PATIENCE_S * 1000)


def _numbers_are_the_journals(page: Page, state: Path) -> None:
    """Of a job that is paused."""
    history, status = read_history(state), read_status(state)
    page.wait_for_function(f"() => document.title.includes('round {history[-1].round} ')")
    page.wait_for_timeout(1500)
    assert fact(page, "Round").startswith(f"{history[-1].round:,} of 100,000")
    assert float(fact(page, "Loss").split()[0]) == pytest.approx(history[-1].loss, rel=1e-5)
    assert f"{status['journal_bytes']:,} bytes" in fact(page, "Journal")
    loss, held_out = page.locator("figure").all()[:2]
    loss.get_by_text("Table of the last 50").click()
    rows = [row.split("\t") for row in loss.locator("tbody tr").filter(visible=True).all_inner_texts()]
    told = {int(row[0].strip()): row[1].strip() for row in rows if len(row) == 3}
    assert len(told) == min(50, len(history))
    for closed in history[-len(told) :]:
        assert float(told[closed.round]) == pytest.approx(closed.loss, rel=1e-5)
    held_out.get_by_text("Table of the last 50").click()
    best = status["evaluated"]["last"]
    row = held_out.locator("tbody tr").filter(has_text=str(best["round"])).first.inner_text().split("\t")
    assert float(row[1]) == pytest.approx(best["scores"]["accuracy"], rel=1e-5)
    counts = dict(
        zip(page.locator("#counts dt").all_inner_texts(), page.locator("#counts dd").all_inner_texts(), strict=True)
    )
    assert {name: int(text.replace(",", "")) for name, text in counts.items()} == status["counts"]
    rows = [row.split("\t") for row in page.locator("#devices tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == list(DEVICES)
    for row, device in zip(rows, status["devices"], strict=True):
        assert row[1] == "ready"
        assert [int(row[column].replace(",", "")) for column in (5, 6, 7)] == [
            device["behind"], device["results"], device["examples"],
        ]  # fmt: skip
        assert row[9] == device["version"]


@pytest.fixture
def folders(bundle: Bundle, tmp_path: Path, write_examples: Callable[[Path, int], Path]) -> list[Path]:
    """A simulated run, and a job of 3,000 rounds with 1,000 devices whose versions are markup."""
    data = write_examples(tmp_path / "data.jsonl", 40)
    job = Job(rounds=12, cohort=2, split=(3,), fanouts=(1, 4))
    simulate(bundle, data, job, devices=4, held_out=data, evaluate_every=3, state=tmp_path / "simulated", name="small")
    with ServerStore(tmp_path / "large", bundle.identity, "large") as store, store.transaction() as execute:
        store_job(store, check_job(Job(rounds=3000), bundle))
        for round in range(1, 3001):
            row = (round, 1 + 1 / round, "a b", 0.5, 0.1, time.time(), 4.0, 0.1, 2, 0)
            execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        store.save_members(
            Member(f"phone-{n:04d}", n.to_bytes(32, "big"), version=MARKUP, battery=n / 1000, round=n % 7, results=n)
            for n in range(1000)
        )
    return [tmp_path / "simulated", tmp_path / "large"]


@pytest.fixture
def link(folders: list[Path]) -> Iterator[str]:
    """What the command prints, while it runs."""
    command = [*FEDSPZO, "console", *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()
    assert process.returncode == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_folders_are_looked_at_side_by_side(
    link: str, folders: list[Path], width: int, scheme: Literal["light", "dark"]
) -> None:
    """On a screen in the light and on a phone in the dark, by keyboard too; nothing that a device says is a page."""
    with browsing(width, 900, scheme) as (page, wrong):
        loaded: list[Request] = []
        page.on("requestfinished", lambda request: loaded.append(request))
        page.goto(link)
        page.get_by_role("link", name="small").wait_for()
        page.get_by_role("img", name="Loss of each job").wait_for()
        assert violations(page) == []
        page.get_by_role("link", name="small").press("Enter")
        until(page, "#status", "Finished")
        _numbers_of_a_simulation(page, folders[0])
        page.go_back()
        loaded.clear()
        page.get_by_role("link", name="large").click()
        until(page, "#found", "1,000 found")
        page.get_by_role("img", name="Loss over").wait_for()
        assert sum(request.sizes()["responseBodySize"] for request in loaded) <= 300_000, "what the page loads first"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        assert violations(page) == []
        if width > 1000:
            _zooms(page)
        _finds_devices(page)
        assert page.locator("#no-log").is_visible()
        assert page.locator("#backup").is_hidden()
        assert page.locator("img").count() == 0
        assert wrong == []


def _numbers_of_a_simulation(page: Page, folder: Path) -> None:
    history = read_history(folder)
    assert fact(page, "Round") == "12 of 12"
    assert float(fact(page, "Loss").split()[0]) == pytest.approx(history[-1].loss, rel=1e-5)
    best = read_status(folder)["evaluated"]["best"]
    assert f"round {best['round']}; accuracy" in fact(page, "Best held-out loss")


def _zooms(page: Page) -> None:
    """By pointer and by keyboard; a part of what was thinned is whole."""
    chart = page.get_by_role("img", name="Loss over")
    chart.scroll_into_view_if_needed()
    box = page.locator("figure .u-over").first.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 20, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, y, steps=3)
    page.mouse.up()
    page.wait_for_function("() => document.querySelector('#range').value === 'zoom'")
    page.locator("figure .u-over").first.dblclick()
    page.wait_for_function("() => document.querySelector('#range').value === '0'")
    page.get_by_label("Rounds", exact=True).select_option("last 100")
    page.get_by_role("img", name="Loss over 100 rounds; in round 3000: Loss of a round 1.00033").wait_for()


def _finds_devices(page: Page) -> None:
    rows = page.locator("#devices tbody tr")
    assert rows.count() == 50
    assert rows.first.locator("td").nth(9).inner_text() == MARKUP
    page.get_by_role("button", name="Next page").press("Enter")
    until(page, "#devices tbody tr:first-child", "phone-0050")
    page.get_by_role("button", name="Results").press("Enter")
    page.get_by_role("button", name="Results").press("Enter")
    until(page, "#devices tbody tr:first-child", "phone-0999")
    assert page.locator("#devices th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_label("Name or version").fill("phone-001")
    until(page, "#found", "10 found")
    page.get_by_label("Name or version").fill("")
    page.get_by_label("Show").select_option("charging")
    until(page, "#found", "0 found")
