"""What each of some candidate sentences would send: measured once a round, as a device measures.

Whoever knows a plan can do this, since directions follow from its seeds: server, broker and every participant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure_examples
from fedspzo.device_runtime.step.runner import Forward


@dataclass(frozen=True)
class Dictionary:
    """Candidates and what they would send.

    Attributes:
        scalars: float64 [rounds, candidates, scalars], each candidate alone in its batch.
        losses: float64 [rounds, candidates].
    """

    scalars: np.ndarray
    losses: np.ndarray

    @property
    def candidates(self) -> int:
        """How many there are."""
        return self.scalars.shape[1]

    def first(self, rounds: int) -> Dictionary:
        """The dictionary of the first rounds alone."""
        return Dictionary(self.scalars[:rounds], self.losses[:rounds])


def measure_dictionary(forward: Forward[Replica], candidates: DataStore, job: Job, rounds: int) -> Dictionary:
    """Measure candidates for the first rounds of a job, with the weights as they are.

    Raises:
        PlanError: directions are of the devices' own, so that each device would need a dictionary of its own, or the
            plan does not fit the bundle.
    """
    if job.seeds != "shared":
        raise PlanError(
            "privacy.own-directions",
            "with directions of each device's own every device's scalars are in the journal under its name, so they"
            " need no attack on sums; set seeds = shared",
        )
    found = [measure_examples(forward, candidates, plan_round(job, round)) for round in range(1, rounds + 1)]
    return Dictionary(np.stack([scalars for scalars, _ in found]), np.stack([losses for _, losses in found]))


def every_label(candidates: DataStore, labels: int) -> DataStore:
    """The candidates with each of their task's labels in turn: candidate i with label j is number i·labels + j.

    Only for tasks of one label an example.
    """
    again = np.repeat(np.arange(len(candidates)), labels)
    return replace(
        candidates,
        ids=candidates.ids[again],
        lengths=candidates.lengths[again],
        starts=candidates.starts[again],
        labels=np.tile(np.arange(labels, dtype=candidates.labels.dtype), len(candidates)),
        references=(),
    )
