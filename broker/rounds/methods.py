"""Published methods as settings of a job: each is a plan; rounds, estimator and journal are the same.

First-order ones, which simulations compare with, are settings of the same job. Your own method is another
:class:`Method`.

A learning rate grows with the number of directions that its block averages over, whose variance falls with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedspzo.device_runtime.errors import PlanError

#: Learning rates stay as they are, as in the papers.
CONSTANT_RATE: Mapping[str, Any] = {"final_rate": 1.0}


@dataclass(frozen=True)
class Method:
    """A way to train with forward passes.

    Attributes:
        paper: where it is from.
        title: what it does, in a line.
        perturbations: default number of directions P (in the last block, if there are several).
        rate: learning rate for each of them, for an encoder of some 10 million weights.
        first: directions of a first block before the last one (0: it is frozen); None where all is one block.
        more: settings of the job that differ from their defaults.
        ratio: of a first block's learning rate to the last one's; its curvature says which (see ``fedspzo plan``).
        devices: that it is simulated with, where that is part of the method.
    """

    paper: str
    title: str
    perturbations: int
    rate: float
    first: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    ratio: float = 1 / 64
    devices: int | None = None

    def settings(
        self, perturbations: int | None = None, rate: float | None = None, ratio: float | None = None
    ) -> dict[str, Any]:
        """The job's settings for P directions; ``rate`` and ``ratio`` replace the method's own."""
        count = self.perturbations if perturbations is None else perturbations
        own = count * (self.rate if rate is None else rate)
        if self.first is None:
            cut: dict[str, Any] = {"fanouts": (count,), "scales": (1.0,), "learning_rates": (_round(own),)}
        else:
            rates = (_round(own * (self.ratio if ratio is None else ratio)), _round(own))
            cut = {"fanouts": (self.first, count), "scales": (0.25, 1.0), "learning_rates": rates}
        return {**cut, "sides": 2, **CONSTANT_RATE, **self.more}


@dataclass(frozen=True)
class FirstOrder:
    """A way to train with backpropagation, in simulations alone.

    Attributes:
        paper: where it is from.
        title: what it does, in a line.
        rate: learning rate, for an encoder of some 10 million weights.
        steps: local steps.
    """

    paper: str
    title: str
    rate: float
    steps: int = 1

    def settings(self) -> dict[str, Any]:
        """The job's settings: one block, whose learning rate it is."""
        return {
            "sides": 2,
            "fanouts": (1,),
            "scales": (1.0,),
            "learning_rates": (self.rate,),
            "steps": self.steps,
            **CONSTANT_RATE,
        }


METHODS = {
    "fedspzo": Method("2502.10239", "the split, two-sided, as in the paper", 16, 1.25e-4, first=1),
    "fedspzo-one-sided": Method(
        "2502.10239, 2506.09034", "the split around the centre, whose loss all share", 16, 1.5e-4, 1, {"sides": 1}
    ),
    "fedspzo-resting": Method(
        "2502.10239, 2506.09034", "the same, the first block perturbed in every fourth round", 16, 1.5e-4, 1,
        {"sides": 1, "first_every": 4},
    ),
    "fedspzo-own": Method(
        "2502.10239", "the split, two-sided, each device its own directions", 16, 1.25e-4, 1, {"seeds": "device"}
    ),
    "frozen": Method(
        "2506.09034", "the first block frozen, its activations kept, one-sided", 16, 1.5e-4, 0, {"sides": 1}
    ),
    "frozen-own": Method(
        "2506.09034", "the same, each device its own directions", 16, 1.5e-4, 0, {"sides": 1, "seeds": "device"}
    ),
    "decomfl": Method("2405.15861", "the whole model, directions that all devices share", 5, 8e-5),
    "decomfl-one-sided": Method("2405.15861, 2506.09034", "the same around the centre", 5, 8e-5, more={"sides": 1}),
    "fedzo": Method("2201.09531", "the whole model, each device its own directions", 2, 1.15e-4,
                    more={"seeds": "device"}),
    "fedzo-one-sided": Method("2201.09531, 2506.09034", "the same around the centre", 2, 1.15e-4,
                              more={"seeds": "device", "sides": 1}),
    "fzoo": Method("2506.09034", "the whole model around the centre, steps divided by the losses' deviation", 8, 4e-4,
                   more={"sides": 1, "normalise": True}),
    "fedmezo": Method("2402.05926", "the same with one direction and several local steps", 1, 8e-5,
                      more={"seeds": "device", "steps": 4}),
    "fedkseed": Method("2312.06353", "the same with seeds from a finite pool", 1, 8e-5,
                       more={"seeds": "device", "steps": 4, "seed_pool": 4096}),
    "feedsign": Method("2501.17610", "one shared direction, a vote of one bit", 1, 1e-4, more={"votes": True}),
    "mezo": Method("2305.17333", "central: one device has all the data", 1, 8e-5, more={"cohort": 1}, devices=1),
}  # fmt: skip


FIRST_ORDER = {
    "fedavg": FirstOrder("1602.05629", "local steps of SGD, weights averaged", 0.015, 5),
    "fedsgd": FirstOrder("1602.05629", "gradients averaged, the server's step is SGD's", 0.02),
    "fedadam": FirstOrder("1602.05629, 2003.00295", "gradients averaged, the server's step is Adam's", 1e-4),
}
#: What a simulation can run.
SIMULATED: Mapping[str, Method | FirstOrder] = {**METHODS, **FIRST_ORDER}


def choose_method(text: str, methods: Mapping[str, Method | FirstOrder] = METHODS) -> tuple[str, dict[str, Any]]:
    """Name and settings of what ``NAME`` or ``NAME:P`` says, with P directions.

    Raises:
        PlanError: there is no such method among those to choose from, or it has no directions.
    """
    name, colon, count = text.partition(":")
    if name in FIRST_ORDER and name not in methods:
        raise PlanError(
            "job.first-order-method",
            f"{name} needs backpropagation, which devices do not have; fedspzo simulate compares with it",
        )
    if name not in methods or (colon and (not count.isdecimal() or int(count) == 0)):
        raise PlanError(
            "job.unknown-method",
            f"'{text}' is no method; give NAME or NAME:P, with P directions and a name of {', '.join(methods)}",
        )
    method = methods[name]
    if isinstance(method, Method):
        return name, method.settings(int(count) if colon else None)
    if colon:
        raise PlanError("job.no-directions", f"{name} has no directions; leave out ':{count}'")
    return name, method.settings()


def _round(rate: float) -> float:
    """To six digits, as people write it."""
    return float(f"{rate:.6g}")
