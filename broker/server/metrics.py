"""What a job's server counts and measures, for Prometheus: read from the server at each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedspzo.device_runtime.errors import BrokerError, install_hint

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError:
    raise BrokerError("server.library-missing", f"metrics need prometheus-client; {install_hint('server')}") from None

if TYPE_CHECKING:
    from fedspzo.broker.server.status import ServerStatus

#: What became of an answer → what the server counts it as.
_OUTCOMES = {
    "accepted": "results accepted",
    "late": "results late",
    "refused": "results refused",
    "declined": "plans declined",
}


def make_registry(status: Callable[[], ServerStatus]) -> CollectorRegistry:
    """A registry of one server's metrics.

    Args:
        status: tells where the server is; asked at each scrape, on another thread.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    return registry


class _Collector(Collector):
    def __init__(self, status: Callable[[], ServerStatus]) -> None:
        self._status = status

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nothing of the server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; a counter's name gets ``_total`` appended."""
        now = self._status()
        counts = now.counts
        results = {outcome: counts.get(name, 0) for outcome, name in _OUTCOMES.items()}
        payload = {"sent": now.bytes_sent, "received": now.bytes_received}
        yield _counters("results", "Answers of devices, by what became of them", "outcome", results)
        yield _counters("payload_bytes", "MQTT payload of the server", "direction", payload)
        yield _counter("messages_dropped", "Messages that were not valid", counts.get("messages dropped", 0))
        yield _counter(
            "digests_differing", "Replicas that differed from the server's", counts.get("digests differing", 0)
        )
        kinds = ("large", "contrary")
        anomalies = {kind: sum(getattr(record, kind) for record in now.records.values()) for kind in kinds}
        yield _counters("anomalies", "Results that were unusual, by what they were", "what", anomalies)
        yield _gauge("devices_accused", "Devices accused", sum(r.accused > 0 for r in now.records.values()))
        yield _gauge(
            "devices_expelled", "Devices sent away for their results", sum(r.expelled > 0 for r in now.records.values())
        )
        yield _gauge(
            "devices_noted", "Devices noted for sums of their groups", sum(r.grouped > 0 for r in now.records.values())
        )
        joules = {"measured": now.measured_joules, "estimated": now.estimated_joules}
        family = GaugeMetricFamily(  # no counter: what is above idle may be less than nothing
            "fedspzo_joules", "What results took devices above idle, where they say so", labels=["how"]
        )
        for how, value in joules.items():
            family.add_metric([how], value)
        yield family
        yield _gauge("round", "Last closed round", now.round)
        yield _gauge("open_results", "Results that the open round has", now.results)
        yield _gauge("open_asked", "Devices that the open round asked", now.asked)
        yield _gauge("devices_ready", "Devices that can be asked", now.ready)
        yield _gauge("devices_known", "Devices that have ever synced", now.known)
        yield _gauge("loss", "Mean loss that the last closed round measured", now.loss)
        if now.loss_uncertainty is not None:
            yield _gauge("loss_uncertainty", "Standard error of that loss", now.loss_uncertainty)
        yield _gauge("round_seconds", "From opening the last closed round to closing it", now.seconds)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"fedspzo_{name}", help, value)


def _counters(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"fedspzo_{name}", help, labels=[label])
    for text, value in values.items():
        family.add_metric([text], value)
    return family


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedspzo_{name}", help, value)
