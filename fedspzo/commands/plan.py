"""Propose settings for a model, its data and a fleet: measure, predict, and try them out in short simulated runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedspzo.broker.rounds.job import Job
from fedspzo.commands.simulate import add_share_options
from fedspzo.device_runtime import plain_json
from fedspzo.device_runtime.protocol.objective import LOSS
from fedspzo.options.fields import add_options
from fedspzo.options.job import add_config_option, make_job

if TYPE_CHECKING:
    from fedspzo.api.planning import PlannedSettings
    from fedspzo.broker.planner.profile import Profile
    from fedspzo.broker.planner.propose import Proposal

#: The settings that say what devices measure.
OBJECTIVE = ("objective", "reward_cap", "label_weight")


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add_share_options(parser)
    parser.set_defaults(devices=10)
    add_config_option(parser)
    add_options(parser, Job, ("cohort", "seeds", "seed", *OBJECTIVE), seeds="device")
    parser.add_argument(
        "--budget", type=float, default=100.0, metavar="N",
        help="what each device of a cohort may spend over all rounds, in forward passes of the whole network with the"
        " largest batch (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cost", choices=("flops", "seconds"), default="flops", help="what settings are ranked by (%(default)s)"
    )
    parser.add_argument(
        "--trial", type=float, default=30.0, metavar="N",
        help="length of a run of the trial, in the same passes; 0 for no trial. It should be long enough for the loss"
        " to fall; the trial takes up to 23 such runs, and beside them their losses on 128 examples (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--directions", type=int, default=8, metavar="N", help="that each segment is measured along (%(default)s)"
    )
    parser.add_argument(
        "--batches", type=int, default=20, metavar="N", help="that are measured, of one device each (%(default)s)"
    )
    parser.add_argument("--engine", default="litert", help="litert, executorch, torch or tflite (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the engine (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> None:
    """Print what was measured, what is proposed, and the options to paste."""
    from fedspzo.api.planning import plan_settings
    from fedspzo.progress import steps

    job = make_job(options, seeds="device")
    with steps("loading the model and the data") as progress:
        found = plan_settings(
            options.bundle,
            options.data,
            devices=options.devices,
            partition=options.partition,
            examples_per_device=options.examples_per_device,
            cohort=job.cohort,
            seeds=job.seeds,
            seed=job.seed,
            **{name: getattr(job, name) for name in OBJECTIVE},
            budget=options.budget,
            cost=options.cost,
            trial=options.trial,
            directions=options.directions,
            batches=options.batches,
            engine=options.engine,
            threads=options.threads,
            progress=progress,
        )
    settings = job_options(found.chosen, found.profile, found.job)
    if options.json:
        print(plain_json.dumps(_describe(found, settings)))
    else:
        _show(found, settings)


def job_options(proposal: Proposal, profile: Profile, job: Job) -> dict[str, str]:
    """Options of ``fedspzo server`` and ``simulate`` for a proposal."""
    last = proposal.cuts[-1]

    def listed(values: list[float]) -> str:
        return ",".join(f"{value:.4g}" for value in values)

    split = {"--split": ",".join(str(profile.segments[cut.start].start) for cut in proposal.cuts[1:])}
    return {
        "--sides": "1",
        **(split if len(proposal.cuts) > 1 else {}),
        "--fanouts": ",".join(str(cut.fanout) for cut in proposal.cuts),
        "--scales": listed([cut.size / last.size for cut in proposal.cuts]),
        "--learning-rates": listed([cut.rate for cut in proposal.cuts]),
        "--final-rate": f"{job.final_rate:g}",
        "--epsilon": f"{last.size:.4g}",
        "--adapt": ",".join(proposal.adapt),
        **({"--first-every": str(proposal.first_every)} if proposal.first_every > 1 else {}),
        **_objective_options(job),
        "--batch": str(proposal.batch),
        "--cohort": str(job.cohort),
        "--seeds": job.seeds,
        "--rounds": str(proposal.rounds),
    }


def _objective_options(job: Job) -> dict[str, str]:
    """Those that are not as in a job that says nothing."""
    given = {name: getattr(job, name) for name in OBJECTIVE}
    return {
        f"--{name.replace('_', '-')}": value if isinstance(value, str) else f"{value:g}"
        for name, value in given.items()
        if value != getattr(Job, name)
    }


def _describe(planned: PlannedSettings, settings: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    found: dict[str, Any] = {
        "options": settings,
        "predicted_gain": planned.predicted_gain,
        "chosen": asdict(planned.chosen),
        "profile": asdict(planned.profile),
        "proposals": [asdict(proposal) for proposal in planned.proposals],
    }
    outcome = planned.trial
    if planned.needed:
        found["needed_trial"] = planned.needed
    if outcome is not None:
        found["trial"] = {
            "gain": outcome.gain,
            "factor": outcome.factor,
            "flops": outcome.flops,
            "added": outcome.added,
            "runs": [asdict(run) for run in outcome.tried],
        }
    return found


def _show(planned: PlannedSettings, settings: dict[str, str]) -> None:
    from fedspzo.tables import format_table

    profile, proposals, outcome = planned.profile, planned.proposals, planned.trial
    largest = max(profile.batches)
    rows = [
        (
            f"{segment.start}–{segment.stop - 1}", f"{segment.weights:,}", f"{segment.flops[largest] / 1e9:.3f}",
            f"{1e3 * segment.seconds[largest]:.1f}", f"{segment.magnitude:.3g}", f"{segment.trace:.3g}",
            f"{profile.deviation(segment, largest):.3g}",
        )
        for segment in profile.segments
    ]  # fmt: skip
    measured = ("stages", "trained weights", "GFLOP", "ms", "|g|² of an example", "tr(H)", "a scalar's deviation")
    print(format_table(measured, rows, "what was measured"))
    objective = planned.job.objective
    error = "" if profile.loss_uncertainty is None else f" (standard error {profile.loss_uncertainty:.2g})"
    print(
        f"{'loss' if objective == LOSS else f'cost by {objective}'} {profile.loss:.3f}{error}; {profile.nonzero:.0%} of"
        f" the scalars are not zero, and a device's vary by the deviation, with batches of {largest}"
    )
    print(
        f"of an example's |g|², the fleet's mean gradient has {profile.signal:.1%};"
        f" tr(H²)/tr(H)² {profile.sharpness:.2f}\n"
    )
    whole = next(proposal for proposal in proposals if proposal.whole)
    columns = ("blocks", "directions", "rates", "batch", "GFLOP a step")
    least = whole.efficiency("flops")
    best = [(*_row(profile, each), f"{each.efficiency('flops') / least:.1f}") for each in proposals[:6]]
    print(format_table((*columns, "gain over the whole"), best, "predicted"))
    if outcome is not None:
        order = sorted(outcome.tried, key=lambda run: run.held)
        tried = [(*_row(profile, run.proposal), run.seed, f"{run.held - outcome.added:.3f}") for run in order]
        print(format_table((*columns, "seed", "held loss" if objective == LOSS else "held cost"), tried, "\ntried"))
        found = (
            f"{outcome.gain:.1f} times fewer operations than the whole model perturbed at once"
            if math.isfinite(outcome.gain)
            else "the whole model perturbed at once learned nothing in the trial"
        )
        print(f"measured: {found}; the trial took {outcome.flops / 1e9:,.0f} GFLOP")
        if not outcome.learned:
            print("nothing learned much within the trial: make it longer (--trial) before you rely on it")
    elif planned.needed:
        print(
            "the trial is too short to tell which settings learn more, so these are those of a job that says nothing of"
            f" its steps; give --trial {planned.needed} or more to compare others"
        )
    if planned.cores:
        print(
            "cores: they learn sooner than their layer itself where the prior looks like the task, and no sooner where"
            " it does not; which it is here is not measured, so try a bundle of the layer (--train 'PATTERN') as well"
        )
    print(f"predicted: {planned.predicted_gain:.1f} times fewer operations than the whole model perturbed at once")
    print(" ".join(f"{name} {value}" for name, value in settings.items()))


def _row(profile: Profile, proposal: Proposal) -> tuple[str, ...]:
    """The settings, for a table."""
    starts = [profile.segments[cut.start].start for cut in proposal.cuts]
    own = " (own)" if proposal.seeds == "device" else " (shared)"
    every = f" every {proposal.first_every}th" if proposal.first_every > 1 else ""
    return (
        " | ".join(str(start) for start in starts),
        ", ".join(str(cut.fanout) + (every if number == 0 else "") for number, cut in enumerate(proposal.cuts)) + own,
        ", ".join(f"{cut.rate:.3g}" for cut in proposal.cuts) + (" by steps" if "steps" in proposal.adapt else ""),
        str(proposal.batch),
        f"{proposal.flops / 1e9:.2f}",
    )
