"""Traces of rounds, as a collector of OpenTelemetry gets them from a real server with real devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from federation import Processes, broker, finish, processes
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from fedspzo.broker.server.state_folder import read_history

__all__ = ["broker", "processes"]


class Collector(HTTPServer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Span] = []


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *said: object) -> None:
        """Nothing."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def test_each_round_is_a_trace_with_its_devices(processes: Processes, collector: Collector) -> None:
    for name in ("a", "b", "c"):
        processes.device(name)
    finish(processes.server("--rounds", "4", "--traces"))
    closed = {each.round: each for each in read_history(processes.folder / "server")}
    rounds = [span for span in collector.spans if span.name == "round"]
    assert len(rounds) == len({span.trace_id for span in rounds}) == len(closed) == 4
    for span in rounds:
        said = {each.key: each.value for each in span.attributes}
        assert said["fedspzo.job"].string_value == "default"
        expected = closed[said["fedspzo.round"].int_value]
        assert said["fedspzo.loss"].double_value == expected.loss
        assert span.end_time_unix_nano - span.start_time_unix_nano == int(1e9 * expected.seconds)
        results = [each for each in collector.spans if each.parent_span_id == span.span_id]
        assert {each.attributes[0].value.string_value for each in results} == set(expected.devices)
        for each in results:
            assert (each.name, each.trace_id, each.start_time_unix_nano) == (
                "result", span.trace_id, span.start_time_unix_nano,
            )  # fmt: skip
            assert span.start_time_unix_nano < each.end_time_unix_nano <= span.end_time_unix_nano
