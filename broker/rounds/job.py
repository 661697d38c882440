"""A job: its settings with all their rules, and the plan of each of its rounds.

The fields of :class:`Job` are the one source of the command line's options, of the keys of a job's file and of the
reference: a field whose metadata has ``help`` is all three, under one name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from fedspzo.broker.rounds.aggregate import close_round
from fedspzo.broker.rounds.modes import check_mode, choose_mode, largest_sums, least_summed, mask_plan
from fedspzo.broker.rounds.objective import add_objective, check_objective
from fedspzo.broker.rounds.private import NO_PRIVACY, PRIVACY, add_noise, check_privacy
from fedspzo.broker.rounds.promise import BOUNDED
from fedspzo.broker.rounds.recommend import FEWEST, last_layer, last_trained, recommend
from fedspzo.broker.rounds.robust import CHOICES, NORMALISED, OWN
from fedspzo.broker.rounds.sampling import SAMPLINGS
from fedspzo.broker.rounds.seeds import derive
from fedspzo.broker.rounds.settings import MOST, TINY, check_value, setting
from fedspzo.device_runtime.directions.format import DISTRIBUTIONS
from fedspzo.device_runtime.errors import MessageError, PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.device_runtime.protocol.codec import MAX_BYTES, encode
from fedspzo.device_runtime.protocol.messages import EntryBatch, Result
from fedspzo.device_runtime.protocol.objective import LOSS
from fedspzo.device_runtime.protocol.plan import MAX_REPLAY, Block, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES
from fedspzo.device_runtime.replica.weights import check_blocks
from fedspzo.device_runtime.step.objectives import check_task

#: What of a job's blocks may follow what devices measure.
ADAPTABLE = ("steps", "rates", "counts", "scales")
#: Whose directions a device measures: those of all, or its own.
SEEDS = ("shared", "device")
#: The step's settings as in the paper, for jobs that say some of them.
PAPERS: Mapping[str, Any] = {
    "fanouts": (1, 16), "scales": (0.25, 1.0), "learning_rates": (1.875e-4, 3e-3), "sides": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a job's rounds have in common; each field's metadata says what it is.

    Lists are taken for tuples, and whole numbers for floats. Split, batch and the step's settings depend on the model
    where they are not given: :func:`check_job` fills them in, and sets ``stages``, the number of the network's stages,
    which is 0 before. Where some of the step's settings are given, the others are the paper's.
    """

    rounds: int = setting(100, "rounds to run", least=1)
    cohort: int = setting(4, "results that close a round", least=1)
    over_selection: float = setting(1.0, "devices asked, as a multiple of the cohort", least=1, most=100)
    sampling: str = setting(
        "uniform",
        "devices to ask: any (uniform), those asked longest ago (freshness), or those with power, the thrifty first"
        " (energy)",
        choices=SAMPLINGS,
    )
    quorum: int = setting(
        0,
        "results that suffice at the deadline, so a broker can withhold no more than the rest (default: half of the"
        " cohort, and two at least)",
        metavar="N",
        least=0,
    )
    deadline: float = setting(60.0, "seconds a round waits for results", least=TINY)
    seed: int = setting(0, "all randomness of the job derives from it", least=-(1 << 63), most=(1 << 63) - 1)
    seeds: str = setting("shared", "whose directions a device measures: shared by all, or its own", choices=SEEDS)
    energy: bool = setting(False, "ask devices for the joules that a round takes them")
    distribution: str = setting("rademacher", "distribution of the directions' values", choices=DISTRIBUTIONS)
    steps: int = setting(1, "local steps in a round", least=1)
    batch: int = setting(0, "examples of a step (default: as many as the bundle takes)", metavar="N", least=0)
    replay: int = setting(
        0,
        "a device's step takes its batches of the last N rounds again, of which it has kept what the frozen first block"
        " gives",
        metavar="N",
        least=0,
        most=MAX_REPLAY,
    )
    epsilon: float = setting(1e-3, "size of the perturbation", least=TINY)
    split: tuple[int, ...] = setting(
        (), "stage where each block after the first starts (default: the last layer)", least=1
    )
    fanouts: tuple[int, ...] = setting(
        (), "perturbations of each block; 0 freezes the first (default: what suits the bundle)", least=0
    )
    scales: tuple[float, ...] = setting(
        (), "perturbation scale of each block (default: what suits the bundle)", least=TINY
    )
    learning_rates: tuple[float, ...] = setting(
        (), "learning rate of each block, in the first round (default: what suits the bundle)"
    )
    sides: int = setting(
        0,
        "2: differences of + and −, as in the paper; 1: of + and the centre, whose loss all share (default: 1, and 2"
        " where fanouts, scales or learning rates are given)",
        choices=(0, 1, 2),
    )
    first_every: int = setting(
        1, "perturb the first block every N-th round; between, devices keep its activations", metavar="N", least=1
    )
    objective: str = setting(
        LOSS,
        "what devices measure: loss, error, expected-error, reward (from reactions to what was shown), metric:NAME (of"
        " generated answers), or own:NAME (docs/feedback.md)",
        metavar="NAME",
    )
    temperature: float = setting(
        0.0,
        "with metric:NAME, draw answers at this temperature, a step's with the same noise (default: the likeliest)",
        metavar="T",
        least=0,
        most=1e6,
    )
    reward_cap: float = setting(
        10.0, "with reward, the most that one reaction counts for one to what was shown by chance", least=TINY, most=64
    )
    label_weight: float = setting(
        1.0, "with reward, what an example with a label counts beside a reaction", least=0, most=64
    )
    guard: float = setting(
        0.0,
        "with another objective than loss, stop when the held-out loss has grown by this share of its best and the"
        " objective still improves (default: never)",
        metavar="SHARE",
        least=0,
    )
    votes: bool = setting(False, "only the sign of a scalar counts, and the majority's sign is the step")
    normalise: bool = setting(
        False, "divide each step by the standard deviation of its losses, so that rates need not follow them (FZOO)"
    )
    aggregate: str = setting(
        "clipped-mean",
        "what the cohort's results are made into: a mean weighted by examples, of results cut to twice their median"
        " size (clipped-mean), or another rule of docs/trust.md",
        choices=CHOICES,
    )
    mode: str = setting(
        "auto",
        "what the server sees: each device's scalars (robust), sums of groups of devices (groups), or one sum (secure);"
        " auto is groups where the cohort has 12 devices that share directions, else robust",
        choices=("auto", *MODES),
    )
    group: int = setting(
        0, "devices in a group at least (default: a fifth of the cohort, from 4 to 32)", metavar="N", least=0
    )
    clip: float = setting(
        100.0,
        "largest root mean square of the scalars of a device that masks its result; later rounds may have a lower one",
        least=TINY,
        most=1e6,
    )
    expel: int = setting(
        3, "send a device away after N results far larger than others' (0: only name it)", metavar="N", least=0
    )
    privacy: str = setting(
        NO_PRIVACY,
        "what noise hides (differential privacy): all data of a device (device), or one of its examples (example)",
        choices=PRIVACY,
    )
    privacy_budget: float = setting(
        8.0,
        "with privacy, the ε that all rounds together may cost; the job stops there",
        metavar="E",
        least=1e-3,
        most=1e3,
    )
    delta: float = setting(1e-5, "with privacy, the δ of its promise", least=1e-12, most=0.1)
    noise_clip: float = setting(
        0.0,
        "with privacy, the largest L2 norm of the scalars of a device, or of an example (default: 100; 25 for"
        " expected-error and reward)",
        least=0.0,
        most=MOST,
    )
    honest: int = setting(
        0,
        "with privacy, devices of a round whose noise together must suffice; each adds a share (default: the quorum)",
        metavar="N",
        least=0,
    )
    adapt: tuple[str, ...] = setting(
        (),
        "what of the blocks follows the measured derivatives: steps (rates are for derivatives of 4), rates, counts,"
        " scales",
        choices=ADAPTABLE,
    )
    seed_pool: int = setting(0, "take all seeds from a pool of N (default: no pool)", metavar="N", least=0)
    rebase_every: int = setting(
        0,
        "with a seed pool, make weights again from the sums of the pool every N rounds: a device that was away longer"
        " gets those, some kilobytes, instead of the journal (default: never)",
        metavar="N",
        least=0,
    )
    final_rate: float = setting(0.1, "share that learning rates fall to, linearly", least=0, most=1)
    digest_every: int = field(default=25, metadata={"least": 1})
    stages: int = field(default=0, metadata={"least": 0})

    def __post_init__(self) -> None:
        """Raises PlanError when a setting has a wrong type or is out of its range, or two contradict each other."""
        for each in fields(self):
            object.__setattr__(self, each.name, check_value(each, getattr(self, each.name)))
        if not self.quorum:
            object.__setattr__(self, "quorum", min(max(2, math.ceil(self.cohort / 2)), self.cohort))
        if self.quorum > self.cohort:
            raise PlanError(
                "job.quorum-above-cohort",
                f"a quorum of {self.quorum} cannot be met by a cohort of {self.cohort}; lower quorum or raise cohort",
            )
        if not self.undecided:
            for name, own in PAPERS.items():
                object.__setattr__(self, name, getattr(self, name) or own)
        blocks = len(self.fanouts)
        cuts = len(self.split) or min(blocks - 1, 1)
        given = (blocks, len(self.scales), len(self.learning_rates))
        if not self.undecided and given != (cuts + 1,) * 3:
            raise PlanError(
                "job.blocks-differ",
                "give fanouts, scales and learning_rates one number for each block, and split one fewer; here are"
                f" {given[0]} fanouts, {given[1]} scales, {given[2]} learning rates and {cuts} in split",
            )
        if self.first_every > 1 and blocks == 1:
            raise PlanError("job.no-first-block", "first_every is for the first of several blocks; leave it out")
        if "counts" in self.adapt and (self.sides != 1 or blocks == 1):
            raise PlanError(
                "job.counts-of-one-block", "counts adapt among several blocks that are measured with sides = 1"
            )
        if self.votes and self.seeds != "shared":
            raise PlanError(
                "job.votes-on-own-directions", "devices can only vote on directions that they share; set seeds = shared"
            )
        if self.votes and self.aggregate != CHOICES[0]:
            raise PlanError(
                "job.votes-and-aggregate", f"votes are a rule of their own; leave out aggregate = {self.aggregate}"
            )
        if self.normalise and (
            self.sides != 1 or self.steps > 1 or self.votes or any(count == 1 for count in self.fanouts)
        ):
            raise PlanError(
                "job.normalise-without-deviation",
                "normalise needs the standard deviation of several losses around the centre; set sides = 1, steps = 1"
                " and fanouts of 2 or more, and leave out votes",
            )
        if self.normalise and (self.adapt or self.privacy != NO_PRIVACY):
            raise PlanError(
                "job.normalise-and-adapt",
                "steps that are divided by a deviation have no size to adapt to, and under noise the deviation is the"
                " noise's; leave out normalise, or adapt and privacy",
            )
        if self.seeds != "shared" and self.aggregate not in OWN:
            raise PlanError(
                "job.aggregate-of-own-directions",
                f"{self.aggregate} needs directions that devices share; set seeds = shared, or aggregate to one of"
                f" {', '.join(OWN)}",
            )
        check_mode(self)
        check_privacy(self)
        check_objective(self)
        _plan(self, 1, self._cut(self.stages or 1 << 30))  # has the rules of all that a plan says

    @property
    def undecided(self) -> bool:
        """Whether nothing is said of a step's directions and rates, so that the bundle decides."""
        said = self.fanouts or self.scales or self.learning_rates or self.sides or len(self.split) > 1
        return not said and self.first_every == 1 and "counts" not in self.adapt

    @property
    def runs_as(self) -> str:
        """The mode, one of ``protocol.plan.MODES``."""
        return choose_mode(self)

    @property
    def fewest(self) -> int:
        """Answers that suffice at the deadline: the quorum, and the devices of one sum where results are summed."""
        return self.quorum if self.runs_as == MODES[0] else max(self.quorum, least_summed(self))

    @property
    def asked(self) -> int:
        """Devices asked in a round."""
        return math.ceil(self.cohort * self.over_selection)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The cut of the network. Raises PlanError before :func:`check_job` has filled in what depends on the model."""
        if not self.stages or self.undecided:
            raise PlanError("job.unresolved", "the job's blocks depend on the model; call check_job(job, bundle) first")
        return self._cut(self.stages)

    @property
    def frozen(self) -> int:
        """Stages at the start of the network that no round perturbs. Raises PlanError as ``blocks`` does."""
        first = self.blocks[0]
        return 0 if first.fanout else first.stop

    def with_blocks(self, blocks: Sequence[Block]) -> Job:
        """The job with other blocks."""
        stops = tuple(block.stop for block in blocks)
        return replace(
            self,
            stages=stops[-1],
            split=stops[:-1],
            fanouts=tuple(block.fanout for block in blocks),
            scales=tuple(block.scale for block in blocks),
            learning_rates=tuple(block.learning_rate for block in blocks),
        )

    def _cut(self, stages: int) -> tuple[Block, ...]:
        split = self.split if self.stages and self.undecided else _split(self, stages - 2)
        blocks = len(split) + 1
        fanouts = self.fanouts or (0, FEWEST)[-blocks:]
        ones, zeros = (1.0,) * blocks, (0.0,) * blocks
        values = zip((*split, stages), fanouts, self.scales or ones, self.learning_rates or zeros, strict=True)
        return tuple(Block(*block) for block in values)


def plan_round(job: Job, round: int, blocks: Sequence[Block] | None = None) -> Plan:
    """The plan of a round.

    Args:
        blocks: instead of the job's own.

    Raises:
        PlanError: the job's blocks depend on the model (see :attr:`Job.blocks`), or what is given contradicts the rest.
    """
    rate = 1.0 - (1.0 - job.final_rate) * (round - 1) / job.rounds
    own = job.blocks if blocks is None else blocks
    first, *others = (replace(block, learning_rate=rate * block.learning_rate) for block in own)
    if round % job.first_every:
        first = replace(first, fanout=0)
    return _plan(job, round, (first, *others))


def resolve(job: Job, manifest: Manifest) -> Job:
    """The job with what depends on the model filled in: split, batch and stages."""
    stages = job.stages or len(manifest.stages)
    if job.undecided:
        last = last_trained(manifest)
        split = job.split or ((last,) if last else ())  # nothing comes before the first stage: one block
    else:
        split = _split(job, max(last_layer(manifest), 1))
    return replace(job, stages=stages, split=split, batch=job.batch or manifest.batch)


def check_job(job: Job, bundle: Bundle) -> Job:
    """The job as it runs with a bundle, see :func:`resolve`.

    Raises:
        PlanError: its blocks, batch or objective do not fit the bundle, or a round of it is too large for a message.
    """
    check_task(job.objective, bundle.manifest.task)
    job = resolve(job, bundle.manifest)
    check_blocks(bundle, _plan(job, 1, job._cut(job.stages)))
    if job.undecided:
        job = recommend(job, bundle)
    plan = _plan(job, 1, job.blocks)
    result = Result(1, b"", (0.0,) * plan.scalars, 0.0, 1, 0.0, b"")
    results = 1 if plan.shared else min(job.cohort, MAX_BYTES // (4 * plan.scalars) + 1)  # enough to be too many
    entry = close_round(plan, {f"{number:064d}": result for number in range(results)})
    try:
        encode(EntryBatch((encode(replace(entry, sums=largest_sums(job, plan))) + bytes(SIGNATURE_BYTES),)))
    except MessageError as error:
        raise PlanError(
            "job.round-too-large", f"a round is too large ({error}); lower cohort or fanouts, or use seeds = shared"
        ) from None
    return job


def _split(job: Job, last: int) -> tuple[int, ...]:
    """Where blocks after the first start; the last layer, before the head, where it is not said."""
    return job.split or (last,) * ((len(job.fanouts) or 2) - 1)


def _follows_promise(job: Job) -> bool:
    """Whether a step is held to what it may promise, which is in nats."""
    return "steps" in job.adapt and not job.votes and job.objective == LOSS


def _plan(job: Job, round: int, blocks: tuple[Block, ...]) -> Plan:
    plan = Plan(
        round=round,
        base_seed=derive(job.seed, round, "plan"),
        shared=job.seeds == "shared",
        distribution=job.distribution,
        steps=job.steps,
        batch=job.batch or 1,
        epsilon=job.epsilon,
        blocks=blocks,
        deadline=job.deadline,
        digest=round % job.digest_every == 0,
        energy=job.energy,
        sides=job.sides or 1,
        seed_pool=job.seed_pool,
        rebase_every=job.rebase_every,
        aggregate="votes"
        if job.votes
        else job.aggregate + NORMALISED * job.normalise + BOUNDED * _follows_promise(job),
        replay=job.replay,
    )
    return add_noise(job, mask_plan(job, add_objective(job, plan)))
