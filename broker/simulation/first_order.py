"""First-order federated learning with virtual devices: the upper limit for zeroth-order methods.

FedAvg (arXiv 1602.05629): devices take local steps of SGD, the server averages their weights by examples. FedSGD (same
paper): devices send one gradient, and the server takes the step, by SGD or by Adam (FedAdam, arXiv 2003.00295).
Devices, their examples, batches and cohorts are those of the zeroth-order simulation. The algorithms are pure functions
of plain state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedspzo.broker.rounds.job import Job
from fedspzo.broker.rounds.private import NO_PRIVACY
from fedspzo.broker.simulation.driver import Attendance, SimulatedRound, WithoutJournal
from fedspzo.broker.simulation.gradient import Backpropagation, Gradient, Tensors
from fedspzo.broker.simulation.partition import Shares
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.modes import MASKED
from fedspzo.device_runtime.protocol.objective import LOSS
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples
from fedspzo.device_runtime.step.objectives import check_examples
from fedspzo.device_runtime.step.spread import standard_error

#: Of Adam (arXiv 1412.6980): decay of the two moments, and what is added to the root of the second.
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        weights: the trained ones.
        moments: Adam's running means of the gradient and of its square; none with SGD.
        steps: taken so far.
    """

    weights: Tensors
    moments: tuple[Tensors, Tensors] | None
    steps: int


@dataclass(frozen=True)
class Update:
    """What a device sends.

    Attributes:
        change: to be averaged and descended along: a gradient, or the weights before local steps less those after.
        loss: mean over the steps.
        examples: used over all steps.
        flops: operations of matrix products that it took.
    """

    change: Tensors
    loss: float
    examples: int
    flops: int


@dataclass(frozen=True)
class Algorithm:
    """Who takes which steps.

    Attributes:
        local: whether devices take the plan's steps by SGD; otherwise they send one gradient.
        adam: whether the server's step is Adam's; otherwise it is SGD's.
    """

    local: bool = False
    adam: bool = False

    def start(self, weights: Tensors) -> State:
        """The state before the first round."""
        zeros = {index: np.zeros_like(array) for index, array in weights.items()}
        return State(weights, (zeros, zeros) if self.adam else None, 0)


ALGORITHMS = {"fedavg": Algorithm(local=True), "fedsgd": Algorithm(), "fedadam": Algorithm(adam=True)}


def device_update(
    algorithm: Algorithm, weights: Tensors, plan: Plan, gradient: Callable[[Tensors, int], Gradient]
) -> Update:
    """What a device does in a round.

    Args:
        algorithm: says whether it takes steps itself.
        weights: that the round starts from.
        plan: has the number of steps and, in its only block, the learning rate.
        gradient: of the device's loss at some weights, on the batch of a step.
    """
    if not algorithm.local:
        found = gradient(weights, 0)
        return Update(found.tensors, found.loss, found.examples, found.flops)
    moved, steps = {index: array.copy() for index, array in weights.items()}, []
    for step in range(plan.steps):
        found = gradient(moved, step)
        for index, array in moved.items():  # in place, as a device would
            array -= _rate(plan) * found.tensors[index]
        steps.append((found.loss, found.examples, found.flops))
    losses, examples, flops = zip(*steps, strict=True)
    change = {index: np.subtract(weights[index], array, out=array) for index, array in moved.items()}
    return Update(change, math.fsum(losses) / len(losses), sum(examples), sum(flops))


def server_update(algorithm: Algorithm, state: State, plan: Plan, updates: Mapping[str, Update]) -> State:
    """The step along the mean of the devices' updates, weighted by examples. Their order does not matter."""
    total = sum(update.examples for update in updates.values())
    shares = {device: updates[device].examples / total for device in sorted(updates)}
    mean = {
        index: np.sum([share * updates[device].change[index] for device, share in shares.items()], axis=0)
        for index in state.weights
    }
    rate, steps = 1.0 if algorithm.local else _rate(plan), state.steps + 1
    if state.moments is None:
        return State(_descend(state.weights, mean, rate), None, steps)
    first, second = (
        {index: beta * old[index] + (1 - beta) * mean[index] ** power for index in mean}
        for beta, old, power in zip(BETAS, state.moments, (1, 2), strict=True)
    )
    corrected = [1 - beta**steps for beta in BETAS]
    direction = {
        index: first[index] / corrected[0] / (np.sqrt(second[index] / corrected[1]) + EPSILON) for index in mean
    }
    return State(_descend(state.weights, direction, rate), (first, second), steps)


