"""Rounds whose results the server knows in sums alone: which devices are summed together, and what is made of the sums.

Pure functions. A group counts in a rule of :mod:`fedspzo.broker.rounds.robust` as a device does elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedspzo.broker.rounds.aggregate import Aggregate, ClosedRound, Spending
from fedspzo.broker.rounds.seeds import derive
from fedspzo.device_runtime.privacy.masks import seed_attempt
from fedspzo.device_runtime.privacy.words import Total, add_up, pack, unpack
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.entry import Entry, GroupSum
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.step.spread import standard_error


def divide(plan: Plan, devices: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of devices, drawn again for each round and attempt; as many, and as even, as the plan's least allows.

    In mode "secure" there is one, of at most as many devices as the plan's most.
    """
    (masking,) = plan.masking
    drawn = sorted(devices, key=lambda device: (derive(plan.base_seed, plan.round, device), device))
    if masking.mode == "secure":
        return (tuple(sorted(drawn[: masking.most])),)
    count = len(drawn) // masking.least
    return tuple(tuple(sorted(drawn[start::count])) for start in range(count))


def try_again(plan: Plan, seed: int, after: int = 0) -> Plan:
    """The plan of a round's next attempt: other directions, examples and masks.

    Args:
        seed: the job's.
        after: an attempt that it follows, if that is a later one than the plan's.
    """
    (masking,) = plan.masking
    attempt = max(masking.attempt, after) + 1
    return replace(
        plan,
        base_seed=seed_attempt(derive(seed, plan.round, f"plan {attempt}"), plan.round, attempt),
        masking=(replace(masking, attempt=attempt),),
    )


def sum_results(plan: Plan, results: Mapping[str, Result], group: Collection[str]) -> GroupSum:
    """What the devices of a group would add up to under masks."""
    return add_up(np.sum([pack(plan, results[device]) for device in group], axis=0), len(group))


def close_sums(plan: Plan, sums: Sequence[GroupSum], aggregate: Aggregate) -> Entry:
    """The journal entry that a round's sums make, by a rule over groups.

    Raises:
        MessageError: a sum is out of its range.
    """
    return replace(aggregate(plan, group_results(plan, [unpack(plan, each) for each in sums])), sums=tuple(sums))


def group_results(plan: Plan, totals: Sequence[Total]) -> dict[str, Result]:
    """Groups as if each were a device, named by their place: their mean, with the examples of all."""
    return {
        f"{place:04d}": Result(
            plan.round, fingerprint(plan), tuple(total.scalars.tolist()), total.loss, total.examples,
            total.seconds / total.devices, b"", total.energy,
        )
        for place, total in enumerate(totals)
    }  # fmt: skip


def describe_sums(plan: Plan, totals: Sequence[Total], devices: Collection[str], seconds: float) -> ClosedRound:
    """What happened in a round that took ``seconds``; its loss is weighted by examples."""
    examples = sum(total.examples for total in totals)
    shares = [total.examples / examples for total in totals]
    told = [total for total in totals if total.told]
    joules = [energy for total in told for energy in total.energy]
    return ClosedRound(
        round=plan.round,
        loss=math.fsum(share * total.loss for share, total in zip(shares, totals, strict=True)),
        devices=tuple(sorted(devices)),
        seconds=seconds,
        step_seconds=math.fsum(total.seconds for total in totals) / (len(devices) * plan.steps),
        spending=Spending(
            joules=math.fsum(energy.joules for energy in joules),
            uncertainty=math.hypot(*(energy.uncertainty for energy in joules)),
            devices=sum(total.told for total in told),
            estimated=sum(total.estimated for total in told),
        )
        if told
        else None,
        nonzero=None
        if plan.noise
        else float(np.mean([np.count_nonzero(total.scalars) for total in totals])) / plan.scalars,
        loss_uncertainty=standard_error([total.loss for total in totals], shares),
    )
