"""The console with many devices: how long after a round the page shows it, and what it takes the server.

A real Chromium has the page open while simulated devices take part over a real mosquitto; then it is closed, for as
many rounds. What the server takes more while it is open is the console's; two windows of each, in turn.

    python benchmarks/console.py --devices 1000 --rounds 15
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from load import Federation, federation, make_bundle, next_round
from playwright.sync_api import Page, sync_playwright

from fedspzo.broker.server.console.logins import Logins
from fedspzo.broker.server.state_folder import ADDRESS

#: What the console is held to: seconds, share of a core, and bytes.
BAR_UPDATE_S, BAR_CORE, BAR_BYTES = 1.0, 0.05, 300_000
_ROUND = re.compile(r"round (\d+)")


def open_page(page: Page, url: str, password: str) -> int:
    """Log in and wait for the job; returns the bytes that came."""
    received: list[int] = []
    page.on("response", lambda answer: received.append(len(answer.body()) if answer.status == 200 else 0))
    page.goto(url)
    page.get_by_label("Name").fill("look")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.locator("#status").filter(has_text=".").wait_for()
    return sum(received)


def watch(running: Federation, rounds: int, page: Page | None) -> tuple[list[float], float]:
    """Let rounds pass; seconds from each round to its number in the page's title, and the server's share of a core."""
    while not running.server.lines.empty():
        next_round(running)
    began, before, lags = time.monotonic(), running.processor_seconds()["server"], []
    for _ in range(rounds):
        at, closed = next_round(running)
        while page is not None:
            found = _ROUND.search(page.title())
            if found and int(found[1]) >= closed["round"]:
                lags.append(time.monotonic() - at)
                break
    return lags, (running.processor_seconds()["server"] - before) / (time.monotonic() - began)


def measure(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds with the page open and closed, in turn."""
    with (
        federation(bundle, options.devices, options, options.devices, options.devices) as running,
        sync_playwright() as p,
    ):
        password = Logins(running.state).add("look", "look")
        running.connect()
        next_round(running)
        url = (running.state / ADDRESS).read_text()
        browser = p.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        lags: list[float] = []
        shares: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(2):
            page = browser.new_page()
            loaded = open_page(page, url, password)
            seen, share = watch(running, options.rounds, page)
            lags += seen
            shares[True].append(share)
            page.close()
            shares[False].append(watch(running, options.rounds, None)[1])
        browser.close()
    console = statistics.mean(shares[True]) - statistics.mean(shares[False])
    found = {
        "devices": options.devices, "rounds": len(lags), "update_s_median": statistics.median(lags),
        "update_s_max": max(lags), "server_core_open": shares[True], "server_core_closed": shares[False],
        "console_core": console, "first_load_bytes": loaded,
    }  # fmt: skip
    return {**found, "passed": max(lags) <= BAR_UPDATE_S and console <= BAR_CORE and loaded <= BAR_BYTES}


def main() -> int:
    """Measure, and exit with 1 when a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15, help="of each window")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="(%(default)s)")
    parser.set_defaults(
        swarms=2, mode="robust", group=0, step_seconds=2.0, tls=False, cut_off=False, http=True
    )  # as load.py has them; devices take their time, or all processors would be busy and tell nothing
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="console-bundle-") as name:
        found = measure(make_bundle(Path(name)), options)
    print(json.dumps(found))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
