"""The console in Chromium, before a real server, mosquitto and devices: its numbers, its controls, its access."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from browser import browsing, missing, violations
from federation import FEDSPZO, Processes
from patience import PATIENCE_S, wait_until
from plain_mosquitto import plain_mosquitto

from fedspzo.api.simulation import simulate
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.server.console.logins import Logins
from fedspzo.broker.server.controls import store_job
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.state_folder import ADDRESS, read_history, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.model.bundle import Bundle

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="mosquitto is not installed"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

DEVICES = ("phone-1", "phone-2")
MARKUP = "<img src=x onerror=alert(1)>"
OPTIONS = ("--rounds", "100000", "--devices", "2", "--http", "127.0.0.1:0", "--evaluate-every", "20")


class Federation:
    """A job with three devices, and the passwords of those who watch it."""

    def __init__(self, processes: Processes) -> None:
        self.processes, self.state = processes, processes.folder / "server"
        logins = Logins(self.state)
        self.passwords = {role: logins.add(role, role) for role in ("look", "operate")}
        self.start()
        for name in DEVICES:
            processes.device(name)
        wait_until(lambda: len(read_history(self.state)) > 25)

    def start(self) -> None:
        self.server = self.processes.server(*OPTIONS)
        assert self.server.stdout is not None
        threading.Thread(target=list, args=(self.server.stdout,)).start()  # or it would wait for a reader of its rounds
        wait_until((self.state / ADDRESS).exists)
        self.url = (self.state / ADDRESS).read_text()

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


@pytest.fixture(scope="module")
def federation(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory, write_examples: Callable[[Path, int], Path]
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("console")
    with plain_mosquitto(folder) as url:
        processes = Processes(bundle_folder, folder, url, write_examples)
        try:
            yield Federation(processes)
        finally:
            processes.stop()


def fact(page: Page, term: str) -> str:
    pair = page.locator("#facts > div").filter(has=page.locator("dt", has_text=re.compile(f"^{term}$")))
    return pair.locator("dd").inner_text()


def until(page: Page, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).wait_for(timeout=PATIENCE_S * 1000)


def test_an_operator_runs_the_job(federation: Federation) -> None:
    """Each control does what it says, what it changed is in the journal, and outlives a killed server."""
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
        assert violations(page) == []
        assert read_history(federation.state)[-1].round == last, "no round is opened while the job is paused"
        federation.kill()
        until(page, "#connection", "No news")
        federation.start()
        wrong.clear()  # a browser says that a server is away
        federation.enter(page, "operate")
        until(page, "#status", "Paused.")
        assert page.get_by_label("Cohort").input_value() == "1"
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
        assert [row.split("\t")[1:5] for row in rows[::-1][:5]] == [
            ["operate", "state", "running", "paused"],
            ["operate", "cohort", "2", "1"],
            ["operate", "deadline", "20", "17.5"],
            ["operate", "learning rates", "0.0001875, 0.003", "0.00001, 0.0002"],
            ["operate", "state", "paused", "running"],
        ]
        assert not [said for said in wrong if "Failed to load resource" not in said]


def _comes_in(page: Page, federation: Federation) -> None:
    """First with a wrong password, then to look, and then to operate."""
    page.goto(federation.url)
    assert violations(page) == []
    page.get_by_label("Name").fill("operate")
    page.get_by_label("Password").fill("guess")
    page.keyboard.press("Enter")
    until(page, "#why", "wrong")
    federation.enter(page, "look")
    assert page.locator("#controls").is_hidden()
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Password").wait_for()
    federation.enter(page, "operate")


def _follows_live(page: Page) -> None:
    """Rounds are closed several times a second here, and the page has another one each time that it asks."""
    page.evaluate("() => { window.seen = []; setInterval(() => window.seen.push(document.title), 1000); }")
    page.wait_for_function("() => window.seen.length >= 3")
    seen = page.evaluate("() => window.seen")
    assert len(set(seen)) == len(seen)


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
        assert [int(row[column].replace(",", "")) for column in (3, 4, 5)] == [
            device["behind"], device["results"], device["examples"],
        ]  # fmt: skip
        assert row[7] == device["version"]


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
    assert rows.first.locator("td").nth(7).inner_text() == MARKUP
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
