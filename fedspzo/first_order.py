"""Runs the rounds of a first-order method with virtual devices, to compare with: what comes of it is a snapshot."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedspzo.broker.rounds.aggregate import ClosedRound
    from fedspzo.broker.simulation.first_order import State
    from fedspzo.commands.simulate import Course


def run_first_order(options: argparse.Namespace, course: Course) -> None:
    """Run all rounds from θ₀, printing progress; no journal leads to the snapshot at the end.

    Raises:
        PlanError: options do not go with the method, or it diverges.
        StateError: the state folder has rounds of another run.
        EngineError, BundleError: PyTorch or its graphs are not there.
    """
    from fedspzo.broker.simulation.first_order import ALGORITHMS, payload, train
    from fedspzo.broker.simulation.gradient import Backpropagation
    from fedspzo.device_runtime.errors import PlanError, StateError

    job, store, replica = course.job, course.store, course.forward.weights
    if len(job.blocks) > 1 or job.blocks[0].fanout != 1:
        raise PlanError(f"{options.method} has no directions: leave out --split, --fanouts and --scales")
    if job.steps > 1 and not ALGORITHMS[options.method].local:
        raise PlanError(f"{options.method} takes one gradient of each device; for local --steps use --method fedavg")
    if options.workers > 1 or options.ray or options.ray_address:
        raise PlanError(f"{options.method} is computed in this process alone: leave out --workers and --ray")
    if store.journal.last_round or replica.round:
        raise StateError(
            f"{options.state} has rounds of another run, which {options.method} cannot go on from;"
            " give it a state folder of its own"
        )
    backpropagation = Backpropagation(course.bundle, options.threads)

    def observe(closed: ClosedRound, state: State, flops: int) -> None:
        size = payload(state.weights)
        course.tell(closed, flops, device_bytes_up=size, device_bytes_down=size)
        if not math.isfinite(closed.loss):
            raise PlanError(f"{options.method} diverged in round {closed.round}; lower --learning-rates")
        if course.schedule.due(closed.round):
            replica.adopt(state.weights, closed.round)
            course.attend(closed.round)

    course.attend(0)
    course.finish(train(job, ALGORITHMS[options.method], course.fleet, course.shares, backpropagation, observe))
