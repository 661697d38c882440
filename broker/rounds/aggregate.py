"""From the results of a round to its journal entry: pure functions, which the live server and simulations call."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedspzo.broker.rounds.promise import BOUNDED, bound
from fedspzo.broker.rounds.robust import NORMALISED, OWN, RULES, RULES_OF_GROUPS, clip, normalise
from fedspzo.device_runtime.errors import MessageError, PlanError
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.messages import Energy, Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.step.spread import standard_error

#: Largest scalar, loss or time that a result may have.
LARGEST = 1e9


@dataclass(frozen=True)
class Spending:
    """What a round took the devices that said so.

    Attributes:
        joules, uncertainty: of all of them together.
        devices: how many they are.
        estimated: how many of them did not measure.
    """

    joules: float
    uncertainty: float
    devices: int
    estimated: int


@dataclass(frozen=True)
class ClosedRound:
    """What became of a round.

    Attributes:
        round: its number.
        loss: mean loss that its devices measured.
        devices: those whose results counted.
        seconds: from opening to closing.
        step_seconds: mean time of a device's local step.
        spending: joules; None when no device said.
        nonzero: share of the measured scalars that are not zero, in a round that was closed just now.
        loss_uncertainty: standard error of the loss, by its spread over the devices (or over groups, where results are
            summed), in a round that was closed just now; None where one result or one sum shows no spread.
        arrived: device → seconds after the opening when its result came, in a round that a server closed just now.
    """

    round: int
    loss: float
    devices: tuple[str, ...]
    seconds: float
    step_seconds: float
    spending: Spending | None = None
    nonzero: float | None = field(default=None, compare=False)
    loss_uncertainty: float | None = field(default=None, compare=False)
    arrived: Mapping[str, float] = field(default_factory=dict, compare=False)


class Aggregate(Protocol):
    """A way to aggregate: a pure function from the results of a round to its journal entry."""

    def __call__(self, plan: Plan, results: Mapping[str, Result], /) -> Entry:
        """The entry, with the round's own plan, of results by device, of which there is one at least."""


def check_result(plan: Plan, cohort: Collection[str], device: str, result: Result) -> None:
    """Raise MessageError unless a result counts in a round."""
    if result.round != plan.round:
        raise MessageError("result.other-round", f"it is for round {result.round}, and round {plan.round} is open")
    if device not in cohort:
        raise MessageError("result.not-asked", f"the device was not asked in round {plan.round}")
    if result.plan != fingerprint(plan):
        raise MessageError("result.other-plan", f"it answers another plan of round {result.round}")
    if len(result.scalars) != plan.scalars:
        raise MessageError(
            "result.scalar-count", f"it has {len(result.scalars)} scalars, and the plan asks for {plan.scalars}"
        )
    least = plan.batch if plan.noise else 1  # results with noise weigh the same, or their mean has less of it
    if not least <= result.examples <= plan.most_examples:
        raise MessageError(
            "result.example-count",
            f"it claims {result.examples} examples, and the plan allows {least} to {plan.most_examples}",
        )
    if len(result.energy) > 1 or any(energy.uncertainty < 0 for energy in result.energy):
        raise MessageError("result.energy", "its energy is given twice, or with a negative uncertainty")
    joules = [number for energy in result.energy for number in (energy.joules, energy.uncertainty)]
    if any(abs(number) > LARGEST for number in (*result.scalars, result.loss, result.seconds, *joules)):
        raise MessageError("result.number-too-large", f"it has a number beyond {LARGEST:g}")


