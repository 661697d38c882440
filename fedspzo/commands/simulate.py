"""Run a job's rounds with thousands of virtual devices, with the plans, estimator and journal of a live job."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from fedspzo.broker.rounds.methods import FIRST_ORDER, SIMULATED, Method
from fedspzo.options.job import add_job_options, make_job
from fedspzo.options.round import add_patience_option
from fedspzo.progress import describe_uncertainty, show, show_end


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_share_options(parser)
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="where the journal is kept, as a server's"
    )
    parser.add_argument("--held-out", metavar="FILE", help="examples to evaluate on")
    parser.add_argument("--evaluate-every", type=int, default=20, metavar="N", help="rounds (%(default)s)")
    add_patience_option(parser)
    parser.add_argument("--job", default="default", help="the job's name (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print progress as JSON lines")
    add_job_options(parser, SIMULATED)
    behaviour = parser.add_argument_group(
        "how devices behave", "a distribution is a number, uniform:LOW,HIGH or lognormal:MEDIAN,SIGMA"
    )
    behaviour.add_argument("--step-seconds", default="1", metavar="DIST", help="of each device (%(default)s)")
    behaviour.add_argument("--battery", default="1", metavar="DIST", help="charge, 0 to 1, in each round (%(default)s)")
    behaviour.add_argument("--available", type=float, default=1.0, help="chance to be there in a round (%(default)s)")
    behaviour.add_argument("--dropout", type=float, default=0.0, help="chance not to answer (%(default)s)")
    behaviour.add_argument(
        "--attack", metavar="NAME[:N]",
        help="the first N devices (1) are hostile and send something else than they measured: negated, hundredfold,"
        " huge, random, colluding or sleeping",
    )  # fmt: skip
    machine = parser.add_argument_group("what computes")
    machine.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    machine.add_argument("--threads", type=int, default=1, help="of each worker (%(default)s)")
    machine.add_argument("--workers", type=int, default=1, help="processes that share the devices (%(default)s)")
    machine.add_argument("--ray", action="store_true", help="workers are actors of a Ray cluster on this machine")
    machine.add_argument(
        "--ray-address", metavar="ADDRESS",
        help="address of a Ray cluster whose machines all have bundle and data at the same paths",
    )  # fmt: skip


def add_share_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which examples virtual devices hold."""
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="labelled examples to split among the devices, or a folder with a file for each device",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, help="virtual devices (default: 100, or as many as the method has)")
    parser.add_argument(
        "--partition", default="dirichlet:0.5", help="how labels are split: iid or dirichlet:ALPHA (%(default)s)"
    )
    parser.add_argument(
        "--examples-per-device", type=int, metavar="N",
        help="each device draws N examples, which others may have too (default: each example goes to one device)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Run the rounds that are not closed yet, printing progress."""
    from fedspzo.api.simulation import simulate
    from fedspzo.broker.rounds.job import check_job, plan_round
    from fedspzo.broker.server.evaluation import Evaluated
    from fedspzo.broker.server.progress import Event, JobResult
    from fedspzo.broker.simulation.driver import SimulatedRound
    from fedspzo.broker.simulation.fleet import Behaviour, parse_quantile
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.privacy.promise import describe_noise
    from fedspzo.tables import format_trained

    started = time.monotonic()

    def observe(event: Event) -> None:
        if isinstance(event, SimulatedRound):
            size = event.device_bytes
            show(
                options.json,
                round=event.round,
                loss=event.loss,
                **describe_uncertainty(event),
                results=len(event.devices),
                virtual_seconds=event.seconds,
                gflop=event.flops / 1e9,
                seconds=time.monotonic() - started,
                **({"device_bytes_up": size, "device_bytes_down": size} if size else {}),
            )
        elif isinstance(event, Evaluated):
            found = event.evaluation
            uncertainty = describe_uncertainty(found, "held_out_")
            show(options.json, round=event.round, held_out_loss=found.loss, **uncertainty, **found.scores)
        elif isinstance(event, JobResult):
            seconds = time.monotonic() - started
            if options.json:
                best = {"best": event.best.record()} if event.best else {}
                show(
                    True,
                    finished=True,
                    seconds=seconds,
                    server_digest=event.digest.hex(),
                    counts=dict(event.counts),
                    **best,
                )
            else:
                show_end(event, seconds)

    job, bundle = make_job(options, SIMULATED), Bundle(options.bundle)
    method = SIMULATED.get(options.method)
    devices = options.devices
    if devices is None:
        devices = (method.devices if isinstance(method, Method) else None) or 100
    if not options.json and options.method not in FIRST_ORDER:
        plan = plan_round(check_job(job, bundle), 1)
        noise = describe_noise(plan, job.rounds, job.delta)
        print(f"job '{options.job}' runs in {plan.describe(bool(bundle.manifest.enrolment_key))}{noise}")
        print(format_trained(bundle.manifest, plan), flush=True)
    simulate(
        bundle,
        options.data,
        job,
        devices=devices,
        partition=options.partition,
        examples_per_device=options.examples_per_device,
        held_out=options.held_out,
        evaluate_every=options.evaluate_every,
        patience=options.patience,
        state=options.state,
        name=options.job,
        behaviour=Behaviour(
            step_seconds=parse_quantile(options.step_seconds, "--step-seconds"),
            battery=parse_quantile(options.battery, "--battery"),
            available=options.available,
            dropout=options.dropout,
        ),
        engine=options.engine,
        threads=options.threads,
        workers=options.workers,
        ray=options.ray_address or options.ray,
        observe=observe,
        attack=options.attack,
        first_order=options.method if options.method in FIRST_ORDER else None,
    )
