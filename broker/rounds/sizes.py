"""How large the messages of a job's rounds are."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.modes import largest_sums
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.messages import EntryBatch, Result
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES


def largest_message(job: Job) -> int:
    """Bytes, unsigned, of the largest message that a round needs: an entry for a device that is late.

    Raises:
        MessageError: no message is so large.
    """
    plan = plan_round(replace(job, first_every=1), 1)
    result = Result(1, b"", (0.0,) * plan.scalars, 0.0, 1, 0.0, b"")
    names = [""] if plan.shared else [f"{number:064d}" for number in range(job.cohort)]
    entry = replace(close_round(plan, dict.fromkeys(names, result)), sums=largest_sums(job, plan))
    return len(encode(EntryBatch((encode(entry) + bytes(SIGNATURE_BYTES),))))