def close_round(plan: Plan, results: Mapping[str, Result], votes: bool = False) -> Entry:
    """The journal entry that a round's results make, as the plan says: see :mod:`fedspzo.broker.rounds.robust`.

    With shared directions the devices' scalars are made one vector; otherwise each device's scalars are kept, with its
    share as the weight. Larger ones than the plan's bound are scaled down first. Where the rule's name says so, the
    result is divided by its standard deviation, or has less weight where its step promises too much. The order of
    arrival does not matter.

    Args:
        votes: the sign of the signs' mean is the step, whatever the plan says; plans from before they named their rule
            do not say it.

    Raises:
        PlanError: the plan's rule is unknown, or is not one for directions of the devices' own.
    """
    vectors, shares = stack(results)
    if plan.bound:
        vectors = clip(vectors, plan.bound)
    whole = "votes" if votes else plan.aggregate or "weighted-mean"
    named = whole.removesuffix(BOUNDED)
    rule = named.removesuffix(NORMALISED)
    known: Collection[str] = RULES if plan.shared else OWN
    if rule not in known:
        raise PlanError(
            "plan.unknown-aggregate",
            f"'{rule}' is no rule for {'shared directions' if plan.shared else 'directions of their own'}; take one of"
            f" {', '.join(known)}",
        )
    if plan.shared:
        one = (RULES_OF_GROUPS if plan.masking else RULES)[rule](vectors, shares)
        if rule != named:
            one = normalise(one, [block.fanout for block in plan.blocks])
        # Rounded to float32 here, as the wire does: every replica applies the same numbers.
        entry = Entry(plan, (Contribution("", 1.0, tuple(one.astype(np.float32).tolist())),))
        return entry if named == whole else bound(entry)
    own = OWN[rule](vectors)
    if rule != named:
        own = np.array([normalise(each, [block.fanout for block in plan.blocks]) for each in own])
    kept = own.astype(np.float32).tolist()
    rows = zip(sorted(results), shares.tolist(), kept, strict=True)
    entry = Entry(plan, tuple(Contribution(device, share, tuple(scalars)) for device, share, scalars in rows))
    return entry if named == whole else bound(entry)


def stack(results: Mapping[str, Result]) -> tuple[np.ndarray, np.ndarray]:
    """Scalars, float64 of shape (devices, scalars), and shares of the examples, in the order of the devices' names."""
    devices = sorted(results)
    total = sum(result.examples for result in results.values())
    vectors = np.array([results[device].scalars for device in devices], np.float32).astype(np.float64)
    return vectors, np.array([results[device].examples / total for device in devices])


def checked(aggregate: Aggregate) -> Aggregate:
    """An aggregation of a user's own, whose entries are rounded to float32 as every reader of the journal has them.

    It raises PlanError where an entry is not of the round's plan, and MessageError where it is too large.
    """

    def make(plan: Plan, results: Mapping[str, Result]) -> Entry:
        entry = decode(encode(aggregate(plan, results)))
        if not isinstance(entry, Entry) or entry.plan != plan:
            raise PlanError(
                "plan.of-another-round", f"the aggregation of round {plan.round} gives another plan's entry"
            )
        return entry

    return make


def describe_round(plan: Plan, results: Mapping[str, Result], seconds: float) -> ClosedRound:
    """What happened in a round that took ``seconds``."""
    return ClosedRound(
        round=plan.round,
        loss=math.fsum(result.loss for result in results.values()) / len(results),
        devices=tuple(sorted(results)),
        seconds=seconds,
        step_seconds=math.fsum(result.seconds for result in results.values()) / (len(results) * plan.steps),
        spending=_add_up([energy for result in results.values() for energy in result.energy]),
        nonzero=None
        if plan.noise
        else float(np.mean([np.count_nonzero(result.scalars) for result in results.values()])) / plan.scalars,
        loss_uncertainty=standard_error([result.loss for result in results.values()]),
    )


def _add_up(energies: Sequence[Energy]) -> Spending | None:
    if not energies:
        return None
    return Spending(
        joules=math.fsum(energy.joules for energy in energies),
        uncertainty=math.hypot(*(energy.uncertainty for energy in energies)),
        devices=len(energies),
        estimated=sum(energy.estimated for energy in energies),
    )
