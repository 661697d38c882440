"""Measure the joules of a device's work: which sensors exist, what a step takes, what a run took."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict, replace
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.methods import FIRST_ORDER, SIMULATED
from fedspzo.commands.device import DATA_HELP
from fedspzo.device_runtime import plain_json
from fedspzo.options.energy import add_price_option, add_root_option, make_places
from fedspzo.options.fields import add_options
from fedspzo.options.job import STEP, add_method_option, make_step

if TYPE_CHECKING:
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.platform.profiling import PhaseTimer
    from fedspzo.energy.steps import Steps

#: What describes the step that is measured.
_STEP = (*STEP, "epsilon")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    sources = commands.add_parser("sources", help="the sensors of this device, and what they measure")
    measure = commands.add_parser("measure", help="the joules of the steps of a plan, phase by phase")
    report = commands.add_parser("report", help="joules by round and by point of loss, of a device or a server")
    sources.set_defaults(act=_sources)
    measure.set_defaults(act=_measure)
    report.set_defaults(act=_report)
    compare = commands.add_parser("compare", help="whether two measurements, kept by energy measure --json, differ")
    compare.set_defaults(act=_compare)
    compare.add_argument("one", type=Path, metavar="A", help="a file with what energy measure --json printed")
    compare.add_argument("other", type=Path, metavar="B", help="another")
    for subparser in (sources, measure, report, compare):
        subparser.add_argument("--json", action="store_true", help="print it as JSON")
    for subparser in (sources, measure):
        add_root_option(subparser)
    measure.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    measure.add_argument("--data", required=True, metavar="FILE", help=DATA_HELP)
    measure.add_argument(
        "--engine", help="litert, executorch, torch or tflite (default: litert, and torch for backpropagation)"
    )
    measure.add_argument("--threads", type=int, default=1, help="threads (%(default)s)")
    measure.add_argument("--ahead", action="store_true", help="make the next weights while the engine runs")
    add_method_option(measure, SIMULATED)
    measure.add_argument("--steps", type=int, default=20, help="steps of a repetition (%(default)s)")
    measure.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (%(default)s)")
    measure.add_argument(
        "--idle", type=float, default=10.0, metavar="S", help="seconds to idle before each and at the end (%(default)s)"
    )
    measure.add_argument(
        "--target-loss", type=float, metavar="X",
        help="start each repetition from the bundle's weights, and end it where its last 8 steps have this mean loss",
    )  # fmt: skip
    measure.add_argument("--readings", type=Path, metavar="FILE", help="keep the raw readings, as .csv or .parquet")
    measure.add_argument("--series", type=Path, metavar="FILE", help="keep each step's joules, as .csv or .parquet")
    measure.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw power over time and joules by phase, as .png, .svg or .pdf"
    )
    measure.add_argument("--interval", type=float, default=1.0, metavar="S", help="between readings (%(default)s)")
    measure.add_argument("--source", dest="energy", metavar="NAME", help="one of energy sources (default: the first)")
    measure.add_argument(
        "--csv", type=Path, metavar="FILE", help="an external meter's log, read when the steps are done"
    )
    measure.add_argument("--timeline", type=Path, metavar="FILE", help="keep what was done when, for a later log")
    add_price_option(measure)
    add_options(measure, Job, _STEP)
    report.add_argument("path", type=Path, metavar="PATH", help="a run, a server's or device's state, or a timeline")
    report.add_argument("--csv", type=Path, metavar="FILE", help="an external meter's log for a timeline")
    for subparser in (measure, report):
        subparser.add_argument("--volts", type=float, metavar="V", help="the supply's, for a log of currents alone")
        subparser.add_argument(
            "--offset",
            default="edges",
            metavar="S",
            help="to add to the log's times, or 'edges': found by the work's (%(default)s)",
        )


def run(options: argparse.Namespace) -> None:
    """Do what is asked."""
    options.act(options)


def _sources(options: argparse.Namespace) -> None:
    from fedspzo.device_runtime.energy.find import find_sources, settled
    from fedspzo.energy.report import describe_facts, facts_lines

    search = find_sources(make_places(options))
    states = {source.name: settled(source) for source in search.found}
    if options.json:
        found = [
            {"name": source.name, **describe_facts(source.facts), "now": states[source.name] or "readable"}
            for source in search.found
        ]
        print(plain_json.dumps({"sources": found, "missing": dict(search.missing)}))
        return
    for source in search.found:
        print("\n".join(facts_lines(source.name, source.facts)))
        if states[source.name]:
            print(f"  not at the moment: {states[source.name]}")
    for name, reason in search.missing:
        print(f"no {name}: {reason}")
    if not search.found:
        print("this device has no energy sensor that could be read: give a meter's log to energy measure (--csv)")


def _measure(options: argparse.Namespace) -> None:
    with ExitStack() as afterwards:  # files are written when all is told, each though another cannot be
        _measure_and_keep(options, afterwards)


def _measure_and_keep(options: argparse.Namespace, afterwards: ExitStack) -> None:
    from fedspzo.device_runtime.energy.meter import Meter
    from fedspzo.device_runtime.energy.meter_log import check_log, read_log
    from fedspzo.device_runtime.energy.timeline import TICK_S, Recording, settle
    from fedspzo.device_runtime.errors import EnergyError
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.platform.profiling import PhaseTimer
    from fedspzo.energy.host import describe_host, describe_state
    from fedspzo.energy.measure import Course, take_course
    from fedspzo.energy.repeat import repeat, to_target
    from fedspzo.energy.report import account_lines, describe_account, target_lines
    from fedspzo.energy.series import check_place, check_table, readings_table, series_table, write_table
    from fedspzo.options.energy import make_source

    bundle = Bundle(options.bundle)
    job = make_step(options, bundle, _STEP)
    if min(options.steps, options.repeat) < 1 or not (0 <= options.idle < inf and 0 < options.interval < inf):
        raise EnergyError(
            "option.energy-range",
            "--steps and --repeat are at least 1, --idle at least 0, and --interval above 0; correct these",
        )
    tables = [table for table in (options.readings, options.series) if table]
    for table in tables:
        check_table(table)
    if options.plot:
        from fedspzo.energy.plot import check_picture, plot_account

        check_picture(options.plot)
    for file in (*tables, *(file for file in (options.timeline, options.plot) if file)):
        check_place(file)
    if options.csv and (options.energy or options.joules_per_flop is not None):
        raise EnergyError("option.csv-beside-source", "--csv excludes --source and --joules-per-flop; leave these out")
    offset = parse_offset(options.offset)
    if options.csv:
        check_log(options.csv, options.volts, later=options.timeline is not None)
    if options.joules_per_flop is None and not options.csv and not options.timeline:
        options.energy = options.energy or "auto"
    source = make_source(options, lambda: steps.flops)
    timer = PhaseTimer()
    steps = _make_steps(options, job, bundle, timer)
    course = Course(options.idle, options.steps, options.repeat)
    host = describe_host()
    if source is not None:
        meter = Meter(source, timer)
        taken = take_course(course, steps, timer, meter.sample, options.interval, options.target_loss)
        after = describe_state()
        meter.sample(final=True)
        account, repetitions = meter.account(), taken.repetitions
    else:
        recording = Recording(timer)
        taken = take_course(course, steps, timer, recording.sample, TICK_S, options.target_loss)
        after = describe_state()
        recording.finish(taken.steps, taken.repetitions)
        timeline = recording.timeline
        if not options.csv:
            timeline.write(options.timeline)
            print(f"{options.timeline} is written; then: fedspzo energy report {options.timeline} --csv FILE")
            return
        if options.timeline:
            afterwards.callback(timeline.write, options.timeline)
        account, repetitions = settle(timeline, read_log(options.csv, options.volts), offset), timeline.repetitions
    told = repeat(account, taken.steps, repetitions)
    if options.readings:
        afterwards.callback(write_table, options.readings, readings_table(account))
    if options.series:
        afterwards.callback(write_table, options.series, series_table(account, taken.bounds, taken.losses))
    if options.plot:
        afterwards.callback(plot_account, options.plot, account, told)
    target = options.target_loss
    reached = None if target is None else to_target(told.step, taken, target, account.facts.measured)
    plan = {
        "method": options.method, "blocks": list(map(asdict, job.blocks)), "sides": job.sides or 1,
        "epsilon": job.epsilon, "examples": job.batch,
    }  # fmt: skip
    setting = {
        "machine": host,
        "machine_after": after,
        "bundle": bundle.identity.hex(),
        "engine": options.engine,
        "threads": options.threads,
        "ahead": options.ahead,
        "plan": asdict(course) | plan,
        "losses": list(taken.losses),
        "target": reached and asdict(reached),
        "reading_share_of_cpu": taken.share,
    }
    if options.json:
        print(plain_json.dumps(describe_account(account, taken.steps, told) | setting))
    else:
        print("\n".join(account_lines(account, len(taken.losses), told)))
        if reached:
            print("\n".join(target_lines(reached)))
        print(f"reading took {taken.share:.3%} of the CPU time")


def _make_steps(options: argparse.Namespace, job: Job, bundle: Bundle, timer: PhaseTimer) -> Steps:
    """By the method's way; sets ``options.engine`` where it is not said.

    Raises:
        FedSPZOError: the options do not go with the method, or the bundle or the data cannot be used.
    """
    from fedspzo.broker.rounds.objective import find_objective
    from fedspzo.broker.simulation.first_order import ALGORITHMS, check_first_order
    from fedspzo.broker.simulation.gradient import Backpropagation
    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.engines.protocol import create_engine
    from fedspzo.device_runtime.errors import PlanError
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.objectives import choose_examples
    from fedspzo.device_runtime.step.runner import Forward
    from fedspzo.energy.steps import ForwardSteps, GradientSteps

    store = choose_examples(find_objective(job), load_data(options.data, bundle))
    if options.method not in FIRST_ORDER:
        options.engine = options.engine or "litert"
        replica = Replica(bundle, threads=options.threads, ahead=options.ahead)
        return ForwardSteps(job, Forward(create_engine(options.engine, options.threads), replica, timer), store)
    options.engine = options.engine or "torch"
    check_first_order(options.method, replace(job, steps=1))
    if options.engine != "torch" or options.ahead:
        raise PlanError(
            "job.engine-of-first-order",
            f"{options.method} needs gradients, which PyTorch alone has; leave out --engine and --ahead",
        )
    return GradientSteps(job, ALGORITHMS[options.method], Backpropagation(bundle, options.threads), store)


def parse_offset(text: str) -> float | None:
    """Seconds, or None for edges. Raises EnergyError when it is neither."""
    from fedspzo.device_runtime.errors import EnergyError

    if text == "edges":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = inf
    if not isfinite(seconds):
        raise EnergyError("option.offset", f"--offset is '{text}'; give a number of seconds, or edges")
    return seconds


def _report(options: argparse.Namespace) -> None:
    from fedspzo.device_runtime.energy.meter_log import read_log
    from fedspzo.device_runtime.energy.timeline import Timeline, settle
    from fedspzo.device_runtime.errors import EnergyError
    from fedspzo.energy.repeat import repeat
    from fedspzo.energy.report import account_lines, describe_account
    from fedspzo.energy.rounds import describe_rounds, read_rounds, rounds_lines

    if options.path.is_file():
        if not options.csv:
            raise EnergyError(
                "option.timeline-without-csv",
                f"{options.path} is a timeline and needs the meter's log of that time; give it with --csv",
            )
        timeline = Timeline.read(options.path)
        account = settle(timeline, read_log(options.csv, options.volts), parse_offset(options.offset))
        told = repeat(account, timeline.steps, timeline.repetitions)
        described = describe_account(account, timeline.steps, told)
        lines = account_lines(account, sum(timeline.steps), told)
    else:
        if options.csv:
            raise EnergyError(
                "option.csv-without-timeline",
                "--csv needs a timeline; write one with: fedspzo energy measure --timeline",
            )
        rounds, beside = read_rounds(options.path)
        described = describe_rounds(rounds)
        lines = rounds_lines(described, beside)
        described |= beside
    print(plain_json.dumps(described) if options.json else "\n".join(lines))


def _compare(options: argparse.Namespace) -> None:
    from fedspzo.energy.compare import compare, comparison_lines, read_measurement

    compared = compare(read_measurement(options.one), read_measurement(options.other))
    print(plain_json.dumps(asdict(compared)) if options.json else "\n".join(comparison_lines(compared)))
