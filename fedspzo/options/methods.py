"""Published zeroth-order methods as settings of a job: each is a plan; rounds, estimator and journal are the same.

First-order ones, which simulations compare them with, are settings of the same options.

A learning rate grows with the number of directions that its block averages over, whose variance falls with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A way to train with forward passes.

    Attributes:
        paper: where it is from.
        title: what it does, in a line.
        perturbations: default number of directions P (in the last block, if there are several).
        rate: learning rate for each of them, for an encoder of some 10 million weights.
        first: directions of a first block before the last one (0: it is frozen); None where all is one block.
        options: those of the job that differ from their defaults.
        ratio: of a first block's learning rate to the last one's; its curvature says which (see ``fedspzo plan``).
    """

    paper: str
    title: str
    perturbations: int
    rate: float
    first: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ratio: float = 1 / 64

    def settings(self, perturbations: int, rate: float | None = None, ratio: float | None = None) -> dict[str, Any]:
        """The job's options for P directions; ``rate`` and ``ratio`` replace the method's own."""
        own = perturbations * (self.rate if rate is None else rate)
        if self.first is None:
            cut = {"fanouts": f"{perturbations}", "scales": "1", "learning_rates": f"{own:.6g}"}
        else:
            cut = {
                "fanouts": f"{self.first},{perturbations}",
                "scales": "0.25,1",
                "learning_rates": f"{own * (self.ratio if ratio is None else ratio):.6g},{own:.6g}",
            }
        return {**cut, **self.options}


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
    "decomfl-one-sided": Method("2405.15861, 2506.09034", "the same around the centre", 5, 8e-5, options={"sides": 1}),
    "fedzo": Method("2201.09531", "the whole model, each device its own directions", 2, 1.15e-4,
                    options={"seeds": "device"}),
    "fedzo-one-sided": Method("2201.09531, 2506.09034", "the same around the centre", 2, 1.15e-4,
                              options={"seeds": "device", "sides": 1}),
    "fedmezo": Method("2402.05926", "the same with one direction and several local steps", 1, 8e-5,
                      options={"seeds": "device", "steps": 4}),
    "fedkseed": Method("2312.06353", "the same with seeds from a finite pool", 1, 8e-5,
                       options={"seeds": "device", "steps": 4, "seed_pool": 4096}),
    "feedsign": Method("2501.17610", "one shared direction, a vote of one bit", 1, 1e-4, options={"votes": True}),
    "mezo": Method("2305.17333", "central: one device has all the data", 1, 8e-5,
                   options={"devices": 1, "cohort": 1}),
}  # fmt: skip


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
        """The job's options: one block, whose learning rate it is."""
        return {"fanouts": "1", "scales": "1", "learning_rates": f"{self.rate:g}", "steps": self.steps}


FIRST_ORDER = {
    "fedavg": FirstOrder("1602.05629", "local steps of SGD, weights averaged", 0.015, 5),
    "fedsgd": FirstOrder("1602.05629", "gradients averaged, the server's step is SGD's", 0.02),
    "fedadam": FirstOrder("1602.05629, 2003.00295", "gradients averaged, the server's step is Adam's", 1e-4),
}
#: What a simulation can run.
SIMULATED: dict[str, Method | FirstOrder] = {**METHODS, **FIRST_ORDER}


class ChooseMethod(argparse.Action):
    """``--method NAME[:P]``: sets the job's options; those given besides, before or after it, stand."""

    def __init__(self, *arguments: Any, methods: Mapping[str, Method | FirstOrder], **settings: Any) -> None:
        """``methods``: those to choose from."""
        super().__init__(*arguments, **settings)
        self._methods = methods

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Set the options that still have their defaults."""
        name, _, count = str(values).partition(":")
        if name in FIRST_ORDER and name not in self._methods:
            parser.error(f"{name} needs backpropagation, which devices do not have; fedspzo simulate compares with it")
        if name not in self._methods or (count and (not count.isdecimal() or count == "0")):
            parser.error(f"--method is NAME or NAME:P, with P directions and a name of {', '.join(self._methods)}")
        method = self._methods[name]
        if isinstance(method, FirstOrder):
            if count:
                parser.error(f"{name} has no directions; leave out ':{count}'")
            settings = method.settings()
        else:
            settings = method.settings(int(count or method.perturbations))
        for option, value in settings.items():
            if getattr(namespace, option) == parser.get_default(option):
                setattr(namespace, option, value)
        setattr(namespace, self.dest, name)
