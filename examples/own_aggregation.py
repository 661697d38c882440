"""Your own aggregation and sampling: a median that a few broken devices cannot move, and devices in turn.

Run: python examples/own_aggregation.py runs/demo/bundle runs/demo/data/device-1.jsonl

The same two functions serve a live job: ``fedspzo.Server(…, aggregate=median, sample=in_turn)``.
"""

import sys
from collections.abc import Mapping
from statistics import median as middle

import fedspzo


def median(plan: fedspzo.Plan, results: Mapping[str, fedspzo.Result]) -> fedspzo.Entry:
    """The median of the devices' scalars along each direction that they share."""
    columns = zip(*(result.scalars for result in results.values()), strict=True)
    scalars = tuple(float(middle(column)) for column in columns)
    return fedspzo.Entry(plan, (fedspzo.Contribution("", 1.0, scalars),))


def in_turn(job: fedspzo.Job, number: int, candidates: Mapping[str, fedspzo.Candidate], count: int) -> tuple[str, ...]:
    """As many devices as are wanted, the next in the alphabet first."""
    names = sorted(candidates)
    return tuple(names[(number * count + place) % len(names)] for place in range(min(count, len(names))))


class Report(fedspzo.Callback):
    """Prints each round."""

    def on_round(self, closed: fedspzo.ClosedRound) -> None:
        """Who took part, and the loss that they measured."""
        print(f"round {closed.round}: loss {closed.loss:.3f} on {', '.join(closed.devices)}")


def main(bundle: str, data: str, *, rounds: int = 10) -> fedspzo.Simulation:
    """Run a job with both."""
    job = fedspzo.Job(rounds=rounds, cohort=3, seeds="shared")
    return fedspzo.simulate(bundle, data, job, devices=7, aggregate=median, sample=in_turn, observe=Report())


if __name__ == "__main__":
    main(*sys.argv[1:3])
