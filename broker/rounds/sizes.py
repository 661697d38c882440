"""How large the messages of a job's rounds are."""

from __future__ import annotations

from dataclasses import replace

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.job import Job, plan_round
from fedspzo.broker.rounds.modes import largest_sums
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.masked import Partner, Partners
from fedspzo.device_runtime.protocol.messages import EntryBatch, Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import KEY_BYTES, SIGNATURE_BYTES

#: Numbers that take as many bytes as any: 9 and 9, 5 and 2.
_FLOAT, _SEED, _ROUND, _ATTEMPT = 0.1, (1 << 64) - 1, 1 << 31, 64
_CARD = Partner(bytes(KEY_BYTES), bytes(KEY_BYTES), bytes(SIGNATURE_BYTES), bytes(SIGNATURE_BYTES))


def largest_message(job: Job) -> int:
    """Bytes, unsigned, of the largest message that a round needs.

    That is an entry for a device that is late, or the keys of the others in its group, with certificates.

    Raises:
        MessageError: no message is so large.
    """
    plan = _widen(plan_round(replace(job, first_every=1), 1))
    result = Result(1, b"", (0.0,) * plan.scalars, 0.0, 1, 0.0, b"")
    names = [""] if plan.shared else [f"{number:064d}" for number in range(job.cohort)]
    entry = close_round(plan, dict.fromkeys(names, result))
    contributions = tuple(replace(each, weight=_FLOAT) for each in entry.contributions)
    entry = replace(entry, contributions=contributions, sums=largest_sums(job, plan))
    cards = tuple(_CARD for masking in plan.masking for _ in range(masking.most - 1))
    return max(len(encode(EntryBatch((encode(entry) + bytes(SIGNATURE_BYTES),)))), len(encode(Partners(cards))))


def _widen(plan: Plan) -> Plan:
    """A plan with the bytes of any later round's: the numbers that follow what was measured take as many as any."""
    blocks = tuple(replace(block, scale=_FLOAT, learning_rate=_FLOAT) for block in plan.blocks)
    masking = tuple(replace(each, attempt=_ATTEMPT, clip=_FLOAT) for each in plan.masking)
    return replace(plan, round=_ROUND, base_seed=_SEED, blocks=blocks, bound=_FLOAT, masking=masking)
