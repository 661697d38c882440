"""Alerts and the dashboard of deploy/ in a real Prometheus that reads a real server: figures are its state folder's."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from federation import Processes, read_end
from patience import PATIENCE_S, wait_until
from ports import free_port

from fedspzo import __version__
from fedspzo.broker.mqtt.mosquitto import ManagedBroker
from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.privacy.accounting import spent
from fedspzo.broker.server.state_folder import open_journal, read_history, read_journal
from fedspzo.broker.server.status import read_status
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.replica.state import read_identity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed"),
]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
PANELS = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {(panel["title"], target["refId"]): target["expr"] for panel in PANELS for target in panel.get("targets", ())}
METRIC = re.compile(r"\bfedspzo_\w+")
DELTA, BUDGET, ROUNDS = 1e-5, 8.0, 4

#: Labels and their values, without Prometheus's own → value.
Samples = dict[frozenset[tuple[str, str]], float]


class Prometheus:
    """A running one, and what it answers."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query?"

    def ask(self, query: str) -> Samples:
        """The samples of a query, by the labels that the server gave them."""
        try:
            with urllib.request.urlopen(self._url + urllib.parse.urlencode({"query": query})) as response:
                found = json.load(response)["data"]["result"]
        except OSError:  # it is not there yet
            return {}
        own = ("__name__", "instance", "job")
        return {
            frozenset((name, text) for name, text in each["metric"].items() if name not in own): float(each["value"][1])
            for each in found
        }