class FirstOrder(WithoutJournal):
    """A :class:`fedspzo.broker.simulation.driver.Training` whose state is weights; it starts from θ₀.

    Attributes:
        state: after the last closed round.
    """

    def __init__(self, job: Job, algorithm: Algorithm, shares: Shares, backpropagation: Backpropagation) -> None:
        """``job``'s plans have one block, whose learning rate is the algorithm's."""
        super().__init__(job)
        self._algorithm, self._shares, self._backpropagation = algorithm, shares, backpropagation
        self.state = algorithm.start(backpropagation.start())

    @property
    def round(self) -> int:
        """The last closed round."""
        return self.state.steps

    def train(self, plan: Plan, attendance: Attendance) -> SimulatedRound:
        """Gradients on the devices' examples, and the server's step."""
        updates = {device: self._update_of(plan, device) for device in attendance.seconds}
        self.state = server_update(self._algorithm, self.state, plan, updates)
        self._served.update(dict.fromkeys(updates, plan.round))
        return SimulatedRound(
            round=plan.round,
            loss=math.fsum(update.loss for update in updates.values()) / len(updates),
            devices=tuple(sorted(updates)),
            loss_uncertainty=standard_error([update.loss for update in updates.values()]),
            seconds=attendance.closed,
            step_seconds=math.fsum(attendance.seconds.values()) / (len(updates) * plan.steps),
            asked=attendance.asked,
            flops=sum(update.flops for update in updates.values()),
            device_bytes=payload(self.state.weights),
        )

    def advance(self, replica: Replica) -> None:
        """Give a replica the weights, to which no journal leads."""
        if self.round:
            replica.adopt(self.state.weights, self.round)

    def _update_of(self, plan: Plan, device: str) -> Update:
        """A virtual device's update, on the examples that it would draw for the same plan of a zeroth-order job."""
        store = self._shares.of(device)
        check_examples(None, store)

        def gradient(at: Tensors, step: int) -> Gradient:
            return self._backpropagation(at, store, draw_examples(plan, store, device, step))

        return device_update(self._algorithm, self.state.weights, plan, gradient)


def check_first_order(name: str, job: Job) -> None:
    """Raise PlanError unless a job's settings go with the algorithm of that name."""
    if len(job.blocks) > 1 or job.blocks[0].fanout != 1:
        raise PlanError(
            "job.directions-of-first-order",
            f"{name} has no directions; leave out --split, --fanouts and --scales",
        )
    if job.objective != LOSS:
        raise PlanError(
            "job.objective-of-first-order", f"{name} takes gradients of the loss, not of {job.objective}; leave it out"
        )
    if job.mode in MASKED or job.privacy != NO_PRIVACY:
        raise PlanError(
            "job.secrecy-of-first-order",
            f"what devices send for {name} is neither masked nor has noise; leave out --mode and --privacy",
        )
    if job.steps > 1 and not ALGORITHMS[name].local:
        raise PlanError(
            "job.local-steps",
            f"{name} takes one gradient of each device; for local --steps use --method fedavg",
        )


def payload(weights: Tensors) -> int:
    """Bytes of the trained weights in float32: what a device gets in a round, and what it sends."""
    return sum(4 * array.size for array in weights.values())


def _rate(plan: Plan) -> float:
    return plan.blocks[0].learning_rate


def _descend(weights: Tensors, direction: Tensors, rate: float) -> dict[int, np.ndarray]:
    return {index: array - rate * direction[index] for index, array in weights.items()}
