"""Show what a job's noise promises: ε and δ of a planned job, or of the rounds that a server has closed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedspzo.device_runtime import plain_json
from fedspzo.options.job import add_job_options, make_job


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a bundle, or a state folder of server or simulation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_job_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print the promise, and who it holds against."""
    from fedspzo.broker.privacy.accounting import account, spent
    from fedspzo.broker.rounds.job import check_job, plan_round
    from fedspzo.broker.server.state_folder import read_journal, read_open_plan
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.privacy.budget import epsilon
    from fedspzo.device_runtime.privacy.release import cost_to_server, sensitivity
    from fedspzo.device_runtime.protocol.plan import HIDDEN, UNITS
    from fedspzo.run_folder import is_bundle

    planned = is_bundle(options.folder)
    of_journal: dict[str, Any] = {} if planned else {"privacy": UNITS[0]}  # only δ is asked then
    job = make_job(options, **of_journal)
    if planned:
        plan = plan_round(check_job(job, Bundle(options.folder)), 1)
        plans, what = [plan] * job.rounds, f"{job.rounds} planned rounds"
    else:
        plans = [entry.plan for entry in read_journal(options.folder)]
        what = f"{len(plans)} rounds of the journal"
        if (opened := read_open_plan(options.folder)) is not None:
            plans, what = [*plans, opened], f"{what} and the one that is open"
    noisy = [plan for plan in plans if plan.noise]
    if not noisy:
        print(plain_json.dumps({"rounds": len(plans), "noisy": 0}) if options.json else f"{what}: no noise, no promise")
        return
    last = noisy[-1].noise[0]
    unit = "device" if {plan.noise[0].unit for plan in noisy} == {"device"} else "example"  # which each of them hides
    costs = [spent(plan, unit) for plan in noisy]
    found = {"epsilon": epsilon(sum(costs), job.delta), "dp_accounting": account(costs, job.delta)}
    seen = sum(spent(plan, unit) if plan.masking else cost_to_server(plan) for plan in noisy)
    found["epsilon_to_server"] = epsilon(seen, job.delta)
    if options.json:
        known = {"rounds": len(plans), "noisy": len(noisy), "unit": unit, "delta": job.delta, "rho": sum(costs)}
        print(plain_json.dumps({**known, **found}))
        return
    print(
        f"{what}: ε = {found['epsilon']:.4g} at δ = {job.delta:g} (by dp-accounting {found['dp_accounting']:.4g}), for"
        f" {HIDDEN[unit]} that counts or counts as nothing, whatever rounds it is in"
    )
    share = last.variance**0.5 / sensitivity(last) * last.clip
    print(
        f"each device adds noise with a standard deviation of {share:.4g} to what is clipped to {last.clip:g}, and"
        f" {last.shares} devices of a sum must do so honestly"
    )
    if plans[0].masking:
        print("the server sees sums, so the promise holds against it, too")
    elif last.shares > 1:
        print(
            "the server sees each result with a share of the noise: against it, and in the accounts of devices, this is"
            f" ε = {found['epsilon_to_server']:.4g} (--honest 1 makes it the same)"
        )
    if len(noisy) < len(plans):
        print(f"{len(plans) - len(noisy)} rounds had no noise: of what they gave away nothing is promised")
