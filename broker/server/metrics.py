"""What a job's server counts and measures, for Prometheus: read from the server at each request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from fedspzo.device_runtime.errors import BrokerError, install_hint

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeHistogramMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError:
    raise BrokerError("server.library-missing", f"metrics need prometheus-client; {install_hint('server')}") from None

if TYPE_CHECKING:
    from fedspzo.broker.server.census import Census
    from fedspzo.broker.server.status import ServerStatus
    from fedspzo.broker.server.upkeep import Upkeep

#: What became of an answer → what the server counts it as.
_OUTCOMES = {
    "accepted": "results accepted",
    "late": "results late",
    "refused": "results refused",
    "declined": "plans declined",
}
#: Seconds since a device was heard: a minute, a lease, ten minutes, an hour, six, a day, a week, 30 days.
UNHEARD_S = (60.0, 150.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)


def make_registry(status: Callable[[], ServerStatus], upkeep: Callable[[], Upkeep] | None = None) -> CollectorRegistry:
    """A registry of one server's metrics.

    Args:
        status: tells where the server is; asked at each scrape, on another thread.
        upkeep: tells of its disk and certificates, as ``status`` is asked; None leaves them out.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(status, upkeep))
    return registry


class _Collector(Collector):
    def __init__(self, status: Callable[[], ServerStatus], upkeep: Callable[[], Upkeep] | None) -> None:
        self._status, self._upkeep = status, upkeep

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nothing of the server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; a counter's name gets ``_total`` appended."""
        now = self._status()
        yield from _traffic(now)
        yield from _unusual(now)
        yield from _rounds(now)
        yield from _model(now)
        yield _gauge("devices_ready", "Devices that can be asked", now.ready)
        yield _gauge("devices_known", "Devices that have ever synced", now.known)
        yield from _devices(now.census)
        if self._upkeep is not None:
            yield from _upkeep_of(self._upkeep())


def _traffic(now: ServerStatus) -> Iterator[Metric]:
    counts = now.counts
    results = {outcome: counts.get(name, 0) for outcome, name in _OUTCOMES.items()}
    payload = {"sent": now.bytes_sent, "received": now.bytes_received}
    yield _counters("results", "Answers of devices, by what became of them", "outcome", results)
    yield _counters("payload_bytes", "MQTT payload of the server", "direction", payload)
    yield _counter("messages_dropped", "Messages that were not valid", counts.get("messages dropped", 0))
    joules = {"measured": now.measured_joules, "estimated": now.estimated_joules}
    # No counter: what is above idle may be less than nothing.
    yield _gauges("joules", "What results took devices above idle, where they say so", "how", joules)


def _unusual(now: ServerStatus) -> Iterator[Metric]:
    records = now.records.values()
    differing = now.counts.get("digests differing", 0)
    yield _counter("digests_differing", "Replicas that differed from the server's", differing)
    anomalies = {kind: sum(getattr(record, kind) for record in records) for kind in ("large", "contrary")}
    yield _counters("anomalies", "Results that were unusual, by what they were", "what", anomalies)
    yield _gauge("devices_accused", "Devices accused", sum(r.accused > 0 for r in records))
    yield _gauge("devices_expelled", "Devices sent away for their results", sum(r.expelled > 0 for r in records))
    yield _gauge("devices_noted", "Devices noted for sums of their groups", sum(r.grouped > 0 for r in records))


def _rounds(now: ServerStatus) -> Iterator[Metric]:
    yield _gauge("round", "Last closed round", now.round)
    yield _gauge("job_rounds", "Rounds of the job", now.rounds)
    yield _gauge("finished", "1 where the job will open no other round", now.finished)
    yield _gauge("open_results", "Results that the open round has", now.results)
    yield _gauge("open_asked", "Devices that the open round asked", now.asked)
    if not math.isnan(now.seconds):
        yield _gauge("round_seconds", "From opening the last closed round to closing it", now.seconds)
    closed = "When the last round was closed (before the first: when the server started), as Unix time"
    yield _gauge("round_closed_timestamp_seconds", closed, now.closed_at)
    yield _gauge("journal_bytes", "Signed entries of closed rounds", now.journal_bytes)


def _model(now: ServerStatus) -> Iterator[Metric]:
    if not math.isnan(now.loss):
        yield _gauge("loss", "Mean loss that the last closed round measured", now.loss)
    if now.loss_uncertainty is not None:
        yield _gauge("loss_uncertainty", "Standard error of that loss", now.loss_uncertainty)
    if now.evaluated is not None and now.best is not None:
        last, best = now.evaluated.evaluation, now.best.evaluation
        yield _gauge("held_out_round", "Round after which the model was last evaluated", now.evaluated.round)
        yield _gauge("held_out_loss", "Loss on the held-out examples then", last.loss)
        yield _gauges("held_out_score", "Scores on the held-out examples then", "metric", last.scores)
        yield _gauge("best_round", "Round after which the model was best", now.best.round)
        yield _gauge("best_loss", "Loss on the held-out examples then", best.loss)
        yield _gauges("best_score", "Scores on the held-out examples then", "metric", best.scores)
    if now.privacy is not None:
        spent, budget = now.privacy
        yield _gauge("privacy_epsilon_spent", "ε of all rounds so far", spent)
        yield _gauge("privacy_epsilon_budget", "ε at which the job ends", budget)


def _devices(census: Census) -> Iterator[Metric]:
    yield _gauges("devices", "Devices that have ever synced, by version", "version", census.versions)
    groups = census.groups.items()
    for name, help in (("known", "Devices of a group that have ever synced"), ("ready", "Those that can be asked")):
        yield _gauges(f"group_devices_{name}", help, "group", {group: getattr(each, name) for group, each in groups})
    yield _counters("group_results", "Results of a group that counted", "group", {g: e.results for g, e in groups})
    payload = CounterMetricFamily(
        "fedspzo_group_payload_bytes", "MQTT payload of a group's devices", labels=["group", "direction"]
    )
    for group, each in groups:
        payload.add_metric([group, "received"], each.bytes_up)
        payload.add_metric([group, "sent"], each.bytes_down)
    yield payload
    if census.unheard:
        limits = (*UNHEARD_S, float("inf"))
        buckets = [("+Inf" if s == limits[-1] else f"{s:g}", sum(a <= s for a in census.unheard)) for s in limits]
        help = "Devices by seconds since they were last heard"
        yield GaugeHistogramMetricFamily("fedspzo_device_unheard_seconds", help, buckets, sum(census.unheard))


def _upkeep_of(now: Upkeep) -> Iterator[Metric]:
    yield _gauge("disk_free_bytes", "Free on the disk of the state folder", now.free_bytes)
    yield _gauge("disk_bytes", "Size of that disk", now.disk_bytes)
    yield _gauge("state_bytes", "Files in the state folder", now.state_bytes)
    ends = "When a certificate ends, as Unix time"
    yield _gauges("certificate_expiry_timestamp_seconds", ends, "certificate", now.certificates)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"fedspzo_{name}", help, value)


def _counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"fedspzo_{name}", help, labels=[label])
    for text, value in values.items():
        family.add_metric([text], value)
    return family


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedspzo_{name}", help, value)


def _gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"fedspzo_{name}", help, labels=[label])
    for text, value in values.items():
        family.add_metric([text], value)
    return family
