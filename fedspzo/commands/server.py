"""Run the rounds of a job over a broker: ask devices, average their scalars, keep the journal."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspzo.device_runtime import plain_json
from fedspzo.options.broker import add_broker_options, make_access
from fedspzo.options.endpoint import add_endpoint_options, read_address
from fedspzo.options.job import add_job_options, make_job
from fedspzo.options.log import add_log_options
from fedspzo.options.round import add_patience_option
from fedspzo.progress import describe_uncertainty, show, show_end

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from fedspzo.broker.server.progress import JobResult
    from fedspzo.broker.server.server import Endpoint
    from fedspzo.broker.server.status import ServerStatus


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_broker_options(parser)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where the journal is kept")
    parser.add_argument("--data", metavar="FILE", help="held-out examples to evaluate on")
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--evaluate-every", type=int, default=20, metavar="N", help="rounds (%(default)s)")
    add_patience_option(parser)
    parser.add_argument(
        "--admit", type=Path, metavar="FILE",
        help="accept only the devices in this list: a line NAME KEY for each, as fedspzo device --show-key prints,"
        " group=NAME after it puts the device into a group of the metrics",
    )  # fmt: skip
    add_log_options(parser, json="print progress as JSON lines, and write the log so")
    add_endpoint_options(parser, "bundle, snapshots, metrics and the console")
    parser.add_argument("--http-url", metavar="URL", help="how devices reach --http (default: as it is bound)")
    parser.add_argument(
        "--trust-journal", action="store_true",
        help="open rounds at once though the state folder was restored or copied, and devices may be ahead of it",
    )  # fmt: skip
    parser.add_argument(
        "--cut-off", type=Path, metavar="DIR",
        help="state folder of the broker, which runs on this machine: the login of a device that floods, or that the"
        " console blocks, is removed, and the console makes invitations",
    )  # fmt: skip
    parser.add_argument(
        "--standby", action="store_true",
        help="wait while another server has the job, and take it over when that has ended",
    )  # fmt: skip
    parser.add_argument(
        "--database", type=_url, metavar="URL",
        help="share the state with servers on other machines in PostgreSQL (postgresql://USER@HOST/DATABASE); --state"
        " is then a copy, and remembers the URL",
    )  # fmt: skip
    parser.add_argument(
        "--traces", action="store_true",
        help="send a trace of each round by OpenTelemetry, where its environment says (OTEL_EXPORTER_OTLP_ENDPOINT)",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, help="devices to wait for at the start (%(default)s)")
    parser.add_argument(
        "--serve-after", type=float, metavar="SECONDS",
        help="how long to serve the finished job to devices that come later (default: until it is stopped)",
    )  # fmt: skip
    add_job_options(parser)


def run(options: argparse.Namespace) -> None:
    """Run the job and serve it, printing progress."""
    from fedspzo.api.trackers import OpenTelemetry
    from fedspzo.broker.mqtt.logins import check_server
    from fedspzo.broker.mqtt.logins_on_demand import LoginsOnDemand
    from fedspzo.broker.mqtt.mosquitto import ManagedBroker
    from fedspzo.broker.rounds.aggregate import ClosedRound
    from fedspzo.broker.rounds.job import check_job
    from fedspzo.broker.server.admission import Admission
    from fedspzo.broker.server.evaluation import Evaluated
    from fedspzo.broker.server.progress import Event, JobResult, Waiting, ignore
    from fedspzo.broker.server.server import Server
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.errors import PlanError
    from fedspzo.device_runtime.link.access import Access
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.platform.systemd import READY, ServiceManager
    from fedspzo.energy.report import describe_spending

    settings, bundle = make_job(options), Bundle(options.bundle)
    job = check_job(settings, bundle)
    if min(options.evaluate_every, options.devices) < 1:
        raise PlanError("server.not-positive", "--evaluate-every and --devices are at least 1")
    broker = ManagedBroker(options.cut_off) if options.cut_off else None
    if broker:
        broker.check_started()
    access = make_access(options)
    check_server(access.user, options.job)
    endpoint = _endpoint(options)
    held_out = load_data(options.data, bundle) if options.data else None
    if held_out is not None and held_out.truncated and not options.json:
        print(f"{held_out.truncated} held-out examples were cut to {bundle.manifest.length} tokens", flush=True)
    trace = OpenTelemetry(options.job) if options.traces else ignore
    started, manager, waited = time.monotonic(), ServiceManager(), list[str]()

    def observe(event: Event) -> None:
        trace(event)
        if isinstance(event, ClosedRound):
            status = server.status()
            manager.say(f"STATUS=round {event.round} of {status.rounds}: {len(event.devices)} results")
            show(
                options.json,
                round=event.round,
                loss=event.loss,
                **describe_uncertainty(event),
                results=len(event.devices),
                seconds=event.seconds,
                step_seconds=event.step_seconds,
                bytes_up=status.bytes_received,
                bytes_down=status.bytes_sent,
                **({"nonzero": event.nonzero} if job.objective != "loss" else {}),
                **describe_spending(event.spending),
            )
        elif isinstance(event, Evaluated):
            show(
                options.json,
                round=event.round,
                held_out_loss=event.evaluation.loss,
                **describe_uncertainty(event.evaluation, "held_out_"),
                **event.evaluation.scores,
            )
        elif isinstance(event, Waiting):
            if event.who not in waited:
                waited.append(event.who)
                manager.say(READY)
                manager.say(f"STATUS=stands by; {event.who} has the job")
                log.info("stands by; %s has the job", event.who)
        elif isinstance(event, JobResult):
            seconds = time.monotonic() - started
            manager.say(f"STATUS=finished at round {server.status().round}")
            if options.json:
                print(plain_json.dumps(_describe(event, seconds, server.status() if job.energy else None)), flush=True)
            else:
                _print(event, seconds)

    server = Server(
        bundle,
        job,
        access,
        options.state,
        name=options.job,
        held_out=held_out,
        engine=options.engine,
        devices=options.devices,
        evaluate_every=options.evaluate_every,
        patience=options.patience,
        serve_after=options.serve_after,
        admission=Admission(options.admit) if options.admit else None,
        endpoint=endpoint,
        observe=observe,
        trust_journal=options.trust_journal,
        cut_off=broker.remove_users if broker else None,
        logins=LoginsOnDemand(),
        broker=options.cut_off,
        authority=(lambda: Access.load(options.access).authority) if options.access else None,
        database=options.database or "",
        standby=options.standby,
    )
    with server:
        manager.say(READY)
        if server.url and not options.json:
            print(f"bundle, snapshots and metrics at {server.url}", flush=True)
        server.wait()


def _url(text: str) -> str:
    if not text:  # a variable that is not set
        raise argparse.ArgumentTypeError("it is a URL such as postgresql://USER@HOST/DATABASE")
    return text


def _describe(result: JobResult, seconds: float, status: ServerStatus | None) -> dict[str, Any]:
    """The end of a job for programs; with a status, its joules too."""
    from fedspzo.energy.report import describe_energy, describe_joules

    return {
        "finished": True,
        "seconds": seconds,
        "server_digest": result.digest.hex(),
        "counts": dict(result.counts),
        **({"best": result.best.record()} if result.best else {}),
        **({"energy": describe_joules(status)} if status else {}),
        "devices": {
            device: {
                "digest": report.digest.hex(),
                "rss_mb": report.rss_bytes / 1e6,
                "bytes_up": report.bytes_up,
                "bytes_down": report.bytes_down,
                "results": report.results,
                **describe_energy(report.energy),
            }
            for device, report in sorted(result.reports.items())
        },
    }


def _print(result: JobResult, seconds: float) -> None:
    """The end of a job for people."""
    for device, report in sorted(result.reports.items()):
        print(
            f"device '{device}': {report.results} results, {report.bytes_up:,} bytes up, {report.bytes_down:,} down,"
            f" {report.rss_bytes / 1e6:.0f} MB; its model"
            f" {'equals' if report.digest == result.digest else 'DIFFERS from'} the server's"
        )
    show_end(result, seconds)


def _endpoint(options: argparse.Namespace) -> Endpoint | None:
    """Where to serve over HTTP, if that is asked for."""
    from fedspzo.broker.server.server import Endpoint
    from fedspzo.device_runtime.errors import BrokerError

    if not options.http:
        if options.http_url or options.http_certificate or options.http_key:
            raise BrokerError(
                "option.no-http", "--http-url, --http-certificate and --http-key need --http; add --http HOST:PORT"
            )
        return None
    host, port, tls = read_address(options)
    if host in ("0.0.0.0", "::", "[::]") and not options.http_url:
        raise BrokerError(
            "option.http-url",
            f"devices cannot reach {options.http} by that name; give the name that they use with --http-url",
        )
    return Endpoint(host, port, options.http_url or "", tls)
