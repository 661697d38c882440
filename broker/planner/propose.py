"""Settings with the greatest expected decrease of the loss for their cost: pure functions of a measured profile.

One-sided plans perturb each block alone around activations that are not perturbed. For block b with K directions the
estimate is ĝ = mean over k of d_k z_k with d_k = z_k·g, g being the gradient on the cohort's batch. A step of rate η
changes the loss to second order, in expectation over independent signs z and batches, by

    Δ = η |ḡ|² − η²/2 · [tr(H) E d² / K + λ |ḡ|²],

where ḡ is the gradient on the fleet's data, H the Hessian within the block and λ = tr(H²)/tr(H) the curvature that a
gradient meets which lies as the Hessian does (E ĝᵀHĝ = tr(H)·E d²/K + (1 − 1/K)·gᵀHg, except terms of order 1/K). So

    η = 1 / (tr(H) · E d² / (K |ḡ|²) + λ),    Δ = η |ḡ|² / 2.

tr(H), |ḡ|², E d² and tr(H²) add up over the segments of a block, since their directions are independent (curvature
across segments is neglected). With directions of each device's own, K is the cohort's number of them and E d² one
device's.

A rate is held to a step that is a share of the weights' size: what was measured at a point says nothing far from it.
Rates adapt (:mod:`fedspzo.broker.rounds.adaptive`), for what was measured is that of the start.

A step costs a pass through all and, for each direction of a block, a pass from the block's start to the end. A device
that has seen all of a batch's examples before goes past a frozen first block; the budget says how often that is so. But
a step counts as one pass through all at least: messages and the rest of a round cost something, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from fedspzo.broker.planner.profile import Profile, Segment, Unit
from fedspzo.broker.rounds.job import Job
from fedspzo.device_runtime.protocol.plan import Block

#: Directions to choose from, in any block.
FANOUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: A first block may be perturbed in every N-th round only, for these N.
RESTS = (1, 4)
#: Most blocks.
MOST_BLOCKS = 3
#: A step is at most so long, as a share of the weights: what was measured at a point says nothing of further away.
LONGEST = 0.25
#: Of settings that promise as much within this share, those with most directions are taken: they vary least, and
#: curvature grows on the way, which rates must be lowered for.
ALIKE = 0.3
#: A setting whose budget is spent after fewer rounds is left out where others of its kind have more: it could not even
#: tell whether its rates suit.
FEWEST_ROUNDS = 16
#: Rounding of a loss in float32 after a forward pass, as a share of it.
ROUNDING = 2e-7


@dataclass(frozen=True)
class Terms:
    """Who takes part, and what each may spend.

    Attributes:
        cohort: devices of a round.
        shared: whether they share directions.
        budget: forward passes of the whole network with the largest batch that each device of a cohort may spend, over
            all rounds.
    """

    cohort: int
    shared: bool
    budget: float


@dataclass(frozen=True)
class Cut:
    """One block of a proposal.

    Attributes:
        start, stop: its segments, from the first to before the last.
        fanout: directions; 0 for a first block that is frozen.
        rate: learning rate.
        size: of the perturbation, ε·scale.
    """

    start: int
    stop: int
    fanout: int
    rate: float
    size: float


@dataclass(frozen=True)
class Proposal:
    """Settings, and what they promise.

    Attributes:
        cuts: the blocks, in order.
        first_every: the first block is perturbed in every N-th round.
        batch: examples of a step.
        decrease: of the loss in a round, expected at the start.
        flops, seconds: of a device's step, on average over rounds.
        rounds: that fit the budget.
        seeds: whose directions devices measure, as a job's.
        adapt: what of it adapts, see :mod:`fedspzo.broker.rounds.adaptive`.
    """

    cuts: tuple[Cut, ...]
    first_every: int
    batch: int
    decrease: float
    flops: float
    seconds: float
    rounds: int
    seeds: str
    adapt: tuple[str, ...] = ("rates",)

    def efficiency(self, unit: Unit) -> float:
        """Expected decrease for what it costs."""
        return self.decrease / (self.flops if unit == "flops" else self.seconds)

    @property
    def frozen(self) -> int:
        """Pieces that are never perturbed."""
        return self.cuts[0].stop if self.cuts[0].fanout == 0 else 0

    @property
    def directions(self) -> int:
        """Of all blocks together."""
        return sum(cut.fanout for cut in self.cuts)

    @property
    def whole(self) -> bool:
        """Whether the whole model is perturbed at once."""
        return len(self.cuts) == 1

    def at_rate(self, factor: float) -> Proposal:
        """The same with all learning rates multiplied."""
        return replace(self, cuts=tuple(replace(cut, rate=factor * cut.rate) for cut in self.cuts))


def propose(profile: Profile, terms: Terms, unit: Unit = "flops") -> list[Proposal]:
    """Best first: the best of each number of segments to freeze, and the best that perturbs the whole model at once."""
    kinds: dict[tuple[int, bool], list[Proposal]] = {}
    for proposal in candidates(profile, terms):
        kinds.setdefault((proposal.frozen, proposal.whole), []).append(proposal)
    best = []
    for kind in kinds.values():
        kind = [proposal for proposal in kind if proposal.rounds >= FEWEST_ROUNDS] or kind
        bar = (1 - ALIKE) * max(proposal.efficiency(unit) for proposal in kind)
        alike = [proposal for proposal in kind if proposal.efficiency(unit) >= bar]
        best.append(max(alike, key=lambda proposal: (proposal.directions, proposal.efficiency(unit))))
    return sorted(best, key=lambda proposal: -proposal.efficiency(unit))


def candidates(profile: Profile, terms: Terms) -> Iterator[Proposal]:
    """All that are considered."""
    last = len(profile.segments)

    @cache
    def step(start: int, stop: int, fanout: int, batch: int) -> tuple[float, float]:
        return best_step(profile, terms, profile.segments[start:stop], fanout, batch)

    for batch, blocks in itertools.product(profile.batches, range(1, MOST_BLOCKS + 1)):
        for starts in itertools.combinations(range(1, last), blocks - 1):
            bounds = list(itertools.pairwise((0, *starts, last)))
            first = (0, *FANOUTS) if blocks > 1 else FANOUTS
            for fanouts in itertools.product(first, *[FANOUTS] * (blocks - 1)):
                steps = [
                    step(*bound, fanout, batch) if fanout else (0.0, 0.0)
                    for bound, fanout in zip(bounds, fanouts, strict=True)
                ]
                for rest in RESTS if blocks > 1 and fanouts[0] else (1,):
                    yield _assemble(profile, terms, bounds, fanouts, steps, rest, batch)


def best_step(
    profile: Profile, terms: Terms, segments: Sequence[Segment], fanout: int, batch: int
) -> tuple[float, float]:
    """The best rate of a block with some number of directions, and the decrease of the loss that it promises."""
    magnitude = sum(segment.magnitude for segment in segments)
    trace = sum(segment.trace for segment in segments)
    curvature = profile.sharpness * sum(segment.trace**2 for segment in segments) / trace
    together, count = (terms.cohort, fanout) if terms.shared else (1, fanout * terms.cohort)
    noise = trace * profile.moment(together, batch) / (count * profile.signal)
    best = 1 / (noise + curvature)
    spread = math.sqrt(profile.moment(together, batch) * magnitude / count)  # of the estimate, for each weight
    weights = sum(segment.weights for segment in segments)
    size = math.sqrt(math.fsum(segment.weights * segment.size**2 for segment in segments) / weights)
    rate = min(best, LONGEST * size / spread)
    return rate, rate * (1 - rate / best / 2) * profile.signal * magnitude


def best_size(profile: Profile, segments: Sequence[Segment]) -> float:
    """Size of a block's perturbation at which curvature and rounding err alike in a one-sided difference.

    The difference (l − l₀)/ε errs by ε·tr(H)/2 through curvature and by √2·δ/ε through the rounding δ of a loss. A cost
    that has few values hardly changes under so small a one: there the size is what the segments were measured with.
    """
    if profile.coarse:
        weights = sum(segment.weights for segment in segments)
        return math.sqrt(math.fsum(segment.weights * segment.probed**2 for segment in segments) / weights)
    trace = sum(segment.trace for segment in segments)
    return math.sqrt(2 * math.sqrt(2) * ROUNDING * profile.unit / trace)


def make_job(proposal: Proposal, profile: Profile, job: Job) -> Job:
    """A job with a proposal's settings instead of its own.

    ε is the size of the last block's perturbation; the other blocks have scales.
    """
    epsilon = proposal.cuts[-1].size
    stops = [profile.segments[cut.stop].start for cut in proposal.cuts[:-1]] + [profile.stages]
    blocks = tuple(
        Block(stop, cut.fanout, cut.size / epsilon, cut.rate) for stop, cut in zip(stops, proposal.cuts, strict=True)
    )
    one_sided = replace(job, sides=1)  # first: two-sided, as many directions would be too many scalars
    return replace(
        one_sided.with_blocks(blocks), epsilon=epsilon, batch=proposal.batch, first_every=proposal.first_every,
        seeds=proposal.seeds, adapt=proposal.adapt,
    )  # fmt: skip


def read_job(job: Job, profile: Profile, budget: float) -> Proposal | None:
    """The settings of a one-sided job as a proposal; None where each of its blocks is not some whole segments.

    It is to promise what the best rates for its blocks do.

    Args:
        budget: see :class:`Terms`.
    """
    terms, last = Terms(job.cohort, job.seeds == "shared", budget), len(profile.segments)
    starts = {segment.start: number for number, segment in enumerate(profile.segments)}
    stops = [starts.get(block.stop, 0) for block in job.blocks[:-1]]
    if job.sides != 1 or not all(stops):
        return None
    bounds = list(itertools.pairwise((0, *stops, last)))
    fanouts = [block.fanout for block in job.blocks]
    steps = [
        best_step(profile, terms, profile.segments[slice(*bound)], fanout, job.batch) if fanout else (0.0, 0.0)
        for bound, fanout in zip(bounds, fanouts, strict=True)
    ]
    found = _assemble(profile, terms, bounds, fanouts, steps, job.first_every, job.batch)
    cuts = (
        replace(cut, rate=block.learning_rate, size=job.epsilon * block.scale)
        for cut, block in zip(found.cuts, job.blocks, strict=True)
    )
    return replace(found, cuts=tuple(cuts), adapt=job.adapt)


def _assemble(
    profile: Profile,
    terms: Terms,
    bounds: Sequence[tuple[int, int]],
    fanouts: Sequence[int],
    steps: Sequence[tuple[float, float]],
    rest: int,
    batch: int,
) -> Proposal:
    cuts = tuple(
        Cut(start, stop, fanout, rate, best_size(profile, profile.segments[start:stop]))
        for (start, stop), fanout, (rate, _) in zip(bounds, fanouts, steps, strict=True)
    )
    decrease = math.fsum(gain for _, gain in steps) - steps[0][1] * (1 - 1 / rest)
    shares = [1 / rest if number == 0 else 1.0 for number in range(len(cuts))]
    full = profile.forward("flops", max(profile.batches))
    found, rounds = {}, 1
    for _ in range(3):  # what a frozen block costs depends on the number of rounds, and the other way round
        for unit in ("flops", "seconds"):
            found[unit] = _cost(profile, terms, cuts, shares, batch, rounds, unit)
        rounds = max(1, int(terms.budget * full / found["flops"]))
        if cuts[0].fanout:
            break
    seeds = "shared" if terms.shared else "device"
    return Proposal(cuts, rest, batch, decrease, found["flops"], found["seconds"], rounds, seeds)


def _cost(
    profile: Profile,
    terms: Terms,
    cuts: Sequence[Cut],
    shares: Sequence[float],
    batch: int,
    rounds: int,
    unit: Unit,
) -> float:
    """Of a device's step, on average over rounds."""
    cost = profile.forward(unit, batch)
    if cuts[0].fanout == 0:
        after = profile.forward(unit, batch, cuts[0].stop)
        cost -= (cost - after) * seen_before(profile, terms, batch, rounds)
    for cut, share in zip(cuts, shares, strict=True):
        each = profile.forward(unit, batch, cut.start)
        if unit == "seconds":
            each += math.fsum(segment.shift_seconds for segment in profile.segments[cut.start : cut.stop])
        cost += share * cut.fanout * each
    return max(cost, profile.forward(unit, batch))


def seen_before(profile: Profile, terms: Terms, batch: int, rounds: int) -> float:
    """Share of a device's batches of which it has seen each example, over the rounds of a job."""
    points = range(min(rounds, 50))
    drawn = batch * terms.cohort / profile.devices * rounds / len(points)  # examples that a device draws to a point
    seen = [1 - (1 - 1 / profile.examples) ** (drawn * (point + 0.5)) for point in points]
    return math.fsum(share**batch for share in seen) / len(points)