@contextmanager
def prometheus(folder: Path, url: str, authority: Path) -> Iterator[Prometheus]:
    """With the configuration of deploy/, which looks once a second at one server."""
    configuration = (RULES / "prometheus.yml").read_text(encoding="utf-8")
    for plain, own in (
        ("15s", "1s"), ("localhost:8443", url.removeprefix("https://")), ("ca.pem", str(authority)),
        ("rules.yml", str(RULES / "rules.yml")),
    ):  # fmt: skip
        assert plain in configuration
        configuration = configuration.replace(plain, own)
    folder.mkdir()
    (folder / "prometheus.yml").write_text(configuration)
    port = free_port()
    process = subprocess.Popen(
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error",
         f"--web.listen-address=127.0.0.1:{port}"],
        cwd=folder,
    )  # fmt: skip
    try:
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_accepts(what: tuple[str, str]) -> None:
    done = subprocess.run(["promtool", "check", *what], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should() -> None:
    done = subprocess.run(["promtool", "test", "rules", "rules-test.yml"], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = yaml.safe_load((RULES / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    tests = yaml.safe_load((RULES / "rules-test.yml").read_text(encoding="utf-8"))["tests"]
    told = [each for test in tests for each in test["alert_rule_test"]]
    for fires in (True, False):
        assert {each["alertname"] for each in told if bool(each["exp_alerts"]) == fires} >= {
            rule["alert"] for rule in rules if fires or "for" in rule
        }


def labelled(**values: Mapping[str, float]) -> Samples:
    """Samples with one label, which is the argument's name."""
    return {frozenset({(name, text)}): value for name, each in values.items() for text, value in each.items()}


def expected(state: Path, groups: Mapping[str, str], certificates: Mapping[str, Path]) -> dict[str, Samples]:
    """Metric → its samples, as the state folder of a server whose job is over has them."""
    status, journal, closed = read_status(state), read_journal(state), read_history(state)[-1]
    with open_journal(state) as kept_journal:
        size = kept_journal.size(after=0, up_to=len(journal))
    devices, counts, last, best = (
        status["devices"], status["counts"], status["evaluated"]["last"], status["evaluated"]["best"],
    )  # fmt: skip

    def by_group(column: str) -> dict[str, float]:
        return {group: sum(row[column] for row in devices if groups[row["name"]] == group) for group in groups.values()}

    outcomes = {"accepted": "results accepted", "late": "results late", "refused": "results refused"}
    plain = {
        "round": len(journal), "job_rounds": ROUNDS, "finished": 1, "open_asked": 0, "open_results": 0,
        "devices_known": len(devices), "devices_ready": 0, "held_out_round": last["round"],
        "held_out_loss": last["loss"], "best_round": best["round"], "best_loss": best["loss"],
        "digests_differing_total": counts.get("digests differing", 0),
        "messages_dropped_total": counts.get("messages dropped", 0),
        "devices_accused": 0, "devices_expelled": 0, "devices_noted": 0,
        "privacy_epsilon_spent": epsilon(sum(spent(entry.plan, "device") for entry in journal), DELTA),
        "privacy_epsilon_budget": BUDGET,
        "loss": closed.loss, "round_seconds": closed.seconds, "journal_bytes": size,
        "disk_bytes": shutil.disk_usage(state).total,
    }  # fmt: skip
    ends = {
        whose: x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
        for whose, path in certificates.items()
    }
    limits = ("60", "150", "600", "3600", "21600", "86400", "604800", "2.592e+06", "+Inf")
    return {
        **{f"fedspzo_{name}": {frozenset(): float(value)} for name, value in plain.items()},
        "fedspzo_held_out_score": labelled(metric=last["scores"]),
        "fedspzo_best_score": labelled(metric=best["scores"]),
        "fedspzo_devices": labelled(version={__version__: len(devices)}),
        "fedspzo_group_devices_known": labelled(group={g: [*groups.values()].count(g) for g in groups.values()}),
        "fedspzo_group_devices_ready": labelled(group=dict.fromkeys(groups.values(), 0)),
        "fedspzo_group_results_total": labelled(group=by_group("results")),
        "fedspzo_group_payload_bytes_total": {
            frozenset({("group", group), ("direction", direction)}): value
            for direction, column in (("received", "bytes_up"), ("sent", "bytes_down"))
            for group, value in by_group(column).items()
        },
        "fedspzo_results_total": labelled(
            outcome={**{name: counts.get(kept, 0) for name, kept in outcomes.items()},
                     "declined": counts.get("plans declined", 0)},
        ),
        "fedspzo_anomalies_total": labelled(
            what={kind: sum(each[kind] for each in status["unusual"]) for kind in ("large", "contrary")}
        ),
        "fedspzo_joules": labelled(how={"measured": 0, "estimated": 0}),
        "fedspzo_device_unheard_seconds_bucket": labelled(le=dict.fromkeys(limits, len(devices))),
        "fedspzo_certificate_expiry_timestamp_seconds": labelled(certificate=ends),
    }  # fmt: skip


@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_panels_show_what_the_journal_has(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    """A job with noise, groups and certificates has data for every panel; at its end they equal its state folder's."""
    groups = {"a": "north", "b": "north", "c": "none"}
    with ManagedBroker(tmp_path / "broker", port=free_port()) as broker:
        accesses = {access.user: access for access in broker.add_users(groups)}
        job = Processes(bundle_folder, tmp_path, broker.url, write_examples)
        url, certificate, authority = (
            f"https://localhost:{free_port()}", broker.folder / "server.pem", broker.folder / "ca.pem",
        )  # fmt: skip
        lines = {name: f"{name} {read_identity(tmp_path / name, name)[1].hex()}" for name in groups}
        (tmp_path / "admitted").write_text(
            "".join(f"{line} group=north\n" if groups[name] == "north" else f"{line}\n" for name, line in lines.items())
        )
        broker.server_access()
        with prometheus(tmp_path / "prometheus", url, authority) as asked:
            try:
                server = job.server(
                    "--access", str(broker.folder / "server.json"), "--admit", str(tmp_path / "admitted"),
                    "--http", url.removeprefix("https://"), "--http-certificate", str(certificate),
                    "--http-key", str(certificate), "--rounds", str(ROUNDS), "--evaluate-every", "1",
                    "--fanouts", "1,200",  # so that rounds last while metrics are read
                    "--mode", "robust", "--privacy", "device", "--honest", "1", "--cohort", "3", "--quorum", "3",
                    "--privacy-budget", str(BUDGET), "--delta", str(DELTA), serve_after=(),
                )  # fmt: skip
                wait_until(lambda: asked.ask("fedspzo_devices_known"))
                devices = []
                for name, access in accesses.items():
                    access.save(tmp_path / f"{name}.json")
                    more = ("--access", tmp_path / f"{name}.json", "--privacy-budget", 9)
                    devices.append(job.device(name, more=more))
                wait_until(lambda: any(device.poll() is not None for device in devices))
                assert [device.wait(PATIENCE_S) for device in devices] == [0, 0, 0], devices[0].communicate()
                end = read_end(server)
                scraped = asked.ask("timestamp(fedspzo_finished)")[frozenset()]
                wait_until(lambda: asked.ask("timestamp(fedspzo_finished)")[frozenset()] > scraped + 1)
                told = expected(tmp_path / "server", groups, {"https": certificate, "broker": certificate,
                                                              "authority": authority})  # fmt: skip
                check(asked, told, tmp_path / "server", end)
            finally:
                said = job.stop()
        assert len(said) == 4


def check(asked: Prometheus, told: dict[str, Samples], state: Path, end: Mapping[str, object]) -> None:
    """Every query has data, and every metric in one is what the state folder says."""
    empty = {
        where: query
        for where, query in QUERIES.items()
        if not (found := asked.ask(query.replace("$instance", ".*").replace("$__rate_interval", "1m")))
        or any(map(math.isnan, found.values()))
    }
    assert not empty
    shown = {name for query in QUERIES.values() for name in METRIC.findall(query)}
    assert {name: asked.ask(name) for name in sorted(shown & told.keys())} == {
        name: {labels: pytest.approx(value) for labels, value in told[name].items()}
        for name in sorted(shown & told.keys())
    }
    assert asked.ask("max_over_time(fedspzo_devices_ready[1h])") == {frozenset(): 3}
    assert asked.ask("time() - fedspzo_round_closed_timestamp_seconds")[frozenset()] == pytest.approx(
        read_status(state)["closed_ago"], abs=5
    )
    size = sum(path.lstat().st_size for path in state.rglob("*"))
    assert asked.ask("fedspzo_state_bytes")[frozenset()] == pytest.approx(size, rel=0.5)
    received = asked.ask("fedspzo_payload_bytes_total")[frozenset({("direction", "received")})]
    assert received >= sum(device["bytes_up"] for device in end["devices"].values()) > 0  # type: ignore[attr-defined]
    assert asked.ask("fedspzo_disk_free_bytes")[frozenset()] == pytest.approx(shutil.disk_usage(state).free, rel=0.2)
    names = ("round_closed_timestamp_seconds", "state_bytes", "payload_bytes_total", "disk_free_bytes")
    assert shown - told.keys() == {f"fedspzo_{name}" for name in names}
